//! Multipart writes into a folder: parts are files of a staging folder, joined into one file at the end.
//! A part that is not whole is never seen: it gets its name only when its bytes are on disk.

use super::path::{self, RESERVED};
use super::{Inner, file};
use crate::store::{Attributes, Upload, UploadedPart, Written};
use bytes::Bytes;
use rehome_part::{Error, ErrorKind, Result};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, Mode};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};

const FOLDER: &str = ".rehome~uploads";
const RECORD: &str = "upload.json";
const LARGEST_RECORD_BYTES: u64 = 1 << 20;

/// What an upload is about, kept beside its parts.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    key: String,
    attributes: Attributes,
    /// Milliseconds since 1970.
    begun: i64,
}

pub(super) fn begin(inner: &Inner, key: &str, attributes: &Attributes) -> Result<String> {
    path::components(key)?;
    let root = inner.root()?;
    let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let record = Record {
        key: key.into(),
        attributes: attributes.clone(),
        begun: jiff::Timestamp::now().as_millisecond(),
    };
    let text = serde_json::to_vec(&record).expect("a record of strings is always JSON");
    let failed = |error| path::failure(&format!("begin an upload of {key}"), error);
    let uploads = make_folder(&root, FOLDER).map_err(failed)?;
    let staging = make_folder(&uploads, &id).map_err(failed)?;
    write_named(&staging, RECORD, &text).map_err(failed)?;
    rustix::fs::fsync(&uploads).map_err(failed)?;
    Ok(id)
}

pub(super) fn add(inner: &Inner, key: &str, id: &str, number: u32, content: &Bytes) -> Result<UploadedPart> {
    let staging = staging(inner, key, id)?;
    let failed = |error| path::failure(&format!("write part {number} of {key}"), error);
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, content);
    let part = UploadedPart { number, etag: format!("{crc:016x}"), size: content.len() as u64 };
    // An earlier try at the same number goes away first: one number, one part.
    for old in read_parts(&staging).map_err(failed)?.into_iter().filter(|old| old.number == number) {
        rustix::fs::unlinkat(&staging, name_of(&old), AtFlags::empty()).map_err(failed)?;
    }
    write_named(&staging, &name_of(&part), content).map_err(failed)?;
    Ok(part)
}

pub(super) fn parts(inner: &Inner, key: &str, id: &str) -> Result<Vec<UploadedPart>> {
    let staging = staging(inner, key, id)?;
    read_parts(&staging).map_err(|error| path::failure(&format!("list the parts of {key}"), error))
}

pub(super) fn complete(inner: &Inner, key: &str, id: &str, parts: &[UploadedPart]) -> Result<Written> {
    let staging = staging(inner, key, id)?;
    let record = read_record(&staging)?;
    let failed = |error| path::failure(&format!("join the parts of {key}"), error);
    let there = read_parts(&staging).map_err(failed)?;
    let ascending = parts.windows(2).all(|pair| pair[0].number < pair[1].number);
    if parts.is_empty() || !ascending || parts.iter().any(|part| !there.contains(part)) {
        let text = format!("{key}: the parts named are not the parts that are there");
        return Err(Error::permanent(ErrorKind::Corrupt, text).hint("begin the upload of this key again"));
    }
    let written = inner.write_file(key, &record.attributes, |target| {
        parts.iter().try_for_each(|part| {
            let source = file::open(&staging, &name_of(part))?;
            append(&source, target, part.size)
        })
    })?;
    discard(inner, id)?;
    Ok(written)
}

pub(super) fn abort(inner: &Inner, id: &str) -> Result<()> {
    discard(inner, id)
}

pub(super) fn open(inner: &Inner) -> Result<Vec<Upload>> {
    let failed = |error| path::failure("list the open uploads", error);
    let root = inner.root()?;
    let uploads = match path::open_folder(&root, FOLDER) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for id in names(&uploads).map_err(failed)? {
        let Ok(staging) = path::open_folder(&uploads, &id) else { continue };
        // Without its record it was never begun, or is being thrown away.
        let Ok(record) = read_record(&staging) else { continue };
        found.push(Upload { key: record.key, id, begun: Some(record.begun) });
    }
    found.sort_by(|a, b| (&a.key, &a.id).cmp(&(&b.key, &b.id)));
    Ok(found)
}

