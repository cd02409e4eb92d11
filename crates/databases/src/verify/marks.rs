//! How far a comparison is, in a file: one that was ended goes on where it was. Bound to both ends and to how they are compared.

use super::{Chunk, Compared, Options, Pair};
use rehome_part::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two writes while nothing is finished.
const EVERY: Duration = Duration::from_millis(500);

/// How far one table is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Empty until it was cut.
    pub parts: Vec<Part>,
    pub done: Option<Compared>,
}

/// A range of a table that one worker goes through, or a whole table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Part {
    /// Everything of it up to this key was compared; to begin with, where it begins.
    pub after: Option<Vec<String>>,
    /// Where it ends; `None`: with the table.
    pub until: Option<Vec<String>>,
    pub is_through: bool,
    pub source_rows: u64,
    pub target_rows: u64,
    /// What differed and is to be looked at again.
    pub dirty: Vec<Chunk>,
}

#[derive(Debug)]
pub(super) struct Marks {
    path: PathBuf,
    tables: Mutex<(BTreeMap<String, Mark>, Instant)>,
}

impl Marks {
    /// # Errors
    /// The folder cannot be used. A file that makes no sense is begun anew: it saves time, nothing else.
    pub fn open(folder: &Path, pair: &Pair, options: &Options) -> Result<Self, Error> {
        let bound =
            format!("{} {} {} {:?}", pair.source.0, pair.target.0, options.chunk_rows, options.tables);
        let name = blake3::hash(bound.as_bytes()).to_hex();
        let path = folder.join(format!("{}.json", name.get(..16).unwrap_or_default()));
        let tables = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(trouble(&path, &error)),
        };
        Ok(Self { path, tables: Mutex::new((tables, Instant::now())) })
    }

    pub fn of(&self, table: &str) -> Mark {
        self.tables
            .lock()
            .expect("no code panics while it holds this lock")
            .0
            .get(table)
            .cloned()
            .unwrap_or_default()
    }

    /// A table was cut.
    pub fn cut(&self, table: &str, parts: Vec<Part>) -> Result<(), Error> {
        let mut tables = self.tables.lock().expect("no code panics while it holds this lock");
        tables.0.insert(table.to_owned(), Mark { parts, done: None });
        self.write(&tables.0)
    }

    /// A part of a table is so far.
    pub fn note(&self, table: &str, number: usize, part: &Part) -> Result<(), Error> {
        let mut tables = self.tables.lock().expect("no code panics while it holds this lock");
        let noted = tables.0.get_mut(table).and_then(|mark| mark.parts.get_mut(number));
        *noted.expect("a part that is worked on was cut before") = part.clone();
        if tables.1.elapsed() < EVERY {
            return Ok(());
        }
        tables.1 = Instant::now();
        self.write(&tables.0)
    }

    pub fn done(&self, compared: &Compared) -> Result<(), Error> {
        let mut tables = self.tables.lock().expect("no code panics while it holds this lock");
        let mark = Mark { done: Some(compared.clone()), ..Mark::default() };
        tables.0.insert(compared.table.clone(), mark);
        self.write(&tables.0)
    }

    fn write(&self, tables: &BTreeMap<String, Mark>) -> Result<(), Error> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let bytes = serde_json::to_vec(tables).map_err(|error| trouble(&self.path, &error))?;
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(|error| trouble(folder, &error))?;
        file.write_all(&bytes).map_err(|error| trouble(&self.path, &error))?;
        file.persist(&self.path).map_err(|error| trouble(&self.path, &error))?;
        Ok(())
    }

    /// Everything was compared: the next time begins anew.
    pub fn remove(&self) {
        let _gone = std::fs::remove_file(&self.path);
    }
}

fn trouble(path: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::permanent(ErrorKind::Other, format!("{}: {why}", path.display()))
}
