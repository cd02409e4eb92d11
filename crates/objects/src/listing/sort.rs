//! External merge sort of listing entries: sorted runs in temporary files, merged with a heap. Runs in a blocking thread.
//! A run is `RHRUN1\n`, records, and a trailer with their count; a file without its trailer is refused.

use crate::store::Entry;
use rehome_part::{Error, ErrorKind, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

const MAGIC: &[u8; 7] = b"RHRUN1\n";
/// In place of a key length: the trailer follows.
const END: u32 = u32::MAX;
/// Runs merged at once; more are merged in several rounds, so that open files and buffers stay bounded.
const FAN_IN: usize = 64;
const LONGEST_TEXT: u32 = 1 << 20;
/// What an entry takes in memory besides its texts.
const ENTRY_OVERHEAD: usize = 96;

/// Reads everything from `unsorted`, sends it sorted and without repeated keys (the later one wins).
pub(super) fn sort(
    unsorted: mpsc::Receiver<Result<Entry>>,
    sorted: &mpsc::Sender<Result<Entry>>,
    folder: &Path,
    memory: usize,
) {
    if let Err(error) = sort_or_fail(unsorted, sorted, folder, memory) {
        let _ = sorted.blocking_send(Err(error));
    }
}

fn sort_or_fail(
    mut unsorted: mpsc::Receiver<Result<Entry>>,
    sorted: &mpsc::Sender<Result<Entry>>,
    folder: &Path,
    memory: usize,
) -> Result<()> {
    let mut runs = Runs::new(folder)?;
    let mut held: Vec<Entry> = Vec::new();
    let mut held_bytes = 0;
    while let Some(entry) = unsorted.blocking_recv() {
        let entry = entry?;
        held_bytes += entry.key.len() + entry.etag.as_ref().map_or(0, String::len) + ENTRY_OVERHEAD;
        held.push(entry);
        if held_bytes >= memory {
            runs.spill(&mut held)?;
            held_bytes = 0;
        }
        if sorted.is_closed() {
            return Ok(());
        }
    }
    if runs.files.is_empty() {
        held.sort_by(|a, b| a.key.cmp(&b.key));
        return send_each(held.into_iter().map(Ok), sorted);
    }
    runs.spill(&mut held)?;
    while runs.files.len() > FAN_IN {
        runs.merge_oldest()?;
    }
    send_each(Merged::open(&runs.files)?, sorted)
}

/// Sends one entry per key: the last of each group of equal keys.
fn send_each(
    entries: impl Iterator<Item = Result<Entry>>,
    sorted: &mpsc::Sender<Result<Entry>>,
) -> Result<()> {
    for entry in Distinct::new(entries) {
        if sorted.blocking_send(Ok(entry?)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

struct Distinct<I: Iterator<Item = Result<Entry>>> {
    entries: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = Result<Entry>>> Distinct<I> {
    fn new(entries: I) -> Self {
        Self { entries: entries.peekable() }
    }
}

impl<I: Iterator<Item = Result<Entry>>> Iterator for Distinct<I> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                error => return Some(error),
            };
            let comes_again = matches!(self.entries.peek(), Some(Ok(next)) if next.key == entry.key);
            if !comes_again {
                return Some(Ok(entry));
            }
        }
    }
}

fn disk(error: &std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Other,
    };
    Error::permanent(kind, format!("sorting a listing on disk: {error}"))
}

struct Runs {
    folder: tempfile::TempDir,
    /// Older runs first: of equal keys the later run wins.
    files: Vec<PathBuf>,
    made: u64,
}

impl Runs {
    fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|e| disk(&e))?;
        let folder = tempfile::Builder::new().prefix("sort-").tempdir_in(folder).map_err(|e| disk(&e))?;
        Ok(Self { folder, files: Vec::new(), made: 0 })
    }

    fn new_path(&mut self) -> PathBuf {
        self.made += 1;
        self.folder.path().join(format!("{}.run", self.made))
    }

    fn spill(&mut self, held: &mut Vec<Entry>) -> Result<()> {
        // Stable: of equal keys the one that came later stays later.
        held.sort_by(|a, b| a.key.cmp(&b.key));
        let path = self.new_path();
        write_run(&path, held.drain(..).map(Ok))?;
        self.files.push(path);
        Ok(())
    }

    fn merge_oldest(&mut self) -> Result<()> {
        let path = self.new_path();
        let oldest: Vec<PathBuf> = self.files.drain(..FAN_IN).collect();
        write_run(&path, Distinct::new(Merged::open(&oldest)?))?;
        for file in oldest {
            std::fs::remove_file(file).map_err(|e| disk(&e))?;
        }
        self.files.insert(0, path);
        Ok(())
    }
}

fn write_run(path: &Path, entries: impl Iterator<Item = Result<Entry>>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 18, File::create(path).map_err(|e| disk(&e))?);
    let mut count: u64 = 0;
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|e| disk(&e));
    write(MAGIC)?;
    for entry in entries {
        let entry = entry?;
        write(&text_length(&entry.key)?.to_le_bytes())?;
        write(entry.key.as_bytes())?;
        write(&entry.size.to_le_bytes())?;
        write(&[u8::from(entry.etag.is_some()) | u8::from(entry.modified.is_some()) << 1])?;
        if let Some(etag) = &entry.etag {
            write(&text_length(etag)?.to_le_bytes())?;
            write(etag.as_bytes())?;
        }
        if let Some(modified) = entry.modified {
            write(&modified.to_le_bytes())?;
        }
        count += 1;
    }
    write(&END.to_le_bytes())?;
    write(&count.to_le_bytes())?;
    out.flush().map_err(|e| disk(&e))
}

