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
