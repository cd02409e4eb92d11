//! The bytes of objects: one file per piece, named by a number, never changed after it was written. A piece that no object
//! holds when its last reader lets go is removed; what a kill left behind is removed at the next start.
//!
//! Files are written and read in place, without handing each chunk to another thread: the chunks are small, mostly in the
//! page cache, and this process does nothing else.

use bytes::Bytes;
use s3s::stream::{ByteStream, RemainingLength};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// Pieces per folder.
const SHARD: u64 = 4_096;
const READ_CHUNK: u64 = 256 * 1024;

/// The folder that pieces live in, and how many bytes they take.
#[derive(Debug)]
pub(super) struct Contents {
    root: PathBuf,
    next: AtomicU64,
    used_bytes: AtomicU64,
}

/// One file of content. `holders` counts the objects in the index that need it.
#[derive(Debug)]
pub(super) struct Piece {
    pub number: u64,
    pub bytes: u64,
    holders: AtomicUsize,
    contents: Arc<Contents>,
}

impl Contents {
    /// Opens the folder; returns it with the numbers of the pieces that are there.
    pub(super) fn open(root: PathBuf) -> io::Result<(Arc<Self>, Vec<u64>)> {
        fs::create_dir_all(&root)?;
        let mut found = Vec::new();
        for shard in fs::read_dir(&root)? {
            for file in fs::read_dir(shard?.path())? {
                if let Some(number) =
                    file?.file_name().to_str().and_then(|name| u64::from_str_radix(name, 16).ok())
                {
                    found.push(number);
                }
            }
        }
        let next = found.iter().max().map_or(1, |highest| highest + 1);
        Ok((Arc::new(Self { root, next: AtomicU64::new(next), used_bytes: AtomicU64::new(0) }), found))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.root.join(format!("{:x}", number / SHARD)).join(format!("{number:x}"))
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// A piece that an earlier run of the server wrote.
    pub(super) fn known(self: &Arc<Self>, number: u64, bytes: u64) -> Arc<Piece> {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
        Arc::new(Piece { number, bytes, holders: AtomicUsize::new(0), contents: self.clone() })
    }

    /// Never reuses the number of a piece that the log knows, even if its file is gone.
    pub(super) fn skip(&self, number: u64) {
        self.next.fetch_max(number + 1, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path(number))
    }

    pub(super) fn write(self: &Arc<Self>) -> io::Result<Writer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path(number);
        let file = match File::create_new(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
                File::create_new(&path)?
            }
            other => other?,
        };
        let piece = Piece { number, bytes: 0, holders: AtomicUsize::new(0), contents: self.clone() };
        Ok(Writer { file, piece })
    }
}

impl Piece {
    pub(super) fn hold(&self) {
        self.holders.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn release(&self) {
        self.holders.fetch_sub(1, Ordering::Relaxed);
    }

    fn open(&self) -> io::Result<File> {
        File::open(self.contents.path(self.number))
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.holders.load(Ordering::Relaxed) == 0 {
            self.contents.used_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
            match self.contents.remove(self.number) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, number = self.number, "cannot remove content");
                }
                _ => {} // while the log is read, what an earlier run removed is met again
            }
        }
    }
}

/// A piece that is being written; dropped unfinished, it is removed.
#[derive(Debug)]
pub(super) struct Writer {
    file: File,
    piece: Piece,
}

impl Writer {
    pub(super) fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.piece.bytes += chunk.len() as u64;
        self.piece.contents.used_bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn finish(self, sync: bool) -> io::Result<Arc<Piece>> {
        if sync {
            self.file.sync_data()?;
            let folder: &Path = &self.piece.contents.path(self.piece.number);
            if let Some(folder) = folder.parent() {
                File::open(folder)?.sync_all()?;
            }
        }
        Ok(Arc::new(self.piece))
    }
}

/// Streams a range of an object that may be made of several pieces.
#[derive(Debug)]
pub(super) struct Reader {
    /// What is left to read, with the range inside each piece.
    left: VecDeque<(Arc<Piece>, Range<u64>)>,
    open: Option<File>,
    remaining: u64,
}

impl Reader {
    pub(super) fn new(pieces: &[Arc<Piece>], range: Range<u64>) -> Self {
        let mut left = VecDeque::new();
        let mut begin = 0;
        for piece in pieces {
            let end = begin + piece.bytes;
            let (from, to) = (range.start.max(begin), range.end.min(end));
            if from < to {
                left.push_back((piece.clone(), from - begin..to - begin));
            }
            begin = end;
        }
        Self { left, open: None, remaining: range.end - range.start }
    }

    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let Some((piece, range)) = self.left.front_mut() else { return Ok(None) };
        let file = match &self.open {
            Some(file) => file,
            None => self.open.insert(piece.open()?),
        };
        let length = READ_CHUNK.min(range.end - range.start);
        let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut buffer, range.start)?;
        range.start += length;
        self.remaining -= length;
        if range.start == range.end {
            self.left.pop_front();
            self.open = None;
        }
        Ok(Some(Bytes::from(buffer)))
    }
}

impl futures::Stream for Reader {
    type Item = Result<Bytes, s3s::StdError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.next_chunk().map_err(Into::into).transpose())
    }
}

impl ByteStream for Reader {
    fn remaining_length(&self) -> RemainingLength {
        RemainingLength::new_exact(usize::try_from(self.remaining).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(contents: &Arc<Contents>, bytes: &[u8]) -> Arc<Piece> {
        let mut writer = contents.write().unwrap();
        writer.append(bytes).unwrap();
        writer.finish(false).unwrap()
    }

    #[test]
    fn a_range_over_several_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let (contents, found) = Contents::open(folder.path().join("c")).unwrap();
        assert!(found.is_empty());
        let pieces = [piece(&contents, b"abc"), piece(&contents, b""), piece(&contents, b"defg")];
        let read = |range: Range<u64>| {
            let mut reader = Reader::new(&pieces, range);
            let mut all = Vec::new();
            while let Some(chunk) = reader.next_chunk().unwrap() {
                all.extend_from_slice(&chunk);
            }
            assert_eq!(reader.remaining, 0);
            String::from_utf8(all).unwrap()
        };
        assert_eq!(read(0..7), "abcdefg");
        assert_eq!(read(2..5), "cde");
        assert_eq!(read(3..4), "d");
        assert_eq!(read(7..7), "");
    }

    #[test]
    fn only_pieces_that_nobody_holds_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("c");
        let (contents, _) = Contents::open(root.clone()).unwrap();
        let (kept, lost) = (piece(&contents, b"kept"), piece(&contents, b"lost"));
        kept.hold();
        assert_eq!(contents.used_bytes(), 8);
        let kept_number = kept.number;
        drop((kept, lost));
        assert_eq!(contents.used_bytes(), 4);
        let (again, found) = Contents::open(root).unwrap();
        assert_eq!(found, [kept_number]);
        assert!(again.write().unwrap().piece.number > kept_number);
    }
}
