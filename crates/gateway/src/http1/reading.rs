//! Reading a socket into a buffer that is no larger than what came.

use super::Remaining;
use bytes::BytesMut;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read at once to begin with, and at most.
pub(crate) const SMALLEST_READ: usize = 8 << 10;
const LARGEST_READ: usize = 64 << 10;

/// Reads more of a message of which so much is still to come: a large body in large pieces, and one without a length in pieces that
/// grow with what comes. `next_read` is what is tried next; it begins with [`SMALLEST_READ`] for every message.
pub(crate) fn poll_fill(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    read: &mut BytesMut,
    remaining: Remaining,
    next_read: &mut usize,
) -> Poll<io::Result<usize>> {
    let wanted = match remaining.wants() {
        Some(left) => left.min(LARGEST_READ as u64) as usize,
        None => *next_read,
    };
    let came = ready!(poll_read_some(stream, cx, read, wanted))?;
    if came >= *next_read {
        *next_read = (*next_read * 2).min(LARGEST_READ);
    }
    Poll::Ready(Ok(came))
}

/// Appends what there is to `read`, about `wanted` bytes at most; 0 at the end. Where little is wanted, nothing is allocated before
/// something came: whoever waits for a peer holds no buffer meanwhile.
pub(crate) fn poll_read_some(
    stream: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    read: &mut BytesMut,
    wanted: usize,
) -> Poll<io::Result<usize>> {
    if wanted > SMALLEST_READ {
        read.reserve(wanted);
        return poll_read_buf(Pin::new(stream), cx, read);
    }
    let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SMALLEST_READ];
    let mut came = ReadBuf::uninit(&mut scratch);
    ready!(Pin::new(stream).poll_read(cx, &mut came))?;
    read.extend_from_slice(came.filled());
    Poll::Ready(Ok(came.filled().len()))
}
