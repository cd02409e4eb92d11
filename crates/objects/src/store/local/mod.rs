//! A directory as a store: keys are paths below it, byte for byte. No symbolic link is ever followed; a write is a
//! temporary file in the same folder, synced and renamed. Attributes are kept in an extended attribute where the file
//! system takes those. It never alters a key: what cannot be a path is refused.
//!
//! Conditions on writes hold among the writers of one process; another program may still slip in between check and
//! rename, except for "nothing is there", which the kernel decides.

mod attributes;
mod file;
mod list;
mod path;
mod upload;

use super::{
    Attributes, Body, Capabilities, Checksums, Condition, Entry, Meta, PartLimits, Store, Upload,
    UploadedPart, Written,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use path::RESERVED;
use rehome_part::{Error, ErrorKind, Result, Side};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, RenameFlags, Stat};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const PAGE_LINES: usize = 512;
/// Folders that other calls prune while a write walks to them are made again this often.
const WALKS: usize = 32;

/// A directory that keeps objects.
#[derive(Debug, Clone)]
pub struct LocalStore {
    inner: Arc<Inner>,
    capabilities: Capabilities,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    address: String,
    side: Option<Side>,
    keeps_attributes: bool,
    /// Held while a file gets its name, so that nothing of ours comes between a condition's check and the rename.
    publishing: Mutex<()>,
}

impl LocalStore {
    /// The directory need not exist yet; errors name `side`. Looks at the file system once (blocking, short).
    pub fn new(root: impl Into<PathBuf>, side: Option<Side>) -> Self {
        let root = root.into();
        let nearest = root.ancestors().find_map(|folder| path::open_root(folder).ok());
        let keeps_attributes = nearest.is_some_and(attributes::are_kept);
        let capabilities = Capabilities {
            sorted_listing: true,
            etag_is_md5: false,
            user_metadata: keeps_attributes,
            content_headers: keeps_attributes,
            conditional_put: true,
            conditional_get: true,
            multipart: Some(PartLimits { smallest: 1, largest: 5 << 30, count: 100_000 }),
            max_put: 5 << 30,
            max_object: i64::MAX as u64,
            policy: false,
            free_keys: false,
            met_vendor: true,
        };
        let address = format!("file://{}", root.display());
        let inner = Inner { root, address, side, keeps_attributes, publishing: Mutex::new(()) };
        Self { inner: Arc::new(inner), capabilities }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let done =
            tokio::task::spawn_blocking(move || work(&inner).map_err(|error| inner.at_side(error))).await;
        done.unwrap_or_else(|stopped| {
            // The runtime shuts down, or a bug panicked in there: both end the call, neither ends the process.
            let text = format!("work on {} was cut short: {stopped}", self.inner.address);
            Err(self.inner.at_side(Error::permanent(ErrorKind::Other, text)))
        })
    }
}

impl Inner {
    fn at_side(&self, error: Error) -> Error {
        match (error.side, self.side) {
            (None, Some(side)) => error.on(side),
            _ => error,
        }
    }

    fn root(&self) -> Result<OwnedFd> {
        path::open_root(&self.root).map_err(|error| match error {
            Errno::NOENT | Errno::NOTDIR => {
                let text = format!("the directory {} does not exist", self.root.display());
                Error::permanent(ErrorKind::NotFound, text)
            }
            other => path::failure(&format!("open {}", self.root.display()), other),
        })
    }

    /// A regular file that is there, opened.
    fn open(&self, key: &str) -> Result<Option<(OwnedFd, Stat)>> {
        let root = self.root()?;
        // A key that cannot be a file is not there; only writing it is an error.
        let Ok(parts) = path::components(key) else { return Ok(None) };
        let failed = |error| path::failure(&format!("open {key}"), error);
        let Some(parent) = path::parent_of(&root, &parts).map_err(failed)? else { return Ok(None) };
        let opened = match file::open(&parent, parts[parts.len() - 1]) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::LOOP | Errno::ISDIR | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let stat = rustix::fs::fstat(&opened).map_err(failed)?;
        Ok((path::kind_of(stat.st_mode) == FileType::RegularFile).then_some((opened, stat)))
    }

