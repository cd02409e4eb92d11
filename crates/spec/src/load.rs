//! From a file to a [`Migration`], or to everything that is wrong with it. Reads that one file and nothing else.

use crate::check;
use crate::problem::{self, Level, Problem, Raw, SpecError, name_of};
use crate::{Database, Gateway, Migration, Secret};
use std::io::Read;
use std::path::Path;

/// A migration file larger than this is refused unread.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A usable migration file, and what a person should know about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub migration: Migration,
    pub warnings: Vec<Problem>,
    name: String,
}

impl Loaded {
    /// The warnings for people; empty when there are none.
    pub fn render_warnings(&self, color: bool) -> String {
        problem::render(&self.warnings, &self.name, color)
    }
}

impl Migration {
    /// Reads and checks a migration file.
    ///
    /// # Errors
    /// Everything that is wrong with it, as far as it can be told at once.
    pub fn load(path: &Path) -> Result<Self, SpecError> {
        Self::load_with_warnings(path).map(|loaded| loaded.migration)
    }

    /// Like [`Migration::load`], with the warnings.
    ///
    /// # Errors
    /// As [`Migration::load`].
    pub fn load_with_warnings(path: &Path) -> Result<Loaded, SpecError> {
        let name = name_of(path);
        let bytes = read(path).map_err(|problem| SpecError::one(&name, problem))?;
        match String::from_utf8(bytes) {
            Ok(text) => Self::parse_with_warnings(&text, &name),
            Err(error) => Err(not_utf8(error.as_bytes(), error.utf8_error().valid_up_to(), &name)),
        }
    }

    /// Checks the text of a migration file; `name` stands for it in messages.
    ///
    /// # Errors
    /// As [`Migration::load`].
    pub fn parse(text: &str, name: &str) -> Result<Self, SpecError> {
        Self::parse_with_warnings(text, name).map(|loaded| loaded.migration)
    }

    /// Like [`Migration::parse`], with the warnings.
    ///
    /// # Errors
    /// As [`Migration::load`].
    pub fn parse_with_warnings(text: &str, name: &str) -> Result<Loaded, SpecError> {
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(SpecError::one(name, too_large()));
        }
        let mut found = check::check(text);
        let parsed: Option<Self> = if found.iter().any(|raw| raw.level == Level::Error) {
            None
        } else {
            match toml::from_str(text) {
                Ok(migration) => Some(migration),
                Err(error) => {
                    // The checks let something pass that the shapes do not. The words of the error may quote a secret.
                    let span = error.span().unwrap_or(0..0);
                    found.push(Raw::error(&span, "this is not what the migration file takes here"));
                    None
                }
            }
        };
        found.sort_by_key(|raw| raw.span.as_ref().map_or(0, |span| span.start));
        let problems: Vec<Problem> = found.into_iter().map(|raw| raw.place(text)).collect();
        match parsed {
            Some(migration) => Ok(Loaded { migration, warnings: problems, name: name.into() }),
            None => Err(SpecError { name: name.into(), problems }),
        }
    }

    /// Every secret of the file with its place in words (`objects "media", source, secret_key`), in file order.
    pub fn secrets(&self) -> Vec<(String, &Secret)> {
        let mut found: Vec<(String, &Secret)> = Vec::new();
        for objects in &self.objects {
            let part = format!("objects \"{}\"", objects.name);
            for (side, store) in [("source", &objects.source), ("target", &objects.target)] {
                let keys = [("access_key", &store.access_key), ("secret_key", &store.secret_key)];
                found.extend(
                    keys.into_iter().filter_map(|(key, secret)| {
                        Some((format!("{part}, {side}, {key}"), secret.as_ref()?))
                    }),
                );
            }
            if let Some(application) = &objects.application {
                for (side, keys) in [("source", &application.source), ("target", &application.target)] {
                    found.push((format!("{part}, application {side}, access_key"), &keys.access_key));
                    found.push((format!("{part}, application {side}, secret_key"), &keys.secret_key));
                }
            }
            let changes = objects.changes.as_ref();
            let hooks = [
                ("changes source", changes.map(|changes| &changes.source)),
                ("changes target", changes.and_then(|changes| changes.target.as_ref())),
                ("fence source", objects.fence.source.as_ref()),
                ("fence target", objects.fence.target.as_ref()),
            ];
            found.extend(
                hooks.into_iter().filter_map(|(what, hook)| {
                    Some((format!("{part}, {what}, token"), hook?.token.as_ref()?))
                }),
            );
        }
        for database in &self.databases {
            for (side, end) in [("source", &database.source), ("target", &database.target)] {
                let part = format!("databases \"{}\", {side}", database.name);
                found.extend(end.password.as_ref().map(|secret| (format!("{part}, password"), secret)));
                found.extend(end.applications.iter().filter_map(|login| {
                    Some((format!("{part}, application {}, password", login.user), login.password.as_ref()?))
                }));
            }
            let part = format!("databases \"{}\", pgbouncer", database.name);
            found.extend(
                database
                    .pgbouncers
                    .iter()
                    .filter_map(|bouncer| Some((format!("{part}, password"), bouncer.password.as_ref()?))),
            );
        }
        let tokens = self.gateways.iter();
        found.extend(tokens.filter_map(|gateway| {
            Some((format!("gateway \"{}\", token", gateway.name), gateway.token.as_ref()?))
        }));
        found
    }

    /// The gateways of the file; when it names none, the one that is expected below `home` (where rehome keeps its state,
    /// `$XDG_STATE_HOME/rehome`), at `gateways/<name>/gateway.sock`. It outlives runs, so it is in none of their folders.
    pub fn gateways_or_default(&self, home: &Path) -> Vec<Gateway> {
        if !self.gateways.is_empty() {
            return self.gateways.clone();
        }
        let control = home.join("gateways").join(&self.migration.name).join("gateway.sock");
        vec![Gateway { name: "gateway".into(), control, token: None, remote: None }]
    }

    /// Is there anything that a gateway does: a service, a front door of a database, or a PgBouncer that it drives?
    pub fn needs_gateways(&self) -> bool {
        !self.services.is_empty() || self.databases.iter().any(Database::is_behind_gateway)
    }

    /// The secret that a gateway and its engine show each other; `None` when the file names none, or no such gateway.
    pub fn gateway_token(&self, gateway: &str) -> Option<&Secret> {
        self.gateways.iter().find(|found| found.name == gateway)?.token.as_ref()
    }
}

fn too_large() -> Raw {
    Raw::whole_file(format!("the file is larger than {} KiB", MAX_FILE_BYTES >> 10))
        .hint("this is not a migration file; write one with `rehome init`")
}

fn read(path: &Path) -> Result<Vec<u8>, Raw> {
    let failed = |error: std::io::Error| {
        let text = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => format!("cannot read the file: {error}"),
        };
        let problem = Raw::whole_file(text);
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                problem.hint("write one with `rehome init`, or name it with `--file PATH`")
            }
            _ => problem,
        }
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Err(Raw::whole_file("this is a folder, not a migration file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES { Err(too_large()) } else { Ok(bytes) }
}

fn not_utf8(bytes: &[u8], valid: usize, name: &str) -> SpecError {
    let good = String::from_utf8_lossy(&bytes[..valid]);
    let end = good.len();
    let problem = Raw::error(&(end..end), "the file is not UTF-8 text").hint("save it as UTF-8");
    SpecError { name: name.into(), problems: vec![problem.place(&good)] }
}
