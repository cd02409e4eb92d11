//! Small configuration files: read whole and bounded, replaced in one step. A link stays a link: the file behind it is replaced.

use crate::EntryError;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LARGEST: u64 = 1 << 20;

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> EntryError + '_ {
    move |source| EntryError::File { path: path.to_owned(), source }
}

/// The text of a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, EntryError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path)(error)),
    };
    // A pipe would never end.
    if !file.metadata().map_err(failed(path))?.is_file() {
        return Err(EntryError::unfit(format!("{} is no plain file", path.display()), "name a file"));
    }
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(failed(path))?;
    if text.len() as u64 > LARGEST {
        let what = format!("{} is larger than {} KiB", path.display(), LARGEST >> 10);
        return Err(EntryError::unfit(what, "no keepalived.conf that is read here is that large"));
    }
    Ok(Some(text))
}

/// Puts `text` at `path`, whole or not at all; a file that is there keeps its owner and mode, a new one gets `mode`.
pub(super) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), EntryError> {
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = real.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
    (|| {
        let mut beside = tempfile::Builder::new().prefix(".rehome-new-").tempfile_in(&folder)?;
        beside.write_all(text.as_bytes())?;
        let mode = match fs::metadata(&real) {
            Ok(former) => {
                let owner = rustix::fs::Uid::from_raw(former.uid());
                let group = rustix::fs::Gid::from_raw(former.gid());
                rustix::fs::fchown(beside.as_file(), Some(owner), Some(group))?;
                former.mode() & 0o7777
            }
            Err(_) => mode,
        };
        beside.as_file().set_permissions(Permissions::from_mode(mode))?;
        beside.as_file().sync_all()?;
        beside.persist(&real)?;
        File::open(&folder)?.sync_all()
    })()
    .map_err(failed(path))
}

pub(super) fn remove(path: &Path) -> Result<(), EntryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

/// A setting of the kernel, without the line's end.
pub(super) fn setting(path: &Path) -> Result<String, EntryError> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(failed(path))
}

/// Writes into a file that must exist and be no link, as Keepalived's track files and the kernel's settings are.
pub(super) fn write_into(path: &Path, text: &str) -> Result<(), EntryError> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().write(true).truncate(true).custom_flags(no_link).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed(path))
}