    fn meta(&self, key: &str, file: &OwnedFd, stat: &Stat) -> Result<Meta> {
        let attributes = attributes::read(file, stat)
            .map_err(|error| path::failure(&format!("read the attributes of {key}"), error))?;
        Ok(Meta {
            size: list::size(stat),
            etag: Some(list::tag(stat)),
            modified: Some(list::modified(stat)),
            attributes,
            checksums: Checksums::default(),
        })
    }

    fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let Some((file, stat)) = self.open(key)? else { return Ok(None) };
        let meta = self.meta(key, &file, &stat)?;
        if if_match.is_some_and(|tag| Some(tag) != meta.etag.as_deref()) {
            return Err(Error::permanent(ErrorKind::Changed, format!("{key} is another file now")));
        }
        let range = range.unwrap_or(0..meta.size);
        let range = range.start..range.end.min(meta.size);
        if range.start > range.end || (range.is_empty() && range.start > 0) {
            let text = format!("{key} ends before byte {}", range.start);
            return Err(Error::permanent(ErrorKind::Changed, text));
        }
        let reading = file::Reading { file, key: key.into(), tag: list::tag(&stat) };
        let body = if range.end - range.start <= file::CHUNK_BYTES {
            let bytes = reading.read(range)?;
            reading.check_unchanged()?;
            stream::iter((!bytes.is_empty()).then_some(Ok(bytes))).boxed()
        } else {
            reading.into_body(range)
        };
        Ok(Some((meta, body)))
    }

    fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: &Bytes,
        condition: &Condition,
    ) -> Result<Written> {
        let fill = |target: &mut File| target.write_all(content).map_err(|error| path::errno(&error));
        self.write_file_if(key, attributes, condition, fill)
    }

    fn write_file(
        &self,
        key: &str,
        attributes: &Attributes,
        fill: impl FnMut(&mut File) -> Result<(), Errno>,
    ) -> Result<Written> {
        self.write_file_if(key, attributes, &Condition::Always, fill)
    }

    /// Writes a temporary file beside the target, syncs it, gives it the target's name and syncs the folder.
    fn write_file_if(
        &self,
        key: &str,
        attributes: &Attributes,
        condition: &Condition,
        mut fill: impl FnMut(&mut File) -> Result<(), Errno>,
    ) -> Result<Written> {
        let parts = path::components(key)?;
        let root = self.root()?;
        let failed = |error: Errno| match error {
            Errno::NOTDIR | Errno::LOOP => {
                in_the_way(key, "a part of its path is a file or a symbolic link here")
            }
            Errno::ISDIR => in_the_way(key, "a folder of that name is here"),
            other => path::failure(&format!("write {key}"), other),
        };
        for walk in 1..=WALKS {
            let parent = match path::make_parent_of(&root, &parts) {
                Ok(parent) => parent,
                // Somebody deleted the last file of this folder and the folder with it.
                Err(Errno::NOENT) if walk < WALKS => continue,
                Err(error) => return Err(failed(error)),
            };
            let temporary = format!("{RESERVED}{:016x}", fastrand::u64(..));
            let target = match file::create(&parent, &temporary) {
                Ok(target) => target,
                Err(Errno::NOENT) if walk < WALKS => continue,
                Err(error) => return Err(failed(error)),
            };
            let mut target = File::from(target);
            let name = parts[parts.len() - 1];
            let done = self
                .fill(&mut target, attributes, &mut fill, key)
                .and_then(|()| self.publish(&parent, &temporary, name, key, condition, &failed));
            if let Err(error) = done {
                // Best effort: the error that is told is the one that matters.
                let _ = rustix::fs::unlinkat(&parent, temporary.as_str(), AtFlags::empty());
                return Err(error);
            }
            rustix::fs::fsync(&parent).map_err(failed)?;
            let stat = rustix::fs::fstat(&target).map_err(failed)?;
            return Ok(Written { etag: Some(list::tag(&stat)), checksums: Checksums::default() });
        }
        Err(failed(Errno::NOENT))
    }

    fn fill(
        &self,
        target: &mut File,
        wanted: &Attributes,
        fill: &mut impl FnMut(&mut File) -> Result<(), Errno>,
        key: &str,
    ) -> Result<()> {
        let failed = |error| path::failure(&format!("write {key}"), error);
        fill(target).map_err(failed)?;
        if self.keeps_attributes {
            attributes::write(&*target, wanted).map_err(|error| match error {
                Errno::NOSPC | Errno::TOOBIG | Errno::RANGE | Errno::OPNOTSUPP => {
                    let text = format!("{key}: its attributes are too large for this file system");
                    Error::permanent(ErrorKind::Unsupported, text)
                }
                other => failed(other),
            })?;
        }
        attributes::set_time(&*target, wanted).map_err(failed)?;
        rustix::fs::fsync(&*target).map_err(failed)
    }

    fn publish(
        &self,
        parent: &OwnedFd,
        temporary: &str,
        name: &str,
        key: &str,
        condition: &Condition,
        failed: &impl Fn(Errno) -> Error,
    ) -> Result<()> {
        let changed = || Error::permanent(ErrorKind::Changed, format!("{key}: another file is there"));
        let _held = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        match condition {
            Condition::Always => rustix::fs::renameat(parent, temporary, parent, name).map_err(failed),
            Condition::Absent => {
                match rustix::fs::renameat_with(parent, temporary, parent, name, RenameFlags::NOREPLACE) {
                    Err(Errno::EXIST) => Err(changed()),
                    Err(Errno::INVAL | Errno::NOSYS) => {
                        self.link_new(parent, temporary, name, changed, failed)
                    }
                    other => other.map_err(failed),
                }
            }
            Condition::Matches(tag) => {
                let there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
                match there {
                    Ok(stat) if list::tag(&stat) == *tag => {
                        rustix::fs::renameat(parent, temporary, parent, name).map_err(failed)
                    }
                    Ok(_) | Err(Errno::NOENT) => Err(changed()),
                    Err(error) => Err(failed(error)),
                }
            }
        }
    }

    /// For file systems without an exclusive rename: a hard link fails when the name is taken.
    fn link_new(
        &self,
        parent: &OwnedFd,
        temporary: &str,
        name: &str,
        changed: impl Fn() -> Error,
        failed: &impl Fn(Errno) -> Error,
    ) -> Result<()> {
        match rustix::fs::linkat(parent, temporary, parent, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::unlinkat(parent, temporary, AtFlags::empty()).map_err(failed),
            Err(Errno::EXIST) => Err(changed()),
            Err(error) => Err(failed(error)),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let root = self.root()?;
        let Ok(parts) = path::components(key) else { return Ok(()) };
        let failed = |error| path::failure(&format!("delete {key}"), error);
        let Some(parent) = path::parent_of(&root, &parts).map_err(failed)? else { return Ok(()) };
        let name = parts[parts.len() - 1];
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if path::kind_of(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::fsync(&parent).map_err(failed)?;
        path::prune(&root, &parts);
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        let failed = |error: Errno| match error {
            Errno::NOTEMPTY | Errno::EXIST => {
                Error::permanent(ErrorKind::Other, format!("{} is not empty", self.root.display()))
            }
            other => path::failure(&format!("remove {}", self.root.display()), other),
        };
        let root = self.root()?;
        upload::remove_folder_if_empty(&root).map_err(failed)?;
        rustix::fs::rmdir(&self.root).map_err(failed)
    }

    fn unsupported(&self) -> Error {
        let text = format!("{} has no policies", self.address);
        self.at_side(Error::permanent(ErrorKind::Unsupported, text))
    }
}

fn in_the_way(key: &str, what: &str) -> Error {
    Error::permanent(ErrorKind::Unsupported, format!("the key `{key}` cannot be a file: {what}"))
}

#[async_trait]
impl Store for LocalStore {
    fn address(&self) -> &str {
        &self.inner.address
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn check(&self) -> Result<()> {
        self.blocking(|inner| {
            let root = inner.root()?;
            let opened = rustix::fs::Dir::read_from(&root).map(drop);
            opened.map_err(|error| path::failure(&format!("list {}", inner.root.display()), error))
        })
        .await
    }

    async fn create(&self) -> Result<bool> {
        self.blocking(|inner| {
            path::make_root(&inner.root).map_err(|error| {
                path::failure(&format!("make the directory {}", inner.root.display()), path::errno(&error))
            })
        })
        .await
    }

    async fn remove(&self) -> Result<()> {
        self.blocking(Inner::remove).await
    }

    fn list(&self, prefix: &str, after: Option<&str>) -> BoxStream<'_, Result<Entry>> {
        enum At {
            Start(String, Option<String>),
            Going(Box<list::Walk>),
            End,
        }
        let start = At::Start(prefix.into(), after.map(String::from));
        stream::unfold(start, move |at| async move {
            let page = self
                .blocking(move |inner| {
                    let mut walk = match at {
                        At::Start(prefix, after) => {
                            Box::new(list::Walk::new(inner.root()?, &prefix, after.as_deref())?)
                        }
                        At::Going(walk) => walk,
                        At::End => return Ok((Vec::new(), None)),
                    };
                    let page = walk.page(PAGE_LINES);
                    Ok((page, Some(walk)))
                })
                .await;
            match page {
                Ok((page, _)) if page.is_empty() => None,
                Ok((page, walk)) => Some((page, walk.map_or(At::End, At::Going))),
                Err(error) => Some((vec![Err(error)], At::End)),
            }
        })
        .flat_map(stream::iter)
        .map(|line| line.map_err(|error| self.inner.at_side(error)))
        .boxed()
    }

    async fn head(&self, key: &str) -> Result<Option<Meta>> {
        let key = key.to_owned();
        self.blocking(move |inner| match inner.open(&key)? {
            Some((file, stat)) => inner.meta(&key, &file, &stat).map(Some),
            None => Ok(None),
        })
        .await
    }

    async fn get(
        &self,
        key: &str,
        range: Option<Range<u64>>,
        if_match: Option<&str>,
    ) -> Result<Option<(Meta, Body)>> {
        let (key, if_match) = (key.to_owned(), if_match.map(String::from));
        self.blocking(move |inner| inner.get(&key, range, if_match.as_deref())).await
    }

    async fn put(
        &self,
        key: &str,
        attributes: &Attributes,
        content: Bytes,
        condition: Condition,
    ) -> Result<Written> {
        let (key, attributes) = (key.to_owned(), attributes.clone());
        self.blocking(move |inner| inner.put(&key, &attributes, &content, &condition)).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.blocking(move |inner| inner.delete(&key)).await
    }

    async fn begin_upload(&self, key: &str, attributes: &Attributes) -> Result<String> {
        let (key, attributes) = (key.to_owned(), attributes.clone());
        self.blocking(move |inner| upload::begin(inner, &key, &attributes)).await
    }

    async fn upload_part(
        &self,
        key: &str,
        upload: &str,
        number: u32,
        content: Bytes,
    ) -> Result<UploadedPart> {
        let (key, id) = (key.to_owned(), upload.to_owned());
        self.blocking(move |inner| upload::add(inner, &key, &id, number, &content)).await
    }

    async fn uploaded_parts(&self, key: &str, upload: &str) -> Result<Vec<UploadedPart>> {
        let (key, id) = (key.to_owned(), upload.to_owned());
        self.blocking(move |inner| upload::parts(inner, &key, &id)).await
    }

    async fn complete_upload(&self, key: &str, upload: &str, parts: &[UploadedPart]) -> Result<Written> {
        let (key, id, parts) = (key.to_owned(), upload.to_owned(), parts.to_vec());
        self.blocking(move |inner| upload::complete(inner, &key, &id, &parts)).await
    }

    async fn abort_upload(&self, _key: &str, upload: &str) -> Result<()> {
        let id = upload.to_owned();
        self.blocking(move |inner| upload::abort(inner, &id)).await
    }

    async fn open_uploads(&self) -> Result<Vec<Upload>> {
        self.blocking(upload::open).await
    }

    async fn policy(&self) -> Result<Option<String>> {
        Err(self.inner.unsupported())
    }

    async fn set_policy(&self, _policy: Option<&str>) -> Result<()> {
        Err(self.inner.unsupported())
    }

    fn fence_policy(&self, _existing: Option<&str>, _principal: &str) -> Result<String> {
        Err(self.inner.unsupported())
    }
}
