//! Configuration files of others: read whole and bounded, replaced in one step, with owner and mode as they were. A link stays a
//! link: the file behind it is the one that is replaced, and the caller can say so.

use crate::EntryError;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Larger configuration files are refused.
pub const MAX_FILE: u64 = 16 << 20;

/// A file as it was when it was read.
#[derive(Debug, Clone)]
pub struct Original {
    /// As the configuration names it.
    pub named: PathBuf,
    /// Without links: the file that is read and replaced.
    pub real: PathBuf,
    pub bytes: Vec<u8>,
}

impl Original {
    pub fn is_link(&self) -> bool {
        fs::symlink_metadata(&self.named).is_ok_and(|found| found.file_type().is_symlink())
    }

    pub(crate) fn link(&self) -> Link {
        Link { link: self.named.clone(), file: self.real.clone() }
    }
}

/// A link whose file is changed in its place: the link itself stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    pub link: PathBuf,
    pub file: PathBuf,
}

/// What is to become of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    pub path: PathBuf,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

impl FileChange {
    pub fn diff(&self) -> String {
        crate::diff::unified(&self.path, &self.before, &self.after)
    }
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> EntryError + '_ {
    move |source| EntryError::File { path: path.to_owned(), source }
}

/// # Errors
/// When it is no plain file, is larger than [`MAX_FILE`], or cannot be read.
pub fn read(named: &Path) -> Result<Original, EntryError> {
    let real = fs::canonicalize(named).map_err(failed(named))?;
    let bytes = read_bytes(&real)?;
    Ok(Original { named: named.to_owned(), real, bytes })
}

pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, EntryError> {
    // A pipe would never end, and a device might do something.
    if !fs::metadata(path).map_err(failed(path))?.is_file() {
        return Err(EntryError::unfit(format!("{} is no plain file", path.display()), "name a file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed(path))?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed(path))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(EntryError::unfit(
            format!("{} is larger than {} MiB", path.display(), MAX_FILE >> 20),
            "no configuration that is read here is that large",
        ));
    }
    Ok(bytes)
}

/// Puts `bytes` in the place of the file at `path`, which must exist and be no link. A reader sees the old or the new file.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), EntryError> {
    let former = fs::symlink_metadata(path).map_err(failed(path))?;
    if !former.is_file() {
        return Err(EntryError::Changed { what: path.display().to_string() });
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    (|| {
        // A leading dot keeps it out of every `include *`.
        let mut beside = tempfile::Builder::new().prefix(".rehome-new-").tempfile_in(folder)?;
        beside.write_all(bytes)?;
        let (user, group) =
            (rustix::fs::Uid::from_raw(former.uid()), rustix::fs::Gid::from_raw(former.gid()));
        let made = beside.as_file().metadata()?;
        if (made.uid(), made.gid()) != (former.uid(), former.gid()) {
            rustix::fs::fchown(beside.as_file(), Some(user), Some(group))?;
        }
        beside.as_file().set_permissions(fs::Permissions::from_mode(former.mode() & 0o7777))?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        File::open(folder)?.sync_all()
    })()
    .map_err(failed(path))
}

/// A private file, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), EntryError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    (|| {
        let mut beside = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
        beside.write_all(bytes)?;
        beside.as_file().sync_all()?;
        beside.persist(path)?;
        File::open(folder)?.sync_all()
    })()
    .map_err(failed(path))
}

/// What a killed run left in the folders of these files. Called under the record's lock only.
pub(crate) fn sweep<'a>(paths: impl Iterator<Item = &'a Path>) {
    for folder in paths.filter_map(Path::parent) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(".rehome-")) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("available"), folder.path().join("enabled"));
        fs::write(&real, "one").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("available", &link).unwrap();
        let original = read(&link).unwrap();
        assert!(original.is_link());
        assert_eq!(original.real, fs::canonicalize(&real).unwrap());
        replace(&original.real, b"two").unwrap();
        assert_eq!(fs::read(&link).unwrap(), b"two");
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
        assert!(replace(&link, b"x").is_err(), "a link is never replaced");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside them");
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path()), Err(EntryError::Unfit { .. })));
        assert!(matches!(read(&folder.path().join("none")), Err(EntryError::File { .. })));
    }
}