fn text_length(text: &str) -> Result<u32> {
    u32::try_from(text.len()).ok().filter(|length| *length <= LONGEST_TEXT).ok_or_else(|| {
        Error::permanent(ErrorKind::Unsupported, format!("a listing has a text of {} bytes", text.len()))
    })
}

struct Run {
    input: BufReader<File>,
    read: u64,
}

impl Run {
    fn open(path: &Path) -> Result<Self> {
        let mut run = Self {
            input: BufReader::with_capacity(1 << 16, File::open(path).map_err(|e| disk(&e))?),
            read: 0,
        };
        if &run.bytes::<7>()? != MAGIC {
            return Err(torn("begins wrong"));
        }
        Ok(run)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| disk(&e))?;
        Ok(bytes)
    }

    fn text(&mut self, length: u32) -> Result<String> {
        if length > LONGEST_TEXT {
            return Err(torn("has a text that is too long"));
        }
        let mut bytes = vec![0; length as usize];
        self.input.read_exact(&mut bytes).map_err(|e| disk(&e))?;
        String::from_utf8(bytes).map_err(|_| torn("has a text that is not UTF-8"))
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        let length = u32::from_le_bytes(self.bytes()?);
        if length == END {
            let count = u64::from_le_bytes(self.bytes()?);
            return if count == self.read { Ok(None) } else { Err(torn("has lost records")) };
        }
        let key = self.text(length)?;
        let size = u64::from_le_bytes(self.bytes()?);
        let [flags] = self.bytes()?;
        let etag = if flags & 1 != 0 {
            let length = u32::from_le_bytes(self.bytes()?);
            Some(self.text(length)?)
        } else {
            None
        };
        let modified = if flags & 2 != 0 { Some(i64::from_le_bytes(self.bytes()?)) } else { None };
        self.read += 1;
        Ok(Some(Entry { key, size, etag, modified }))
    }
}

fn torn(what: &str) -> Error {
    Error::permanent(ErrorKind::Corrupt, format!("a run file of the sort {what}"))
}

/// The next entry of one run; ordered by key, then by age of the run (older first).
struct Head(Entry, usize);

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Head {}
impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.key.cmp(&other.0.key).then(self.1.cmp(&other.1))
    }
}

/// Several runs as one.
struct Merged {
    runs: Vec<Run>,
    heads: BinaryHeap<Reverse<Head>>,
}

impl Merged {
    fn open(files: &[PathBuf]) -> Result<Self> {
        let mut runs = files.iter().map(|file| Run::open(file)).collect::<Result<Vec<_>>>()?;
        let mut heads = BinaryHeap::new();
        for (index, run) in runs.iter_mut().enumerate() {
            if let Some(entry) = run.next()? {
                heads.push(Reverse(Head(entry, index)));
            }
        }
        Ok(Self { runs, heads })
    }
}

impl Iterator for Merged {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse(Head(entry, index)) = self.heads.pop()?;
        match self.runs[index].next() {
            Ok(Some(next)) => self.heads.push(Reverse(Head(next, index))),
            Ok(None) => {}
            Err(error) => return Some(Err(error)),
        }
        Some(Ok(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: String, size: u64) -> Entry {
        Entry {
            key,
            size,
            etag: size.is_multiple_of(2).then(|| format!("e{size}")),
            modified: size.is_multiple_of(3).then_some(-7),
        }
    }

    async fn sorted(entries: Vec<Entry>, folder: &Path, memory: usize) -> Vec<Entry> {
        let (raw, unsorted) = mpsc::channel(8);
        let (sender, mut receiver) = mpsc::channel(8);
        let folder = folder.to_owned();
        let thread = tokio::task::spawn_blocking(move || sort(unsorted, &sender, &folder, memory));
        let feeding = tokio::spawn(async move {
            for entry in entries {
                raw.send(Ok(entry)).await.unwrap();
            }
        });
        let mut out = Vec::new();
        while let Some(entry) = receiver.recv().await {
            out.push(entry.unwrap());
        }
        feeding.await.unwrap();
        thread.await.unwrap();
        out
    }

    #[tokio::test]
    async fn sorts_with_almost_no_memory_in_several_rounds_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = fastrand::Rng::with_seed(7);
        // ~12 entries a run: 300 runs, more than FAN_IN squared would hide a missing round.
        let mut entries: Vec<Entry> = (0..4_000).map(|n| entry(format!("k{:05}/ä", n), n)).collect();
        rng.shuffle(&mut entries);
        let mut expected = entries.clone();
        expected.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(sorted(entries, folder.path(), 1_500).await, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "temporary runs are removed");
    }

    #[tokio::test]
    async fn a_key_that_comes_twice_is_sent_once_as_it_came_last() {
        let folder = tempfile::tempdir().unwrap();
        let twice = |memory| {
            let entries = (0..200).chain(0..200).map(|n| entry(format!("{:03}", n % 100), n)).collect();
            sorted(entries, folder.path(), memory)
        };
        let spilled = twice(600).await;
        assert_eq!(spilled.len(), 100);
        assert!(spilled.iter().all(|entry| entry.size >= 100), "the later one wins");
        assert_eq!(twice(usize::MAX).await, spilled);
    }

    #[test]
    fn a_torn_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        write_run(&path, (0..10).map(|n| Ok(entry(format!("{n}"), n)))).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let read: Result<Vec<Entry>> =
                Merged::open(std::slice::from_ref(&path)).and_then(Iterator::collect);
            assert!(read.is_err(), "cut at {length}");
        }
    }
}
