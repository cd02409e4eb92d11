//! What a part must still know after a kill, in one small file: a fact is on disk before what it is about happens.

use rehome_part::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::io::{ErrorKind as IoKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// Facts by name. One part, one file; the file is read once and written whole.
#[derive(Debug)]
pub struct Facts {
    path: PathBuf,
    all: Mutex<BTreeMap<String, String>>,
}

impl Facts {
    /// # Errors
    /// The file cannot be read or makes no sense: what it knew is needed, so it is not begun anew.
    pub fn open(path: PathBuf) -> Result<Self> {
        let all = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| trouble(&path, &error))?,
            Err(error) if error.kind() == IoKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(trouble(&path, &error)),
        };
        Ok(Self { path, all: Mutex::new(all) })
    }

    pub fn get(&self, name: &str) -> Option<String> {
        self.all().get(name).cloned()
    }

    /// On disk when it returns.
    ///
    /// # Errors
    /// The file cannot be written; the fact is not known then.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let mut all = self.all();
        let mut next = all.clone();
        next.insert(name.to_owned(), value.to_owned());
        self.write(&next)?;
        *all = next;
        Ok(())
    }

    /// # Errors
    /// As [`Self::set`].
    pub fn forget(&self, name: &str) -> Result<()> {
        let mut all = self.all();
        if !all.contains_key(name) {
            return Ok(());
        }
        let mut next = all.clone();
        next.remove(name);
        self.write(&next)?;
        *all = next;
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.all.lock().expect("no code panics while it holds this lock")
    }

    fn write(&self, all: &BTreeMap<String, String>) -> Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, all)?;
            file.flush()?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            std::fs::File::open(folder)?.sync_all()
        };
        written().map_err(|error| trouble(&self.path, &error))
    }
}

fn trouble(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::permanent(ErrorKind::Other, format!("{}: {why}", path.display()))
        .hint("see that the folder of the run can be written and has room")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_outlive_their_process_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("facts.json");
        let facts = Facts::open(path.clone()).unwrap();
        facts.set("fence:source", "{}").unwrap();
        facts.set("seal", "0/1").unwrap();
        facts.forget("seal").unwrap();
        let again = Facts::open(path.clone()).unwrap();
        assert_eq!((again.get("fence:source").as_deref(), again.get("seal")), (Some("{}"), None));
        std::fs::write(&path, "{").unwrap();
        assert!(Facts::open(path).is_err());
    }
}
