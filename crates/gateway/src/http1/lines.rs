//! The lines of a head in the bytes they came in, a header map of them where one is wanted, and what they say of the body and of the
//! connection (RFC 9112 sections 6 and 9.3). What two parsers could read differently is refused.

use bytes::Bytes;
use http::Version;
use http::header::{HeaderMap, HeaderName, HeaderValue};
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

/// Headers that mean something to one connection or to the gateway, and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Connection,
    ContentLength,
    ContentType,
    Date,
    Expect,
    KeepAlive,
    ProxyConnection,
    RequestId,
    SetCookie,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    Via,
    Other,
}

impl Field {
    /// By its name, in any case.
    pub fn of(name: &[u8]) -> Self {
        // The length alone rules out nearly all.
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Te)],
            3 => &[("via", Self::Via)],
            4 => &[("date", Self::Date)],
            6 => &[("expect", Self::Expect)],
            7 => &[("trailer", Self::Trailer), ("upgrade", Self::Upgrade)],
            10 => &[
                ("connection", Self::Connection),
                ("keep-alive", Self::KeepAlive),
                ("set-cookie", Self::SetCookie),
            ],
            12 => &[("content-type", Self::ContentType), ("x-request-id", Self::RequestId)],
            14 => &[("content-length", Self::ContentLength)],
            16 => &[("proxy-connection", Self::ProxyConnection)],
            17 => &[("transfer-encoding", Self::TransferEncoding)],
            _ => &[],
        };
        let begins =
            |known: &str| known.as_bytes().first() == name.first().map(u8::to_ascii_lowercase).as_ref();
        let mut found = candidates
            .iter()
            .filter(|(known, _)| begins(known) && name.eq_ignore_ascii_case(known.as_bytes()));
        found.next().map_or(Self::Other, |(_, field)| *field)
    }
}

/// Start and end; they fit, since a head is not longer than [`super::MAX_HEAD`].
type Span = [u16; 2];

/// The lines of a head in the bytes they came in.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    text: Bytes,
    lines: Vec<(Field, Span, Span)>,
    seen: u16,
}

impl Lines {
    /// All lines that the parser found in `text`, except those that concern this connection only and are noted in `framing`. The
    /// bytes themselves follow, see [`Self::within`].
    ///
    /// # Errors
    /// Where the body ends is not said in one way.
    pub fn find(
        text: &[u8],
        parsed: &[httparse::Header<'_>],
        framing: &mut Framing,
    ) -> Result<Self, Unclear> {
        let start = text.as_ptr() as usize;
        let span = |piece: &[u8]| {
            let at = if piece.is_empty() { 0 } else { (piece.as_ptr() as usize).wrapping_sub(start) };
            [at as u16, (at + piece.len()) as u16]
        };
        let (mut lines, mut seen) = (Vec::with_capacity(parsed.len()), 0);
        for line in parsed {
            let name = line.name.as_bytes();
            let field = Field::of(name);
            if framing.note(field, line.value)? {
                lines.push((field, span(name), span(line.value)));
                seen |= 1 << field as u16;
            }
        }
        Ok(Self { text: Bytes::new(), lines, seen })
    }

    /// `text` holds the bytes where the lines were found, from the same place on.
    pub fn within(mut self, text: Bytes) -> Self {
        self.text = text;
        self
    }

    pub fn has(&self, field: Field) -> bool {
        self.seen & 1 << field as u16 != 0
    }

    pub fn iter(&self) -> impl Iterator<Item = (Field, &[u8], &[u8])> {
        let piece = |[start, end]: Span| &self.text[usize::from(start)..usize::from(end)];
        self.lines.iter().map(move |(field, name, value)| (*field, piece(*name), piece(*value)))
    }

    /// The first value of a header.
    pub fn value(&self, field: Field) -> Option<&[u8]> {
        if !self.has(field) {
            return None;
        }
        self.iter().find(|line| line.0 == field).map(|line| line.2)
    }

    /// The same lines to be looked up by name, sharing their bytes. `room`: for so many more.
    pub fn map(&self, room: usize) -> Result<HeaderMap, Unclear> {
        let mut headers = HeaderMap::with_capacity(self.lines.len() + room);
        for (_, name, value) in &self.lines {
            let [name, value] = [name, value].map(|[start, end]| usize::from(*start)..usize::from(*end));
            let name =
                HeaderName::from_bytes(&self.text[name]).map_err(|_| Unclear("a header has no name"))?;
            let value = HeaderValue::from_maybe_shared(self.text.slice(value));
            headers.append(name, value.map_err(|_| Unclear("a header's value is not valid"))?);
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
    fn note(&mut self, field: Field, value: &[u8]) -> Result<bool, Unclear> {
        match field {
            Field::Connection => return Ok(self.note_connection(value)),
            Field::ContentLength => {
                let length = Some(length(value).ok_or(Unclear("a length that is none"))?);
                if self.length.is_some() && self.length != length {
                    return Err(Unclear("a message with two lengths"));
                }
                (self.has_one_length, self.length) = (self.length.is_none(), length);
            }
            Field::TransferEncoding => {
                if self.is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Unclear("the only transfer encoding here is chunked"));
                }
                self.is_chunked = true;
                return Ok(false);
            }
            Field::Expect => self.expects = value.eq_ignore_ascii_case(b"100-continue"),
            Field::Te => {
                self.takes_trailers |= words(value).any(|word| word.eq_ignore_ascii_case(b"trailers"))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_known_by_its_name_in_any_case() {
        for (name, field) in [
            ("connection", Field::Connection),
            ("content-length", Field::ContentLength),
            ("content-type", Field::ContentType),
            ("date", Field::Date),
            ("expect", Field::Expect),
            ("keep-alive", Field::KeepAlive),
            ("proxy-connection", Field::ProxyConnection),
            ("x-request-id", Field::RequestId),
            ("set-cookie", Field::SetCookie),
            ("te", Field::Te),
            ("trailer", Field::Trailer),
            ("transfer-encoding", Field::TransferEncoding),
            ("upgrade", Field::Upgrade),
            ("via", Field::Via),
        ] {
            assert_eq!(Field::of(name.as_bytes()), field);
            assert_eq!(Field::of(name.to_uppercase().as_bytes()), field);
            assert_eq!(Field::of(format!("{name}s").as_bytes()), Field::Other);
        }
        for other in ["", "x", "host", "accept", "cookie", "location", "set-cookiE2", "authorization"] {
            assert_eq!(Field::of(other.as_bytes()), Field::Other);
        }
    }
}
