//! The answer's half of an HTTP/1.1 connection: its head, and where its body ends (RFC 9112 section 6.3). What two parsers could
//! read differently is no answer. Works on bytes that came; never reads a socket.

use bytes::{Buf, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode, Version, response};
use http_body::SizeHint;
use httparse::Status;
use hyper::ext::ReasonPhrase;
use std::io;
use std::mem::MaybeUninit;

/// Lines of a head or of trailers.
const MOST_HEADERS: usize = 100;
/// A chunk's size with its extensions, and all trailers.
const LONGEST_SIZE: usize = 1 << 10;
const LONGEST_TRAILERS: usize = 16 << 10;

/// The head of an answer, and what it says of the connection.
#[derive(Debug)]
pub(super) struct Head {
    pub parts: response::Parts,
    pub body: Remaining,
    /// May the connection serve another request?
    pub keeps: bool,
}

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remaining {
    Length(u64),
    /// So many bytes of a chunk, then the end of its line.
    Chunk(u64),
    ChunkEnd,
    ChunkSize,
    Trailers,
    UntilClosed,
    Nothing,
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The head at the beginning of `read`, taken out of it. `None` when it is not whole yet.
///
/// # Errors
/// It is not HTTP/1, or could be read in two ways.
pub(super) fn head(read: &mut BytesMut, answers_head: bool) -> io::Result<Option<Head>> {
    let mut lines = [const { MaybeUninit::uninit() }; MOST_HEADERS];
    let mut found = [[[0_u16; 2]; 2]; MOST_HEADERS];
    let mut parsed = httparse::Response::new(&mut []);
    let result =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, read, &mut lines);
    let length = match result.map_err(io::Error::other)? {
        Status::Complete(length) if length <= crate::server::MAX_HEAD => length,
        Status::Partial if read.len() < crate::server::MAX_HEAD => return Ok(None),
        _ => return Err(broken("the answer's head is too large")),
    };
    let code = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or_else(|| broken("the answer has no status"))?;
    let reason = parsed.reason.filter(|reason| Some(*reason) != status.canonical_reason());
    let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let count = parsed.headers.len();
    let start = read.as_ptr() as usize;
    // Fits: the head is not longer than its bound.
    let span = |piece: &[u8]| {
        let at = if piece.is_empty() { 0 } else { (piece.as_ptr() as usize).wrapping_sub(start) };
        [at as u16, (at + piece.len()) as u16]
    };
    for (place, line) in found.iter_mut().zip(parsed.headers.iter()) {
        *place = [span(line.name.as_bytes()), span(line.value)];
    }
    let text = read.split_to(length).freeze();
    // With places for what the gateway adds.
    let mut headers = HeaderMap::with_capacity(count + 2);
    let mut framing =
        Framing { length: None, is_chunked: false, keeps: version == Version::HTTP_11, closes: false };
    for place in found.iter().take(count) {
        let [name, value] = place.map(|span| usize::from(span[0])..usize::from(span[1]));
        let name = HeaderName::from_bytes(&text[name]).map_err(io::Error::other)?;
        let value = HeaderValue::from_maybe_shared(text.slice(value)).map_err(io::Error::other)?;
        if framing.note(&name, value.as_bytes())? {
            headers.append(name, value);
        }
    }
    framing.check(version)?;
    let (mut parts, ()) = Response::new(()).into_parts();
    (parts.status, parts.version, parts.headers) = (status, version, headers);
    if let Some(reason) = reason {
        parts.extensions.insert(reason);
    }
    Ok(Some(framing.head(parts, answers_head)))
}

/// What the headers say of the body and of the connection.
struct Framing {
    length: Option<u64>,
    is_chunked: bool,
    keeps: bool,
    closes: bool,
}

