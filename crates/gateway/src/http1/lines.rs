//! The lines of a head: out of the parser into a header map that shares the bytes they came in, and what they say of the body and
//! of the connection (RFC 9112 sections 6 and 9.3). What two parsers could read differently is refused.

use bytes::Bytes;
use http::Version;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::io;

/// Lines of a head or of trailers.
pub(crate) const MOST_HEADERS: usize = 100;

/// Why bytes are no HTTP/1 message, or could be read as two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unclear(pub &'static str);

impl From<Unclear> for io::Error {
    fn from(unclear: Unclear) -> Self {
        Self::new(io::ErrorKind::InvalidData, unclear)
    }
}

/// Where names and values are in the bytes of a head: what the parser found, without its borrow of them.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Start and end of name and value; they fit, since a head is not longer than [`super::MAX_HEAD`].
    spans: [[[u16; 2]; 2]; MOST_HEADERS],
    count: usize,
}

impl Lines {
    /// `text` is what the parser read.
    pub fn find(text: &[u8], parsed: &[httparse::Header<'_>]) -> Self {
        let start = text.as_ptr() as usize;
        let span = |piece: &[u8]| {
            let at = if piece.is_empty() { 0 } else { (piece.as_ptr() as usize).wrapping_sub(start) };
            [at as u16, (at + piece.len()) as u16]
        };
        let mut lines = Self { spans: [[[0; 2]; 2]; MOST_HEADERS], count: parsed.len().min(MOST_HEADERS) };
        for (place, line) in lines.spans.iter_mut().zip(parsed) {
            *place = [span(line.name.as_bytes()), span(line.value)];
        }
        lines
    }

    /// All lines as they came, except those that concern this connection only and are noted in `framing`. `room`: for so many more.
    pub fn collect(&self, text: &Bytes, room: usize, framing: &mut Framing) -> Result<HeaderMap, Unclear> {
        let mut headers = HeaderMap::with_capacity(self.count + room);
        for spans in self.spans.iter().take(self.count) {
            let [name, value] = spans.map(|[start, end]| usize::from(start)..usize::from(end));
            let name = HeaderName::from_bytes(&text[name]).map_err(|_| Unclear("a header has no name"))?;
            let value = HeaderValue::from_maybe_shared(text.slice(value));
            let value = value.map_err(|_| Unclear("a header's value is not valid"))?;
            if framing.note(&name, value.as_bytes())? {
                headers.append(name, value);
            }
        }
        Ok(headers)
    }
}

/// What the lines of a head say of the body and of the connection.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    pub length: Option<u64>,
    pub has_one_length: bool,
    pub is_chunked: bool,
    /// Waits for a 100 before its body.
    pub expects: bool,
    pub takes_trailers: bool,
    keeps: bool,
    closes: bool,
}

impl Framing {
    /// Notes one line. False when it is done with: it says something about this connection and nothing more.
    fn note(&mut self, name: &HeaderName, value: &[u8]) -> Result<bool, Unclear> {
        match *name {
            header::CONNECTION => return Ok(self.note_connection(value)),
            header::CONTENT_LENGTH => {
                let length = Some(length(value).ok_or(Unclear("a length that is none"))?);
                if self.length.is_some() && self.length != length {
                    return Err(Unclear("a message with two lengths"));
                }
                (self.has_one_length, self.length) = (self.length.is_none(), length);
            }
            header::TRANSFER_ENCODING => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Unclear("the only transfer encoding here is chunked"));
                }
                self.is_chunked = true;
                return Ok(false);
            }
            header::EXPECT => self.expects = value.eq_ignore_ascii_case(b"100-continue"),
            header::TE => self.takes_trailers |= words(value).any(|word| word.eq_ignore_ascii_case(b"trailers")),
            _ => {}
        }
        Ok(true)
    }

    /// What nearly everybody says names no header; anything else stays, since it may.
    fn note_connection(&mut self, value: &[u8]) -> bool {
        match value {
            b"keep-alive" => self.keeps = true,
            b"close" => self.closes = true,
            _ => {
                for word in words(value) {
                    self.closes |= word.eq_ignore_ascii_case(b"close");
                    self.keeps |= word.eq_ignore_ascii_case(b"keep-alive");
                }
                return true;
            }
        }
        false
    }

    /// May the connection serve another request?
    pub fn keeps(&self, version: Version) -> bool {
        !self.closes && (self.keeps || version == Version::HTTP_11)
    }

    /// # Errors
    /// Where the body ends is said twice, or in a way that its version does not know.
    pub fn check(&self, version: Version) -> Result<(), Unclear> {
        match (self.is_chunked, self.length, version) {
            (true, Some(_), _) => Err(Unclear("a message with a length and an encoding")),
            (true, _, Version::HTTP_10) => Err(Unclear("HTTP/1.0 has no transfer encodings")),
            _ => Ok(()),
        }
    }
}

/// What stands between commas.
fn words(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn length(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}
