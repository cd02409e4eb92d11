//! Opening and reading one regular file, never through a symbolic link and never waiting for a pipe's other end.

use super::list;
use crate::store::Body;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use rehome_part::{Error, ErrorKind, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ops::Range;
use std::sync::Arc;

/// Files up to this size are read in the call that opens them; larger ones in steps of it.
pub(super) const CHUNK_BYTES: u64 = 1 << 20;

pub(super) fn open(folder: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

pub(super) fn create(folder: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o666))
}

/// A file that is being read, and what it was when it was opened.
#[derive(Debug)]
pub(super) struct Reading {
    pub file: OwnedFd,
    pub key: String,
    pub tag: String,
}

impl Reading {
    /// Exactly the bytes of `range`.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let wanted = usize::try_from(range.end - range.start)
            .map_err(|_| Error::permanent(ErrorKind::Unsupported, "a range above the memory's size"))?;
        let mut buffer = vec![0u8; wanted];
        let mut filled = 0;
        while filled < wanted {
            match rustix::io::pread(&self.file, &mut buffer[filled..], range.start + filled as u64) {
                Ok(0) => return Err(self.changed()),
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(super::path::failure(&format!("read {}", self.key), error)),
            }
        }
        Ok(buffer.into())
    }

    /// # Errors
    /// `Changed` when the file is not what it was when it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        match rustix::fs::fstat(&self.file) {
            Ok(stat) if list::tag(&stat) == self.tag => Ok(()),
            _ => Err(self.changed()),
        }
    }

    fn changed(&self) -> Error {
        Error::temporary(ErrorKind::Changed, format!("{} changed while it was read", self.key))
    }

    /// The rest of a large file, step by step.
    pub fn into_body(self, range: Range<u64>) -> Body {
        let this = Arc::new(self);
        stream::unfold(Some(range), move |left| {
            let this = Arc::clone(&this);
            async move {
                let left = left.filter(|left| !left.is_empty())?;
                let step = left.start..left.end.min(left.start + CHUNK_BYTES);
                let rest = step.end..left.end;
                let last = rest.is_empty();
                let read = tokio::task::spawn_blocking(move || {
                    let bytes = this.read(step)?;
                    if last {
                        this.check_unchanged()?;
                    }
                    Ok(bytes)
                });
                let result = read.await.unwrap_or_else(|_| Err(Error::cancelled()));
                let next = if result.is_ok() { Some(rest) } else { None };
                Some((result, next))
            }
        })
        .boxed()
    }
}