impl Framing {
    /// Notes one line. False when it is done with: it says something about this connection and nothing more.
    fn note(&mut self, name: &HeaderName, value: &[u8]) -> io::Result<bool> {
        if *name == header::CONNECTION {
            return Ok(self.note_connection(value));
        } else if *name == header::CONTENT_LENGTH {
            let length = Some(length(value).ok_or_else(|| broken("a length that is none"))?);
            if self.length.is_some() && self.length != length {
                return Err(broken("an answer with two lengths"));
            }
            self.length = length;
        } else if *name == header::TRANSFER_ENCODING {
            if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(broken("the only transfer encoding here is chunked"));
            }
            self.is_chunked = true;
            return Ok(false);
        }
        Ok(true)
    }

    fn note_connection(&mut self, value: &[u8]) -> bool {
        for word in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            self.closes |= word.eq_ignore_ascii_case(b"close");
            self.keeps |= word.eq_ignore_ascii_case(b"keep-alive");
        }
        !matches!(value, b"keep-alive" | b"close")
    }

    fn check(&mut self, version: Version) -> io::Result<()> {
        self.keeps &= !self.closes;
        match (self.is_chunked, self.length, version) {
            (true, Some(_), _) => Err(broken("an answer with a length and an encoding")),
            (true, _, Version::HTTP_10) => Err(broken("HTTP/1.0 has no transfer encodings")),
            _ => Ok(()),
        }
    }

    fn head(self, parts: response::Parts, answers_head: bool) -> Head {
        let has_none = answers_head
            || parts.status.is_informational()
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = match (has_none, self.is_chunked, self.length) {
            (true, _, _) | (false, false, Some(0)) => Remaining::Nothing,
            (false, true, _) => Remaining::ChunkSize,
            (false, false, Some(length)) => Remaining::Length(length),
            (false, false, None) => Remaining::UntilClosed,
        };
        let keeps =
            self.keeps && body != Remaining::UntilClosed && parts.status != StatusCode::SWITCHING_PROTOCOLS;
        Head { parts, body, keeps }
    }
}

fn length(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// What could be taken of a body.
#[derive(Debug)]
pub(super) enum Taken {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Nothing, until more bytes come.
    Missing,
    End,
}

impl Remaining {
    /// Takes the next piece of a body out of `read`.
    ///
    /// # Errors
    /// A chunk makes no sense; where the answer ends cannot be known.
    pub fn take(&mut self, read: &mut BytesMut) -> io::Result<Taken> {
        loop {
            match *self {
                Self::Nothing => return Ok(Taken::End),
                _ if read.is_empty() => return Ok(Taken::Missing),
                Self::Length(left) => {
                    let (data, left) = data(read, left);
                    *self = if left == 0 { Self::Nothing } else { Self::Length(left) };
                    return Ok(Taken::Data(data));
                }
                Self::UntilClosed => return Ok(Taken::Data(read.split().freeze())),
                Self::Chunk(left) => {
                    let (data, left) = data(read, left);
                    *self = if left == 0 { Self::ChunkEnd } else { Self::Chunk(left) };
                    // What follows may be there already; then the end is known together with the last piece.
                    self.skip(read)?;
                    return Ok(Taken::Data(data));
                }
                Self::ChunkEnd | Self::ChunkSize => {
                    self.skip(read)?;
                    if matches!(self, Self::ChunkEnd | Self::ChunkSize) {
                        return Ok(Taken::Missing);
                    }
                }
                Self::Trailers => {
                    let Some(trailers) = trailers(read)? else { return Ok(Taken::Missing) };
                    *self = Self::Nothing;
                    return Ok(if trailers.is_empty() { Taken::End } else { Taken::Trailers(trailers) });
                }
            }
        }
    }

    /// Goes over what is between two pieces, as far as it came.
    fn skip(&mut self, read: &mut BytesMut) -> io::Result<()> {
        if *self == Self::ChunkEnd && read.len() >= 2 {
            if !read.starts_with(b"\r\n") {
                return Err(broken("a chunk does not end where its size says"));
            }
            read.advance(2);
            *self = Self::ChunkSize;
        }
        if *self == Self::ChunkSize && !read.is_empty() {
            if !read[0].is_ascii_hexdigit() {
                return Err(broken("a chunk has no size"));
            }
            match httparse::parse_chunk_size(read).map_err(|_| broken("a chunk's size makes no sense"))? {
                Status::Complete((length, size)) => {
                    read.advance(length);
                    *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
                }
                Status::Partial if read.len() > LONGEST_SIZE => {
                    return Err(broken("a chunk's size is too long"));
                }
                Status::Partial => {}
            }
        }
        if *self == Self::Trailers && read.starts_with(b"\r\n") {
            read.advance(2);
            *self = Self::Nothing;
        }
        Ok(())
    }

    /// How many bytes are wanted next, as far as that is known.
    pub fn wants(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }

    pub fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Length(left) => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }
}

fn data(read: &mut BytesMut, left: u64) -> (Bytes, u64) {
    let taken = left.min(read.len() as u64);
    (read.split_to(taken as usize).freeze(), left - taken)
}

