//! What an answer looks like on a client's HTTP/1.1 connection: its head, and how its body ends (RFC 9112 sections 4, 6 and 9).

use super::head::Terms;
use crate::body::ResponseBody;
use crate::http1::{Ending, Outgoing, put_line};
use bytes::BytesMut;
use http::{HeaderValue, StatusCode, Version, header, response};
use http_body::Body;
use hyper::ext::ReasonPhrase;
use std::cell::RefCell;
use std::time::{Duration, SystemTime};

/// Puts an answer into the buffers; nothing is written yet. False when the connection ends with it, which the client is told.
///
/// The length that is written is always the body's own: what is announced and what follows cannot differ.
pub(super) fn begin(
    outgoing: &mut Outgoing<ResponseBody>,
    parts: &response::Parts,
    body: ResponseBody,
    terms: Terms,
    mut keeps: bool,
) -> bool {
    let status = parts.status;
    let is_upgrade = status == StatusCode::SWITCHING_PROTOCOLS;
    let never_has_length = status.is_informational() || status == StatusCode::NO_CONTENT;
    let has_body = !(terms.is_head || never_has_length || status == StatusCode::NOT_MODIFIED);
    let exact = body.size_hint().exact();
    let ending = match (has_body, exact, terms.version) {
        (false, _, _) => Ending::Length(0),
        (true, Some(length), _) => Ending::Length(length),
        (true, None, Version::HTTP_11) => Ending::Chunked,
        (true, None, _) => Ending::Close,
    };
    keeps &= ending != Ending::Close;
    let is_empty = !has_body || body.is_end_stream();
    let head = outgoing.begin(ending, (!is_empty).then_some(body));
    status_line(head, parts, terms.version);
    let (mut says_length, mut says_date) = (false, false);
    for (name, value) in &parts.headers {
        match *name {
            header::CONTENT_LENGTH if has_body || never_has_length => continue,
            header::CONTENT_LENGTH => says_length = true,
            header::TRANSFER_ENCODING => continue,
            // What the gateway itself says of this connection; an upgrade is named.
            header::CONNECTION if !is_upgrade => {
                keeps &= value != "close";
                continue;
            }
            header::DATE => says_date = true,
            _ => {}
        }
        put_line(head, name.as_str(), value.as_bytes());
    }
    match (ending, exact) {
        (Ending::Length(length), _) if has_body => put_line(head, "content-length", length.to_string().as_bytes()),
        // An answer to HEAD says what GET would have got, where that is known.
        (_, Some(length @ 1..)) if terms.is_head && !never_has_length && !says_length => {
            put_line(head, "content-length", length.to_string().as_bytes())
        }
        (Ending::Chunked, _) => put_line(head, "transfer-encoding", b"chunked"),
        _ => {}
    }
    if !says_date {
        put_date(head);
    }
    match (keeps, terms.version) {
        _ if is_upgrade => {}
        (false, _) => put_line(head, "connection", b"close"),
        (true, Version::HTTP_10) => put_line(head, "connection", b"keep-alive"),
        (true, _) => {}
    }
    head.extend_from_slice(b"\r\n");
    if ending == Ending::Chunked && terms.takes_trailers {
        outgoing.announce_trailers(&parts.headers);
    }
    keeps
}

/// The version is the client's own: an HTTP/1.0 client need not understand more (RFC 9110 section 2.5 allows either).
fn status_line(head: &mut BytesMut, parts: &response::Parts, version: Version) {
    head.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    head.extend_from_slice(parts.status.as_str().as_bytes());
    head.extend_from_slice(b" ");
    match parts.extensions.get::<ReasonPhrase>() {
        Some(reason) => head.extend_from_slice(reason.as_bytes()),
        None => head.extend_from_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes()),
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
        put_line(head, "date", shown.as_bytes());
    });
}
