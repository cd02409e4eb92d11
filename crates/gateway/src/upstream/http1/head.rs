//! The head of an answer: where its body ends, and whether its connection may serve again (RFC 9112 section 6.3). Works on bytes that
//! came; never reads a socket.

use crate::answer::{AnswerHead, Headers};
use crate::http1::{Framing, Lines, MAX_HEAD, MOST_HEADERS, Remaining, Unclear};
use bytes::BytesMut;
use http::{StatusCode, Version};
use httparse::Status;
use hyper::ext::ReasonPhrase;
use std::mem::MaybeUninit;

/// The head of an answer, and what it says of the connection.
#[derive(Debug)]
pub(super) struct Head {
    pub answer: AnswerHead,
    pub body: Remaining,
    /// May the connection serve another request?
    pub keeps: bool,
}

/// The head at the beginning of `read`, taken out of it. `None` when it is not whole yet.
///
/// # Errors
/// It is not HTTP/1, or could be read in two ways.
pub(super) fn head(read: &mut BytesMut, answers_head: bool) -> Result<Option<Head>, Unclear> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let result =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, read, &mut lines);
    let length = match result.map_err(|_| Unclear("the answer's head is no HTTP/1"))? {
        Status::Complete(length) if length <= MAX_HEAD => length,
        Status::Partial if read.len() < MAX_HEAD => return Ok(None),
        _ => return Err(Unclear("the answer's head is too large")),
    };
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or(Unclear("the answer has no status"))?;
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let mut framing = Framing::default();
    let lines = Lines::find(read, parsed.headers, &mut framing)?;
    framing.check(version)?;
    let text = read.split_to(length).freeze();
    let body = match (never_has_body(status) || answers_head, framing.is_chunked, framing.length) {
        (true, _, _) | (false, false, Some(0)) => Remaining::Nothing,
        (false, true, _) => Remaining::ChunkSize,
        (false, false, Some(length)) => Remaining::Length(length),
        (false, false, None) => Remaining::UntilClosed,
    };
    let keeps =
        framing.keeps(version) && body != Remaining::UntilClosed && status != StatusCode::SWITCHING_PROTOCOLS;
    let answer = AnswerHead { status, version, reason, headers: Headers::Lines(lines.within(text)) };
    Ok(Some(Head { answer, body, keeps }))
}

fn never_has_body(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<Head>, Unclear> {
        head(&mut BytesMut::from(text), false)
    }

    #[test]
    fn where_an_answer_ends_is_said_in_one_way() {
        for (lines, remaining, keeps) in [
            ("Content-Length: 5", Remaining::Length(5), true),
            ("Content-Length: 5\r\ncontent-length: 5", Remaining::Length(5), true),
            ("Content-Length: 0", Remaining::Nothing, true),
            ("Transfer-Encoding: Chunked", Remaining::ChunkSize, true),
            ("X: y", Remaining::UntilClosed, false),
            ("Content-Length: 5\r\nConnection: Close", Remaining::Length(5), false),
            ("Content-Length: 5\r\nConnection: keep-alive, close", Remaining::Length(5), false),
        ] {
            let head = read(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n")).unwrap().unwrap();
            assert_eq!((head.body, head.keeps), (remaining, keeps), "{lines}");
        }
        for lines in [
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length:",
            "Content-Length: 18446744073709551616",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: identity",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Folded: a\r\n b",
            "No colon",
            "Space : before",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n\r\n")).is_err(), "{lines}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        let old = read("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n");
        assert!(old.unwrap().unwrap().keeps);
        assert!(!read("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n").unwrap().unwrap().keeps);
    }

    #[test]
    fn some_answers_never_have_a_body() {
        for status in ["204 No Content", "304 Not Modified", "103 Early Hints"] {
            let head = read(&format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.body, Remaining::Nothing, "{status}");
        }
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        let to_head = head(&mut BytesMut::from(text), true).unwrap().unwrap();
        assert_eq!((to_head.body, to_head.keeps), (Remaining::Nothing, true));
        assert_eq!(
            to_head.answer.into_parts().unwrap().headers["content-length"],
            "5",
            "it is told all the same"
        );
    }

    #[test]
    fn lines_keep_their_order_their_bytes_and_an_own_reason() {
        let text =
            "HTTP/1.1 404 Gone fishing\r\nA: 1\r\nEmpty:\r\na: \x7fé2 \r\nConnection: keep-alive\r\n\r\n";
        let head = head(&mut BytesMut::from(text), false);
        assert!(head.is_err(), "no control characters");
        let head = read(&text.replace('\x7f', "")).unwrap().unwrap();
        let parts = head.answer.into_parts().unwrap();
        let values: Vec<_> = parts.headers.get_all("a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, ["1".as_bytes(), "é2".as_bytes()]);
        assert_eq!(parts.headers["empty"], "");
        assert!(!parts.headers.contains_key("connection"), "it is done with");
        assert_eq!(parts.extensions.get::<ReasonPhrase>().unwrap().as_bytes(), b"Gone fishing");
    }

    #[test]
    fn a_head_has_a_bound() {
        let line = format!("X: {}\r\n", "y".repeat(1000));
        let long = format!("HTTP/1.1 200 OK\r\n{}", line.repeat(70));
        assert!(read(&long).is_err() && read(&format!("{long}\r\n")).is_err());
        assert!(read(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(101))).is_err());
        let most = format!("HTTP/1.1 200 OK\r\n{}", line.repeat(60));
        assert!(read(&most).unwrap().is_none() && read(&format!("{most}\r\n")).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = head(&mut BytesMut::from(&bytes[..]), false).is_ok();
            let _any = head(&mut BytesMut::from(&[&b"HTTP/1.1 200 OK\r\n"[..], &bytes].concat()[..]), false).is_ok();
        }
    }
}
