//! What an answer looks like on a client's HTTP/1.1 connection: its head, and how its body ends (RFC 9112 sections 4, 6 and 9).

use super::head::Terms;
use crate::answer::{Answer, Passed};
use crate::body::ResponseBody;
use crate::headers;
use crate::http1::{Ending, Field, Outgoing, put_line};
use bytes::BytesMut;
use http::{HeaderValue, Response, StatusCode, Version};
use http_body::Body;
use hyper::ext::ReasonPhrase;
use std::cell::RefCell;
use std::time::{Duration, SystemTime};

/// Puts an answer into the buffers; nothing is written yet. False when the connection ends with it, which the client is told; it does
/// unless `keeps` and the client's own `terms` allow it to go on.
pub(super) fn begin(
    outgoing: &mut Outgoing<ResponseBody>,
    answer: Answer,
    terms: Terms,
    keeps: bool,
) -> bool {
    match answer {
        Answer::Ready(response) => begin_ready(outgoing, response, terms, keeps),
        Answer::Passed(passed) => begin_passed(outgoing, passed, terms, keeps),
    }
}

fn begin_ready(
    outgoing: &mut Outgoing<ResponseBody>,
    response: Response<ResponseBody>,
    terms: Terms,
    keeps: bool,
) -> bool {
    let (parts, body) = response.into_parts();
    let mut shape = Shape::new(parts.status, &body, terms, keeps);
    let head = outgoing.begin(shape.ending, shape.has_bytes.then_some(body));
    status_line(head, parts.status, parts.extensions.get::<ReasonPhrase>(), terms.version);
    for (name, value) in &parts.headers {
        shape.put(head, Field::of(name.as_str().as_bytes()), name.as_str().as_bytes(), value.as_bytes());
    }
    shape.finish(head);
    if shape.ending == Ending::Chunked && terms.takes_trailers {
        outgoing.announce_trailers(&parts.headers);
    }
    shape.keeps
}

fn begin_passed(outgoing: &mut Outgoing<ResponseBody>, passed: Passed, terms: Terms, keeps: bool) -> bool {
    let Passed { status, version, reason, lines, id, body } = passed;
    let mut shape = Shape::new(status, &body, terms, keeps);
    let head = outgoing.begin(shape.ending, shape.has_bytes.then_some(body));
    status_line(head, status, reason.as_ref(), terms.version);
    for (field, name, value) in lines.iter() {
        shape.put(head, field, name, value);
    }
    put_line(head, b"via", headers::via_text(version).as_bytes());
    if !lines.has(Field::RequestId) {
        put_line(head, b"x-request-id", id.as_bytes());
    }
    shape.finish(head);
    shape.keeps
}

/// How an answer ends, and what its head says of that. The length that is written is always the body's own: what is announced and
/// what follows cannot differ.
struct Shape {
    terms: Terms,
    ending: Ending,
    keeps: bool,
    is_upgrade: bool,
    /// Has such an answer a body, be it an empty one?
    has_body: bool,
    /// Are there bytes of it?
    has_bytes: bool,
    may_say_length: bool,
    length: Option<u64>,
    says_length: bool,
    says_date: bool,
}

impl Shape {
    fn new(status: StatusCode, body: &ResponseBody, terms: Terms, keeps: bool) -> Self {
        let never_has_length = status.is_informational() || status == StatusCode::NO_CONTENT;
        let has_body = !(terms.is_head || never_has_length || status == StatusCode::NOT_MODIFIED);
        let length = body.size_hint().exact();
        let ending = match (has_body, length, terms.version) {
            (false, _, _) => Ending::Length(0),
            (true, Some(length), _) => Ending::Length(length),
            (true, None, Version::HTTP_11) => Ending::Chunked,
            (true, None, _) => Ending::Close,
        };
        Self {
            terms,
            ending,
            keeps: keeps && terms.keeps && ending != Ending::Close,
            is_upgrade: status == StatusCode::SWITCHING_PROTOCOLS,
            has_body,
            has_bytes: has_body && !body.is_end_stream(),
            may_say_length: !never_has_length,
            length,
            says_length: false,
            says_date: false,
        }
    }

    /// Writes one line, unless it is about another connection or said at the end.
    fn put(&mut self, head: &mut BytesMut, field: Field, name: &[u8], value: &[u8]) {
        match field {
            Field::Other => {}
            // About a body that is not sent: what GET would have got, or what the client has already.
            Field::ContentLength if self.may_say_length && !self.has_body => self.says_length = true,
            // What the gateway itself says of this connection; an upgrade is named.
            Field::Connection if !self.is_upgrade => {
                self.keeps &= value != b"close";
                return;
            }
            Field::ContentLength
            | Field::TransferEncoding
            | Field::KeepAlive
            | Field::ProxyConnection
            | Field::Te => return,
            Field::Date => self.says_date = true,
            _ => {}
        }
        put_line(head, name, value);
    }

    fn finish(&mut self, head: &mut BytesMut) {
        match (self.ending, self.length) {
            (Ending::Length(length), _) if self.has_body => put_length(head, length),
            (Ending::Chunked, _) => put_line(head, b"transfer-encoding", b"chunked"),
            // An answer to HEAD says what GET would have got, where that is known.
            (_, Some(length @ 1..)) if self.terms.is_head && self.may_say_length && !self.says_length => {
                put_length(head, length)
            }
            _ => {}
        }
        if !self.says_date {
            put_date(head);
        }
        match (self.keeps, self.terms.version) {
            _ if self.is_upgrade => {}
            (false, _) => put_line(head, b"connection", b"close"),
            (true, Version::HTTP_10) => put_line(head, b"connection", b"keep-alive"),
            (true, _) => {}
        }
        head.extend_from_slice(b"\r\n");
    }
}

fn put_length(head: &mut BytesMut, length: u64) {
    put_line(head, b"content-length", length.to_string().as_bytes());
}

/// The version is the client's own: an HTTP/1.0 client need not understand more (RFC 9110 section 2.5 allows either).
fn status_line(head: &mut BytesMut, status: StatusCode, reason: Option<&ReasonPhrase>, version: Version) {
    head.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    head.extend_from_slice(status.as_str().as_bytes());
    head.extend_from_slice(b" ");
    match reason {
        Some(reason) => head.extend_from_slice(reason.as_bytes()),
        None => head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    head.extend_from_slice(b"\r\n");
}

thread_local! {
    /// The second that was written last, and how.
    static DATE: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// RFC 9110 section 6.6.1: who has a clock says when it answered, unless somebody before said so.
fn put_date(head: &mut BytesMut) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    DATE.with_borrow_mut(|(second, shown)| {
        if *second != now {
            let text = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(now));
            (*second, *shown) = (now, HeaderValue::try_from(text).expect("a date is visible ASCII"));
        }
        put_line(head, b"date", shown.as_bytes());
    });
}
