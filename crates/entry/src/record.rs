//! The record of a change under way or made: what every file held before and holds now, beside each other in a private folder,
//! durable before the first file is touched. It is what makes a killed change go on or go back. One process at a time.

use crate::EntryError;
use crate::files::{self, failed};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Installing,
    Installed,
    Removing,
}

/// One file of the record, with what it held, holds, and (while removing) shall hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub path: PathBuf,
    pub before: Vec<u8>,
    pub after: Vec<u8>,
    pub goal: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
pub struct Record {
    pub stage: Stage,
    pub files: Vec<Kept>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    version: u32,
    driver: String,
    config: PathBuf,
    stage: Stage,
    files: Vec<PathBuf>,
    /// Names of the copies carry it, so that those of the stage before stay whole until this file is replaced.
    generation: u32,
    has_goal: bool,
}

/// The folder of one entry's record, locked.
#[derive(Debug)]
pub struct Records {
    folder: PathBuf,
    driver: &'static str,
    config: PathBuf,
    _lock: File,
}

impl Records {
    /// Locks the record of `config` below `state` (made when it is not there).
    ///
    /// # Errors
    /// When another process changes this entry right now, or the folder cannot be made.
    pub fn open(state: &Path, driver: &'static str, config: &Path) -> Result<Self, EntryError> {
        let config = fs::canonicalize(config).map_err(failed(config))?;
        let folder = Self::folder(state, driver, &config);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed(&folder))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed(&path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            EntryError::unfit(
                format!("another rehome changes {} right now", config.display()),
                "wait until it is done",
            )
        })?;
        Ok(Self { folder, driver, config, _lock: lock })
    }

    /// What is recorded, without a lock: for `show`.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn peek(state: &Path, driver: &'static str, config: &Path) -> Result<Option<Record>, EntryError> {
        let config = fs::canonicalize(config).map_err(failed(config))?;
        load(&Self::folder(state, driver, &config))
    }

    fn folder(state: &Path, driver: &str, config: &Path) -> PathBuf {
        let name = blake3::hash(config.as_os_str().as_encoded_bytes()).to_hex();
        state.join("entry").join(format!("{driver}-{}", name.chars().take(16).collect::<String>()))
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join("record.json")
    }

    pub fn load(&self) -> Result<Option<Record>, EntryError> {
        load(&self.folder)
    }

    /// Durable when it returns: first the copies, then the one file that names them.
    pub fn save(&self, record: &Record) -> Result<(), EntryError> {
        let generation = written(&self.folder)?.map_or(0, |former| former.generation.wrapping_add(1));
        let has_goal = !record.files.is_empty() && record.files.iter().all(|kept| kept.goal.is_some());
        for (number, kept) in record.files.iter().enumerate() {
            let copy = |name: &str| copy(&self.folder, name, generation, number);
            files::write_private(&copy("before"), &kept.before)?;
            files::write_private(&copy("after"), &kept.after)?;
            if let Some(goal) = kept.goal.as_ref().filter(|_| has_goal) {
                files::write_private(&copy("goal"), goal)?;
            }
        }
        let written = Written {
            version: VERSION,
            driver: self.driver.to_owned(),
            config: self.config.clone(),
            stage: record.stage,
            files: record.files.iter().map(|kept| kept.path.clone()).collect(),
            generation,
            has_goal,
        };
        let text = serde_json::to_vec_pretty(&written).map_err(|error| self.broken(&error.to_string()))?;
        files::write_private(&self.path(), &text)?;
        self.drop_copies_but(Some(generation));
        Ok(())
    }

    /// The change is over; nothing is remembered of it.
    pub fn forget(&self) -> Result<(), EntryError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&path)(error)),
            _ => {
                self.drop_copies_but(None);
                Ok(())
            }
        }
    }

    fn drop_copies_but(&self, generation: Option<u32>) {
        let kept = generation.map(|number| format!("-{number}-"));
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_copy = ["before-", "after-", "goal-", ".new-"].iter().any(|word| name.starts_with(word));
            if is_copy && kept.as_ref().is_none_or(|kept| !name.contains(kept.as_str())) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn broken(&self, what: &str) -> EntryError {
        broken(&self.path(), what)
    }
}

fn broken(path: &Path, what: &str) -> EntryError {
    EntryError::unfit(
        format!("{} cannot be understood: {what}", path.display()),
        "the copies beside it hold the files as they were",
    )
}

fn copy(folder: &Path, name: &str, generation: u32, number: usize) -> PathBuf {
    folder.join(format!("{name}-{generation}-{number}"))
}

fn written(folder: &Path) -> Result<Option<Written>, EntryError> {
    let path = folder.join("record.json");
    if !path.exists() {
        return Ok(None);
    }
    let bytes = files::read_bytes(&path)?;
    let written: Written =
        serde_json::from_slice(&bytes).map_err(|error| broken(&path, &error.to_string()))?;
    if written.version == VERSION {
        Ok(Some(written))
    } else {
        Err(broken(&path, "another version wrote it"))
    }
}

fn load(folder: &Path) -> Result<Option<Record>, EntryError> {
    let Some(written) = written(folder)? else { return Ok(None) };
    let read = |name: &str, number| files::read_bytes(&copy(folder, name, written.generation, number));
    let mut files = Vec::new();
    for (number, path) in written.files.iter().enumerate() {
        let goal = if written.has_goal { Some(read("goal", number)?) } else { None };
        let (before, after) = (read("before", number)?, read("after", number)?);
        files.push(Kept { path: path.clone(), before, after, goal });
    }
    Ok(Some(Record { stage: written.stage, files }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("nginx.conf");
        fs::write(&config, "x").unwrap();
        let records = Records::open(folder.path(), "nginx", &config).unwrap();
        assert!(records.load().unwrap().is_none());
        assert!(Records::open(folder.path(), "nginx", &config).is_err(), "one at a time");
        let mut kept =
            Kept { path: config.clone(), before: b"\xff1".to_vec(), after: b"2".to_vec(), goal: None };
        records.save(&Record { stage: Stage::Installing, files: vec![kept.clone()] }).unwrap();
        kept.goal = Some(b"3".to_vec());
        records.save(&Record { stage: Stage::Removing, files: vec![kept.clone()] }).unwrap();
        drop(records);
        let seen = Records::peek(folder.path(), "nginx", &config).unwrap().unwrap();
        assert_eq!((seen.stage, seen.files), (Stage::Removing, vec![kept]));
        let records = Records::open(folder.path(), "nginx", &config).unwrap();
        records.forget().unwrap();
        assert!(records.load().unwrap().is_none());
        let names = fs::read_dir(&records.folder).unwrap().count();
        assert_eq!(names, 1, "only the lock is left");
    }
}
