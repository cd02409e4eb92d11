//! Keys as paths: which keys a file system can keep, and the walk to one of them that never follows a symbolic link
//! (every component is opened on its own, relative to the folder before it).

use rehome_part::{Error, ErrorKind, Result};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;
use std::path::Path;

/// Names that begin with this are ours (files half written, uploads under way) and never keys.
pub(super) const RESERVED: &str = ".rehome~";
const LONGEST_COMPONENT_BYTES: usize = 255;
const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The components of a key.
///
/// # Errors
/// `Unsupported` for a key that no file can have without being altered; the text says why.
pub(super) fn components(key: &str) -> Result<Vec<&str>> {
    let refuse = |why: &str| {
        let text = format!("the key `{}` cannot be a file: {why}", key.escape_debug());
        Err(Error::permanent(ErrorKind::Unsupported, text))
    };
    if key.ends_with('/') {
        return refuse("it ends with `/`");
    }
    let parts: Vec<&str> = key.split('/').collect();
    for part in &parts {
        match *part {
            "" => return refuse("it has an empty part"),
            "." | ".." => return refuse("it has a part `.` or `..`"),
            long if long.len() > LONGEST_COMPONENT_BYTES => return refuse("it has a part above 255 bytes"),
            zero if zero.contains('\0') => return refuse("it has a zero byte"),
            ours if ours.starts_with(RESERVED) => return refuse("names that begin with `.rehome~` are ours"),
            _ => {}
        }
    }
    Ok(parts)
}

pub(super) fn open_root(root: &Path) -> Result<OwnedFd, Errno> {
    // The root itself is the user's own word: a symbolic link there is meant.
    rustix::fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

pub(super) fn open_folder(parent: impl AsFd, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, FOLDER, Mode::empty())
}

/// The folder that holds the last component; `None` when there is no such folder (or a file or link is in the way).
pub(super) fn parent_of(root: &OwnedFd, parts: &[&str]) -> Result<Option<OwnedFd>, Errno> {
    let mut folder = root.try_clone().map_err(|error| errno(&error))?;
    for part in &parts[..parts.len() - 1] {
        folder = match open_folder(&folder, part) {
            Ok(next) => next,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error),
        };
    }
    Ok(Some(folder))
}

/// The same for writing: folders that are missing are made, and made durable.
pub(super) fn make_parent_of(root: &OwnedFd, parts: &[&str]) -> Result<OwnedFd, Errno> {
    let mut folder = root.try_clone().map_err(|error| errno(&error))?;
    for part in &parts[..parts.len() - 1] {
        folder = match open_folder(&folder, part) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&folder, *part, Mode::from_raw_mode(0o777)) {
                    Ok(()) => rustix::fs::fsync(&folder)?,
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                open_folder(&folder, part)?
            }
            other => other?,
        };
    }
    Ok(folder)
}

/// Makes the root and what is above it; `false` when it was there.
pub(super) fn make_root(root: &Path) -> std::io::Result<bool> {
    if root.is_dir() {
        return Ok(false);
    }
    std::fs::create_dir_all(root)?;
    if let Some(parent) = root.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        let parent = rustix::fs::openat(CWD, parent, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fsync(parent)?;
    }
    Ok(true)
}

/// Takes away the folders above a deleted file that are empty now, so that their names are free for keys again.
pub(super) fn prune(root: &OwnedFd, parts: &[&str]) {
    for depth in (1..parts.len()).rev() {
        let Ok(Some(folder)) = parent_of(root, &parts[..depth]) else { return };
        if rustix::fs::unlinkat(&folder, parts[depth - 1], rustix::fs::AtFlags::REMOVEDIR).is_err() {
            return;
        }
    }
}

pub(super) fn kind_of(mode: RawMode) -> FileType {
    FileType::from_raw_mode(mode)
}

pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Tells what a failed system call means to the caller.
pub(super) fn failure(doing: &str, error: Errno) -> Error {
    let text = format!("{doing}: {}", std::io::Error::from(error));
    match error {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => {
            Error::permanent(ErrorKind::Full, text).hint("make room on that file system")
        }
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Error::permanent(ErrorKind::Credentials, text)
            .hint("run as a user who may do this, or change the permissions"),
        Errno::NAMETOOLONG | Errno::ISDIR | Errno::NOTDIR | Errno::LOOP | Errno::INVAL | Errno::ILSEQ => {
            Error::permanent(ErrorKind::Unsupported, text)
        }
        Errno::MFILE | Errno::NFILE | Errno::AGAIN | Errno::BUSY | Errno::NOMEM => {
            Error::temporary(ErrorKind::Other, text)
        }
        Errno::TIMEDOUT | Errno::STALE | Errno::HOSTDOWN | Errno::NOTCONN => {
            Error::temporary(ErrorKind::Network, text)
        }
        Errno::NOENT => Error::permanent(ErrorKind::NotFound, text),
        _ => Error::permanent(ErrorKind::Other, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_no_file_can_have_are_refused() {
        let long = "x".repeat(256);
        for key in
            ["", "/", "a/", "/a", "a//b", ".", "a/../b", "a/.", &long, "a\0b", ".rehome~1", "a/.rehome~u/b"]
        {
            assert_eq!(components(key).unwrap_err().kind, ErrorKind::Unsupported, "{key:?}");
        }
        assert_eq!(components("a/b+c %/…x/..d").unwrap(), ["a", "b+c %", "…x", "..d"]);
    }
}
