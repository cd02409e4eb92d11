//! The head of a client's request: what it asks, where its body ends, and what becomes of the connection (RFC 9112 sections 3, 6 and
//! 9). Works on bytes that came; never reads a socket.

use crate::http1::{Framing, Lines, MAX_HEAD, MOST_HEADERS, Remaining, Unclear};
use bytes::{Buf, BytesMut};
use http::{Method, Request, StatusCode, Uri, Version, request};
use httparse::Status;
use std::mem::MaybeUninit;

/// A request's head, and what it says besides.
#[derive(Debug)]
pub(super) struct Head {
    pub parts: request::Parts,
    pub body: Remaining,
    pub terms: Terms,
}

/// What an answer must know of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Terms {
    pub version: Version,
    /// Asked with HEAD: the answer has no body, whatever its head says.
    pub is_head: bool,
    /// May the connection serve another request?
    pub keeps: bool,
    /// Waits for a 100 before it sends the body.
    pub expects: bool,
    pub takes_trailers: bool,
}

/// Why there is no request, and the status that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub text: &'static str,
}

impl From<Unclear> for Refusal {
    fn from(Unclear(text): Unclear) -> Self {
        Self { status: StatusCode::BAD_REQUEST, text }
    }
}

const TOO_LARGE: Refusal =
    Refusal { status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text: "the request's head is too large" };

fn refusal(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => TOO_LARGE,
        httparse::Error::Version => Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            text: "HTTP/1.1 and 1.0 are spoken here",
        },
        _ => Unclear("the request is no HTTP/1").into(),
    }
}

/// The head at the beginning of `read`, taken out of it. `None` when it is not whole yet.
///
/// # Errors
/// It is not HTTP/1, too large, or could be read in two ways; the connection cannot go on.
pub(super) fn head(read: &mut BytesMut) -> Result<Option<Box<Head>>, Refusal> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(read, &mut lines).map_err(refusal)? {
        Status::Complete(length) if length <= MAX_HEAD => length,
        Status::Partial if read.len() < MAX_HEAD => return Ok(None),
        _ => return Err(TOO_LARGE),
    };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes());
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let target = parsed.path.unwrap_or_default();
    let start = (target.as_ptr() as usize).wrapping_sub(read.as_ptr() as usize);
    let target = start..start + target.len();
    let mut framing = Framing::default();
    let lines = Lines::find(read, parsed.headers, &mut framing)?;
    let text = read.split_to(length).freeze();
    let headers = lines.within(text.clone()).map(0)?;
    framing.check(version)?;
    if framing.length.is_some() && !framing.has_one_length {
        return Err(Unclear("a request has one length").into());
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method.map_err(|_| Unclear("the method is not valid"))?;
    parts.uri = Uri::from_maybe_shared(text.slice(target)).map_err(|_| Unclear("the target is not valid"))?;
    (parts.version, parts.headers) = (version, headers);
    let body = match (framing.is_chunked, framing.length) {
        (true, _) => Remaining::ChunkSize,
        (false, None | Some(0)) => Remaining::Nothing,
        (false, Some(length)) => Remaining::Length(length),
    };
    let terms = Terms {
        version,
        is_head: parts.method == Method::HEAD,
        keeps: framing.keeps(version),
        expects: version == Version::HTTP_11 && body != Remaining::Nothing && framing.expects,
        takes_trailers: framing.takes_trailers,
    };
    Ok(Some(Box::new(Head { parts, body, terms })))
}

/// Goes over empty lines before a request (RFC 9112 section 2.2).
pub(super) fn skip_empty_lines(read: &mut BytesMut) {
    loop {
        let length = match &read[..] {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] => 1,
            _ => return,
        };
        read.advance(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Option<Box<Head>>, Refusal> {
        head(&mut BytesMut::from(text))
    }

    fn with(lines: &str) -> Result<Option<Box<Head>>, Refusal> {
        read(&format!("POST /path?q=1 HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"))
    }

    #[test]
    fn where_a_request_ends_is_said_in_one_way() {
        for (lines, remaining, keeps) in [
            ("X: y", Remaining::Nothing, true),
            ("Content-Length: 5", Remaining::Length(5), true),
            ("Content-Length: 0", Remaining::Nothing, true),
            ("Transfer-Encoding: Chunked", Remaining::ChunkSize, true),
            ("Content-Length: 5\r\nConnection: x-y, Close", Remaining::Length(5), false),
        ] {
            let head = with(lines).unwrap().unwrap();
            assert_eq!((head.body, head.terms.keeps), (remaining, keeps), "{lines}");
            assert_eq!(head.parts.uri, "/path?q=1");
        }
        for lines in [
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length:",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Folded: a\r\n b",
            "Space : before",
        ] {
            assert_eq!(with(lines).unwrap_err().status, 400, "{lines}");
        }
        assert_eq!(read("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap_err().status, 400);
        assert_eq!(read("GET / HTTP/2.0\r\n\r\n").unwrap_err().status, 505);
        assert!(!read("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().terms.keeps);
        assert!(read("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().unwrap().terms.keeps);
    }

    #[test]
    fn a_continue_is_for_bodies_of_those_who_know_it() {
        let wants = "Expect: 100-Continue\r\n";
        assert!(with(&format!("{wants}Content-Length: 5")).unwrap().unwrap().terms.expects);
        assert!(!with(&format!("{wants}Content-Length: 0")).unwrap().unwrap().terms.expects);
        let old = format!("POST / HTTP/1.0\r\n{wants}Content-Length: 5\r\n\r\n");
        assert!(!read(&old).unwrap().unwrap().terms.expects);
    }

    #[test]
    fn a_head_has_a_bound() {
        let line = format!("X: {}\r\n", "y".repeat(1000));
        let long = format!("GET / HTTP/1.1\r\n{}", line.repeat(70));
        assert_eq!(read(&long).unwrap_err(), TOO_LARGE);
        assert_eq!(read(&format!("{long}\r\n")).unwrap_err(), TOO_LARGE);
        assert_eq!(with(&"X: y\r\n".repeat(101)).unwrap_err(), TOO_LARGE);
        let most = format!("GET / HTTP/1.1\r\n{}", line.repeat(60));
        assert!(read(&most).unwrap().is_none() && read(&format!("{most}\r\n")).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _any = head(&mut BytesMut::from(&bytes[..])).is_ok();
            let _any = head(&mut BytesMut::from(&[&b"GET / HTTP/1.1\r\n"[..], &bytes].concat()[..])).is_ok();
        }
    }
}
