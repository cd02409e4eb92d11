//! What is still to come of a body on an HTTP/1.1 connection, and taking it out of the bytes that came (RFC 9112 sections 6.3 and
//! 7.1). Never reads a socket.

use super::lines::{Framing, Lines, MOST_HEADERS, Unclear};
use bytes::{Buf, Bytes, BytesMut};
use http::header::HeaderMap;
use http_body::SizeHint;
use httparse::Status;

/// A chunk's size with its extensions, and all trailers.
const LONGEST_SIZE: usize = 1 << 10;
const LONGEST_TRAILERS: usize = 16 << 10;

/// What is still to come of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remaining {
    Length(u64),
    /// So many bytes of a chunk, then the end of its line.
    Chunk(u64),
    ChunkEnd,
    ChunkSize,
    Trailers,
    UntilClosed,
    Nothing,
}

/// What could be taken of a body.
#[derive(Debug)]
pub(crate) enum Taken {
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
    /// A chunk makes no sense; where the message ends cannot be known.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<Taken, Unclear> {
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
    fn skip(&mut self, read: &mut BytesMut) -> Result<(), Unclear> {
        if *self == Self::ChunkEnd && read.len() >= 2 {
            if !read.starts_with(b"\r\n") {
                return Err(Unclear("a chunk does not end where its size says"));
            }
            read.advance(2);
            *self = Self::ChunkSize;
        }
        if *self == Self::ChunkSize && !read.is_empty() {
            let Some((length, size)) = chunk_size(read)? else { return Ok(()) };
            read.advance(length);
            *self = if size == 0 { Self::Trailers } else { Self::Chunk(size) };
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

/// The line before a chunk: its length and the chunk's size, or `None` when it is not whole. Extensions are gone over (RFC 9112 section
/// 7.1.1), but a line ends with CR LF and in no other way, since another reader may take half of it for the end.
fn chunk_size(read: &[u8]) -> Result<Option<(usize, u64)>, Unclear> {
    let digits = read.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == 0 {
        return Err(Unclear("a chunk has no size"));
    }
    let (digits, rest) = read.split_at(digits);
    let line = rest.iter().take(LONGEST_SIZE).position(|byte| matches!(byte, b'\r' | b'\n'));
    let Some(line) = line else {
        let is_long = digits.len() + rest.len() > LONGEST_SIZE;
        return if is_long { Err(Unclear("a chunk's size is too long")) } else { Ok(None) };
    };
    let (extensions, end) = rest.split_at(line);
    if !matches!(extensions.trim_ascii_start(), [] | [b';', ..]) {
        return Err(Unclear("a chunk's size makes no sense"));
    }
    match end {
        [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => {}
        _ => return Err(Unclear("a chunk's size ends with no line")),
    }
    let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let size = size.ok_or(Unclear("a chunk's size makes no sense"))?;
    Ok(Some((digits.len() + line + 2, size)))
}

fn trailers(read: &mut BytesMut) -> Result<Option<HeaderMap>, Unclear> {
    let mut parsed = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let (length, lines) = match httparse::parse_headers(read, &mut parsed) {
        Ok(Status::Complete((length, parsed))) if length <= LONGEST_TRAILERS => {
            (length, Lines::find(read, parsed, &mut Framing::default())?)
        }
        Ok(Status::Partial) if read.len() <= LONGEST_TRAILERS => return Ok(None),
        Ok(_) => return Err(Unclear("the trailers are too large")),
        Err(_) => return Err(Unclear("the trailers make no sense")),
    };
    let text = read.split_to(length).freeze();
    lines.within(text).map(0).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The whole body, however it is cut into pieces; `None` when it is not over.
    fn body(
        mut remaining: Remaining,
        bytes: &[u8],
        cut: usize,
    ) -> Result<Option<(Vec<u8>, HeaderMap)>, Unclear> {
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
            "5;a\nb\r\nhello\r\n",
            "5;a\rb\r\nhello\r\n",
            "5 5\r\nhello\r\n",
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
            let _any = body(Remaining::ChunkSize, &bytes, cut).is_ok();
        }
    }
}
