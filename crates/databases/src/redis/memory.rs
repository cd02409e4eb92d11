//! What the part must still know after a kill, each matter in a file of its own that is read when it is asked: another process may
//! have written it since.

use crate::facts::Facts;
use rehome_part::{Error, ErrorKind, Flow, Result, Side};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// One matter; two that change at once are not the same.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matter {
    /// Users that `prepare` made.
    Users,
    /// How the users of a side were before the fence.
    Fence(Side),
    /// Settings of a side as they were before ours.
    Settings(Side),
    /// A full copy that began.
    Copied(Flow),
    /// Where the way back begins, and what the old owner had written until then.
    Sealed(Flow),
    /// What late writes were found before the old owner began to follow.
    Late(Flow),
}

#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
    name: String,
}

const FACT: &str = "value";

impl Memory {
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { folder: folder.to_owned(), name: name.to_owned() }
    }

    fn facts(&self, matter: Matter) -> Result<Facts> {
        let matter = match matter {
            Matter::Users => "users".to_owned(),
            Matter::Fence(side) => format!("fence-{side}"),
            Matter::Settings(side) => format!("settings-{side}"),
            Matter::Copied(flow) => format!("copied-to-{}", flow.to()),
            Matter::Sealed(flow) => format!("sealed-to-{}", flow.to()),
            Matter::Late(flow) => format!("late-to-{}", flow.to()),
        };
        Facts::open(self.folder.join(format!("redis-{}-{matter}.json", self.name)))
    }

    pub fn get<T: DeserializeOwned>(&self, matter: Matter) -> Result<Option<T>> {
        let Some(text) = self.facts(matter)?.get(FACT) else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Error::permanent(ErrorKind::Corrupt, format!("what was written down of {matter:?}: {error}"))
        })
    }

    /// On disk when it returns.
    pub fn set<T: Serialize>(&self, matter: Matter, value: &T) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|error| Error::permanent(ErrorKind::Other, format!("write down {matter:?}: {error}")))?;
        self.facts(matter)?.set(FACT, &text)
    }

    pub fn forget(&self, matter: Matter) -> Result<()> {
        self.facts(matter)?.forget(FACT)
    }
}