fn trailers(read: &mut BytesMut) -> io::Result<Option<HeaderMap>> {
    let mut lines = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let (length, lines) = match httparse::parse_headers(read, &mut lines).map_err(io::Error::other)? {
        Status::Complete(found) => found,
        Status::Partial if read.len() > LONGEST_TRAILERS => return Err(broken("the trailers are too large")),
        Status::Partial => return Ok(None),
    };
    let mut trailers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(io::Error::other)?;
        trailers.append(name, HeaderValue::from_bytes(line.value).map_err(io::Error::other)?);
    }
    read.advance(length);
    Ok(Some(trailers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> io::Result<Option<Head>> {
        head(&mut BytesMut::from(text), false)
    }

    /// The whole body, however it is cut into pieces; `None` when it is not over.
    fn body(mut remaining: Remaining, bytes: &[u8], cut: usize) -> io::Result<Option<(Vec<u8>, HeaderMap)>> {
        let (mut read, mut body, mut trailing) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        for piece in bytes.chunks(cut.max(1)) {
            read.extend_from_slice(piece);
            loop {
                match remaining.take(&mut read)? {
                    Taken::Data(data) => body.extend_from_slice(&data),
                    Taken::Trailers(trailers) => trailing = trailers,
                    Taken::Missing => break,
                    Taken::End => return Ok(read.is_empty().then_some((body, trailing))),
                }
            }
        }
        Ok((remaining == Remaining::Nothing).then_some((body, trailing)))
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
        assert_eq!(to_head.parts.headers["content-length"], "5", "it is told all the same");
    }

    #[test]
    fn lines_keep_their_order_their_bytes_and_an_own_reason() {
        let text =
            "HTTP/1.1 404 Gone fishing\r\nA: 1\r\nEmpty:\r\na: \x7fé2 \r\nConnection: keep-alive\r\n\r\n";
        let head = head(&mut BytesMut::from(text), false);
        assert!(head.is_err(), "no control characters");
        let head = read(&text.replace('\x7f', "")).unwrap().unwrap();
        let values: Vec<_> = head.parts.headers.get_all("a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, ["1".as_bytes(), "é2".as_bytes()]);
        assert_eq!(head.parts.headers["empty"], "");
        assert!(!head.parts.headers.contains_key("connection"), "it is done with");
        assert_eq!(head.parts.extensions.get::<ReasonPhrase>().unwrap().as_bytes(), b"Gone fishing");
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

    #[test]
    fn chunks_that_make_no_sense_are_no_body() {
        for chunks in [
            "\r\n",
            "zz\r\n",
            "+5\r\nhello\r\n",
            "-1\r\n",
            "5\nhello\n",
            "5\r\nhelloX\r\n",
            " 5\r\nhello\r\n",
            "10000000000000000\r\n",
            ";x\r\n",
        ] {
            assert!(
                body(Remaining::ChunkSize, format!("{chunks}0\r\n\r\n").as_bytes(), 3).is_err(),
                "{chunks:?}"
            );
        }
        let long = format!("5;{}", "x".repeat(2000));
        assert!(body(Remaining::ChunkSize, long.as_bytes(), 100).is_err());
        let long = format!("0\r\nX: {}", "x".repeat(20_000));
        assert!(body(Remaining::ChunkSize, long.as_bytes(), 1000).is_err());
    }

    proptest! {
        #[test]
        fn where_chunks_are_cut_does_not_matter(cut in 1usize..40, sizes in proptest::collection::vec(1usize..50, 0..8), trails in any::<bool>()) {
            let (mut bytes, mut whole) = (Vec::new(), Vec::new());
            for (number, size) in sizes.iter().enumerate() {
                let data = vec![b'a' + number as u8; *size];
                bytes.extend_from_slice(format!("{size:X};e=1\r\n").as_bytes());
                bytes.extend_from_slice(&data);
                bytes.extend_from_slice(b"\r\n");
                whole.extend_from_slice(&data);
            }
            bytes.extend_from_slice(if trails { b"0\r\nX-Sum: 42\r\n\r\n" } else { b"0\r\n\r\n" });
            let (got, trailers) = body(Remaining::ChunkSize, &bytes, cut).unwrap().unwrap();
            prop_assert_eq!(got, whole);
            prop_assert_eq!(trailers.len(), usize::from(trails));
            for short in 1..bytes.len() {
                prop_assert!(body(Remaining::ChunkSize, &bytes[..short], cut).unwrap().is_none());
            }
        }

        #[test]
        fn no_bytes_break_it(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..20) {
            let _any = head(&mut BytesMut::from(&bytes[..]), false).is_ok();
            let _any = head(&mut BytesMut::from(&[&b"HTTP/1.1 200 OK\r\n"[..], &bytes].concat()[..]), false).is_ok();
            let _any = body(Remaining::ChunkSize, &bytes, cut).is_ok();
        }
    }
}
