//! Reading a socket into a buffer that is no larger than what came.

use bytes::BytesMut;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// What is read at once to begin with, and at most.
pub(crate) const SMALLEST_READ: usize = 8 << 10;
pub(crate) const LARGEST_READ: usize = 64 << 10;

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
