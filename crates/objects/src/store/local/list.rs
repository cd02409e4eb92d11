//! Lists a tree in the byte order of whole keys: the names of one folder are sorted with `/` behind the folders' names.
//! Memory is one sorted list of names per level of depth; symbolic links are told of and never followed.

use super::path::{self, RESERVED};
use crate::store::Entry;
use rehome_part::{Error, ErrorKind, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Stat};
use rustix::io::Errno;
use std::ffi::CString;

/// A walk that goes on where it stopped.
pub(super) struct Walk {
    prefix: String,
    after: Option<String>,
    levels: Vec<Level>,
}

struct Level {
    folder: OwnedFd,
    /// The folder's key with `/` at its end; empty for the root.
    at: String,
    /// Sorted so that the next one is the last.
    names: Vec<Name>,
}

/// Bytes as the folder has them; `/` at the end of folders.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Name(Vec<u8>);

impl Walk {
    pub fn new(root: OwnedFd, prefix: &str, after: Option<&str>) -> Result<Self> {
        let mut walk =
            Self { prefix: prefix.into(), after: after.map(String::from), levels: Vec::with_capacity(8) };
        walk.enter(root, String::new())?;
        Ok(walk)
    }

    /// Up to `count` further lines; an empty answer is the end.
    pub fn page(&mut self, count: usize) -> Vec<Result<Entry>> {
        let mut page = Vec::with_capacity(count);
        while page.len() < count {
            match self.step() {
                Ok(None) => break,
                Ok(Some(Some(line))) => page.push(line),
                Ok(Some(None)) => {}
                Err(error) => {
                    self.levels.clear();
                    page.push(Err(error));
                    break;
                }
            }
        }
        page
    }

    /// One name further: `None` at the end, `Some(None)` when the name is no line of the listing.
    fn step(&mut self) -> Result<Option<Option<Result<Entry>>>> {
        let Some(level) = self.levels.last_mut() else { return Ok(None) };
        let Some(Name(bytes)) = level.names.pop() else {
            self.levels.pop();
            return Ok(Some(None));
        };
        let Ok(name) = std::str::from_utf8(&bytes) else {
            let shown = format!("{}{}", level.at, String::from_utf8_lossy(&bytes));
            let wanted = self.prefix.len() <= level.at.len() || shown.starts_with(&self.prefix);
            let text = format!("the name `{shown}` is not UTF-8, so it cannot be a key");
            return Ok(Some(wanted.then(|| Err(Error::permanent(ErrorKind::Unsupported, text)))));
        };
        let key = format!("{}{name}", level.at);
        match name.strip_suffix('/') {
            Some(folder) => {
                if self.has_lines_below(&key) {
                    let level = self.levels.last().expect("the level of this name is the last");
                    match path::open_folder(&level.folder, folder) {
                        Ok(opened) => self.enter(opened, key)?,
                        // Gone, or another thing now: the listing shows what is there when it comes by.
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                        Err(error) => return Err(path::failure(&format!("list {key}"), error)),
                    }
                }
                Ok(Some(None))
            }
            None => {
                let wanted =
                    key.starts_with(&self.prefix) && self.after.as_ref().is_none_or(|after| key > *after);
                if wanted { self.line(key).map(Some) } else { Ok(Some(None)) }
            }
        }
    }

    /// May there be keys below the folder (its key ends with `/`) that were asked for?
    fn has_lines_below(&self, folder: &str) -> bool {
        let in_prefix = folder.starts_with(&self.prefix) || self.prefix.starts_with(folder);
        let passed =
            self.after.as_ref().is_some_and(|after| !after.starts_with(folder) && folder < after.as_str());
        in_prefix && !passed
    }

    fn line(&self, key: String) -> Result<Option<Result<Entry>>> {
        let level = self.levels.last().expect("the line's own level is the last");
        let name = key.get(level.at.len()..).expect("the key begins with its folder");
        let stat = match rustix::fs::statat(&level.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(path::failure(&format!("list {key}"), error)),
        };
        Ok(Some(match path::kind_of(stat.st_mode) {
            FileType::RegularFile => Ok(entry(key, &stat)),
            FileType::Symlink => Err(not_carried(&key, "a symbolic link")),
            FileType::Directory => return Ok(None),
            _ => Err(not_carried(&key, "neither a file nor a folder")),
        }))
    }

    fn enter(&mut self, folder: OwnedFd, at: String) -> Result<()> {
        let failed = |error| path::failure(&format!("list {at}"), error);
        let mut names = Vec::new();
        for item in Dir::read_from(&folder).map_err(failed)? {
            let item = match item {
                Ok(item) => item,
                Err(error) => return Err(failed(error)),
            };
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." || name.starts_with(RESERVED.as_bytes()) {
                continue;
            }
            let kind = match item.file_type() {
                FileType::Unknown => unknown_kind(&folder, item.file_name().to_owned()),
                known => known,
            };
            let mut name = name.to_vec();
            if kind == FileType::Directory {
                name.push(b'/');
            }
            names.push(Name(name));
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.levels.push(Level { folder, at, names });
        Ok(())
    }
}

/// Some file systems do not say in the folder what a name is.
fn unknown_kind(folder: &OwnedFd, name: CString) -> FileType {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => path::kind_of(stat.st_mode),
        Err(_) => FileType::Unknown,
    }
}

fn not_carried(key: &str, what: &str) -> Error {
    Error::permanent(ErrorKind::Unsupported, format!("`{key}` is {what}: not carried"))
}

fn entry(key: String, stat: &Stat) -> Entry {
    Entry { key, size: size(stat), etag: Some(tag(stat)), modified: Some(modified(stat)) }
}

pub(super) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Milliseconds since 1970.
pub(super) fn modified(stat: &Stat) -> i64 {
    stat.st_mtime.saturating_mul(1000) + i64::try_from(stat.st_mtime_nsec / 1_000_000).unwrap_or(0)
}

/// Changes whenever the file was written, replaced or given other attributes: the kernel's own change time, which
/// nobody can set, with size and inode. (Two writes of one size within one tick of the kernel's clock look the same.)
pub(super) fn tag(stat: &Stat) -> String {
    format!("{:x}.{:x}-{:x}-{:x}", stat.st_ctime, stat.st_ctime_nsec, stat.st_size, stat.st_ino)
}
