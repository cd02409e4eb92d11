//! Small configuration files: read whole and bounded, replaced in one step. A link stays a link: the file behind it is replaced.

use crate::{EntryError, files};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The text of a file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, EntryError> {
    let bytes = match files::read_bytes(path) {
        Err(EntryError::File { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    String::from_utf8(bytes).map(Some).map_err(|_| {
        EntryError::unfit(format!("{} is no text", path.display()), "a keepalived.conf is text in UTF-8")
    })
}

/// Puts `text` at `path`, whole or not at all; a file that is there keeps its owner and mode, a new one gets `mode`.
pub(super) fn replace(path: &Path, text: &str, mode: u32) -> Result<(), EntryError> {
    if let Ok(real) = fs::canonicalize(path) {
        return files::replace(&real, text.as_bytes());
    }
    files::write_private(path, text.as_bytes())?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(files::failed(path))
}

pub(super) fn remove(path: &Path) -> Result<(), EntryError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(files::failed(path)(error)),
        _ => Ok(()),
    }
}

/// A setting of the kernel, without the line's end.
pub(super) fn setting(path: &Path) -> Result<String, EntryError> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(files::failed(path))
}

/// Writes into a file that must exist and be no link, as Keepalived's track files and the kernel's settings are.
pub(super) fn write_into(path: &Path, text: &str) -> Result<(), EntryError> {
    let no_link = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().write(true).truncate(true).custom_flags(no_link).open(path);
    opened.and_then(|mut file| file.write_all(text.as_bytes())).map_err(files::failed(path))
}
