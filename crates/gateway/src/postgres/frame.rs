//! PostgreSQL's messages (protocol 3.0) as they lie in a buffer: where each ends, the few that are looked into, and those that the front
//! door writes itself. Never reads a socket.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io;

/// A kind and a length.
pub(super) const HEAD: usize = 5;

/// A message that begins in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: u8,
    /// Of all of it, in bytes.
    pub length: usize,
}

pub(super) fn wrong(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The message at the beginning of a buffer; `None` when its head is not all there.
///
/// # Errors
/// A length that no message has.
pub(super) fn head(buffer: &[u8]) -> io::Result<Option<Head>> {
    let Some(&[kind, a, b, c, d]) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    // The length counts itself, and not the kind.
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if !(4..=i32::MAX as usize).contains(&length) {
        return Err(wrong("a message of an impossible length"));
    }
    Ok(Some(Head { kind, length: length + 1 }))
}

/// Takes the first message out of a buffer if all of it is there: its kind and its body.
///
/// # Errors
/// As [`head`]; also when it is longer than `most`.
pub(super) fn take(buffer: &mut BytesMut, most: usize) -> io::Result<Option<(u8, Bytes)>> {
    let Some(head) = head(buffer)? else { return Ok(None) };
    if head.length > most {
        return Err(wrong("a message is longer than it may be here"));
    }
    if buffer.len() < head.length {
        return Ok(None);
    }
    let mut message = buffer.split_to(head.length).freeze();
    message.advance(HEAD);
    Ok(Some((head.kind, message)))
}

/// Takes a text that ends with a zero.
///
/// # Errors
/// There is no zero.
pub(super) fn text(body: &mut Bytes) -> io::Result<Bytes> {
    let end = body.iter().position(|byte| *byte == 0).ok_or_else(|| wrong("a text has no end"))?;
    let text = body.split_to(end);
    body.advance(1);
    Ok(text)
}

/// Takes a whole number of two or four bytes.
///
/// # Errors
/// The body is at its end.
pub(super) fn short(body: &mut Bytes) -> io::Result<u16> {
    if body.len() < 2 { Err(wrong("a message is too short")) } else { Ok(body.get_u16()) }
}

/// See [`short`].
///
/// # Errors
/// The body is at its end.
pub(super) fn long(body: &mut Bytes) -> io::Result<u32> {
    if body.len() < 4 { Err(wrong("a message is too short")) } else { Ok(body.get_u32()) }
}

/// The columns of a `DataRow`; `None` is null.
///
/// # Errors
/// It is none.
pub(super) fn columns(mut body: Bytes) -> io::Result<Vec<Option<Bytes>>> {
    let count = short(&mut body)?;
    let column = |_| match long(&mut body)? {
        u32::MAX => Ok(None),
        length if length as usize <= body.len() => Ok(Some(body.split_to(length as usize))),
        _ => Err(wrong("a column is longer than its row")),
    };
    (0..count).map(column).collect()
}

/// One field of an `ErrorResponse`, as text for logs.
pub(super) fn field(mut body: Bytes, wanted: u8) -> Option<String> {
    while body.first().is_some_and(|kind| *kind != 0) {
        let kind = body.get_u8();
        let value = text(&mut body).ok()?;
        if kind == wanted {
            return Some(String::from_utf8_lossy(&value).into_owned());
        }
    }
    None
}

/// Writes a message.
pub(super) fn put(out: &mut BytesMut, kind: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

pub(super) fn put_text(out: &mut BytesMut, text: &[u8]) {
    out.put_slice(text);
    out.put_u8(0);
}

/// An `ErrorResponse` that ends the session, with a hint what to do if there is something.
pub(super) fn fatal(code: &str, text: &str, hint: &str) -> BytesMut {
    let mut out = BytesMut::new();
    put(&mut out, b'E', |out| {
        for (kind, value) in [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', code), (b'M', text), (b'H', hint)] {
            if !value.is_empty() {
                out.put_u8(kind);
                put_text(out, value.as_bytes());
            }
        }
        out.put_u8(0);
    });
    out
}

/// Parses a statement of `name` (empty: the unnamed one) with the numbers of its parameters' types.
pub(super) fn put_parse(out: &mut BytesMut, name: &[u8], statement: &[u8], types: &[u32]) {
    put(out, b'P', |out| {
        put_text(out, name);
        put_text(out, statement);
        out.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
        types.iter().for_each(|number| out.put_u32(*number));
    });
}

/// Binds a statement to the unnamed portal with values as text, and runs it.
pub(super) fn put_run(out: &mut BytesMut, name: &[u8], values: &[&[u8]]) {
    put(out, b'B', |out| {
        put_text(out, b"");
        put_text(out, name);
        out.put_u16(0);
        out.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
        for value in values {
            out.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
            out.put_slice(value);
        }
        out.put_u16(0);
    });
    put(out, b'E', |out| {
        put_text(out, b"");
        out.put_u32(0);
    });
}

pub(super) fn put_sync(out: &mut BytesMut) {
    put(out, b'S', |_| {});
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_all_of_it_is_there() {
        let mut whole = BytesMut::new();
        put(&mut whole, b'Q', |out| put_text(out, b"SELECT 1"));
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(take(&mut part, 100).unwrap(), None);
            assert_eq!(part.len(), cut, "nothing was taken");
        }
        let (kind, mut body) = take(&mut whole, 100).unwrap().unwrap();
        assert_eq!((kind, &text(&mut body).unwrap()[..], body.len()), (b'Q', &b"SELECT 1"[..], 0));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(head(&[b'Q', 0, 0, 0, 3]).is_err());
        assert!(head(&[b'Q', 0xff, 0xff, 0xff, 0xff]).is_err());
        let mut long = BytesMut::from(&[b'Q', 0, 1, 0, 0][..]);
        assert!(take(&mut long, 100).is_err(), "before it is all there");
        assert!(text(&mut Bytes::from_static(b"no end")).is_err());
        assert!(columns(Bytes::from_static(&[0, 1, 0, 0, 0, 9, 1])).is_err());
        assert!(columns(Bytes::from_static(&[0, 2, 0xff, 0xff, 0xff, 0xff])).is_err());
    }

    #[test]
    fn an_error_says_what_it_is() {
        let mut out = fatal("57P01", "moved", "");
        let (kind, body) = take(&mut out, 1_000).unwrap().unwrap();
        assert_eq!(kind, b'E');
        assert_eq!(field(body.clone(), b'C').as_deref(), Some("57P01"));
        assert_eq!(field(body.clone(), b'M').as_deref(), Some("moved"));
        assert_eq!(field(body, b'H'), None);
    }
}