/// Is there any upload under way? Then the root is not empty.
pub(super) fn remove_folder_if_empty(root: &OwnedFd) -> Result<(), Errno> {
    match rustix::fs::unlinkat(root, FOLDER, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn staging(inner: &Inner, key: &str, id: &str) -> Result<OwnedFd> {
    let missing = || Error::permanent(ErrorKind::NotFound, format!("no upload {id} of {key} is under way"));
    check_id(id)?;
    let root = inner.root()?;
    let opened = path::open_folder(&root, FOLDER).and_then(|uploads| path::open_folder(&uploads, id));
    match opened {
        Ok(staging) if read_record(&staging)?.key == key => Ok(staging),
        Ok(_) | Err(Errno::NOENT) => Err(missing()),
        Err(error) => Err(path::failure(&format!("open the upload of {key}"), error)),
    }
}

/// Ids come from outside (a journal, a caller): only what we gave out ourselves becomes a name.
fn check_id(id: &str) -> Result<()> {
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Error::permanent(ErrorKind::NotFound, "no such upload"))
}

fn read_record(staging: &OwnedFd) -> Result<Record> {
    let missing = |what: String| Error::permanent(ErrorKind::NotFound, format!("no such upload ({what})"));
    let record = file::open(staging, RECORD).map_err(|error| missing(error.to_string()))?;
    let mut text = Vec::new();
    File::from(record)
        .take(LARGEST_RECORD_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| missing(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| missing(error.to_string()))
}

fn name_of(part: &UploadedPart) -> String {
    format!("{:06}-{:x}-{}", part.number, part.size, part.etag)
}

fn part_of(name: &str) -> Option<UploadedPart> {
    let mut fields = name.splitn(3, '-');
    let number = fields.next()?.parse().ok()?;
    let size = u64::from_str_radix(fields.next()?, 16).ok()?;
    Some(UploadedPart { number, size, etag: fields.next()?.into() })
}

/// Ascending by number.
fn read_parts(staging: &OwnedFd) -> Result<Vec<UploadedPart>, Errno> {
    let mut parts: Vec<UploadedPart> = names(staging)?.iter().filter_map(|name| part_of(name)).collect();
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

fn names(folder: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let name = item?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn make_folder(parent: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
        Ok(()) => rustix::fs::fsync(parent)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    path::open_folder(parent, name)
}

/// Writes a whole file under a name that appears only when all of it is on disk.
fn write_named(folder: &OwnedFd, name: &str, content: &[u8]) -> Result<(), Errno> {
    let temporary = format!("{RESERVED}{:016x}", fastrand::u64(..));
    let written = file::create(folder, &temporary).and_then(|target| {
        let mut target = File::from(target);
        target.write_all(content).map_err(|error| path::errno(&error))?;
        rustix::fs::fdatasync(&target)
    });
    let named = written.and_then(|()| rustix::fs::renameat(folder, temporary.as_str(), folder, name));
    if named.is_err() {
        // Best effort: the upload's folder goes away as a whole anyway.
        let _ = rustix::fs::unlinkat(folder, temporary.as_str(), AtFlags::empty());
    }
    named
}

/// Copies in the kernel where it can (sharing blocks where the file system can), by reading and writing elsewhere.
fn append(source: &OwnedFd, target: &mut File, size: u64) -> Result<(), Errno> {
    let mut left = size;
    while left > 0 {
        let step = usize::try_from(left.min(1 << 30)).unwrap_or(1 << 30);
        match rustix::fs::copy_file_range(source, None, &*target, None, step) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => left -= count as u64,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                let mut source =
                    File::from(source.try_clone().map_err(|error| path::errno(&error))?).take(left);
                let copied = std::io::copy(&mut source, target).map_err(|error| path::errno(&error))?;
                return if copied == left { Ok(()) } else { Err(Errno::IO) };
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn discard(inner: &Inner, id: &str) -> Result<()> {
    if check_id(id).is_err() {
        return Ok(());
    }
    let root = inner.root()?;
    let Ok(uploads) = path::open_folder(&root, FOLDER) else { return Ok(()) };
    let Ok(staging) = path::open_folder(&uploads, id) else { return Ok(()) };
    let failed = |error| path::failure("take away an upload", error);
    // The record first: from then on the upload is no longer under way, whatever happens to the rest.
    let mut files = names(&staging).map_err(failed)?;
    files.sort_by_key(|name| name != RECORD);
    for name in files {
        match rustix::fs::unlinkat(&staging, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    match rustix::fs::unlinkat(&uploads, id, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}
