//! Where runs live on this machine: one folder per run, private to its user.

use crate::exit::{CliError, with_path};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// `--state`, else `$XDG_STATE_HOME/rehome`, else `~/.local/state/rehome`.
pub fn state_home(option: Option<&Path>) -> Result<PathBuf, CliError> {
    if let Some(path) = option {
        return std::path::absolute(path).map_err(with_path(path));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("rehome"))
        .ok_or_else(|| {
            CliError::failed(
                "neither XDG_STATE_HOME nor HOME is set, so there is no place for the run's journal",
            )
            .hint("name one with `--state DIR`")
        })
}

/// The files of one run. Names are part of the format: `status`, `report` and `recover` read them without an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    pub path: PathBuf,
}

impl RunFolder {
    pub fn new(home: &Path, run: &str) -> Self {
        Self { path: home.join(run) }
    }

    pub fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub fn journal(&self) -> PathBuf {
        self.path.join("journal.db")
    }
    /// The migration file as it was when the run began; the engine reads this one.
    pub fn migration(&self) -> PathBuf {
        self.path.join("migration.toml")
    }
    pub fn socket(&self) -> PathBuf {
        self.path.join("engine.sock")
    }
    pub fn guard_socket(&self) -> PathBuf {
        self.path.join("guard.sock")
    }
    /// Locked by a switch, and by whoever changes what stands in front of the gateways.
    pub fn entry_lock(&self) -> PathBuf {
        self.path.join("entry.lock")
    }
    pub fn secret(&self) -> PathBuf {
        self.path.join("secret")
    }
    pub fn log(&self) -> PathBuf {
        self.path.join("engine.log")
    }
    pub fn guard_log(&self) -> PathBuf {
        self.path.join("guard.log")
    }

    pub fn exists(&self) -> bool {
        self.journal().exists()
    }

    /// Makes the folder (0700) with the migration file and a fresh secret inside.
    pub fn create(&self, migration: &str) -> Result<(), CliError> {
        private_folder(&self.path)?;
        write_private(&self.migration(), migration.as_bytes())?;
        if !self.secret().exists() {
            write_private(&self.secret(), fresh_secret()?.as_bytes())?;
        }
        Ok(())
    }

    pub fn read_secret(&self) -> Result<String, CliError> {
        let path = self.secret();
        fs::read_to_string(&path).map(|text| text.trim().to_owned()).map_err(with_path(&path))
    }
}

pub fn private_folder(path: &Path) -> Result<(), CliError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(with_path(path))
}

/// Writes a whole file (0600) or nothing: a temporary file beside it, synced, then renamed.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), CliError> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let written = (|| {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(folder) = path.parent() {
            fs::File::open(folder)?.sync_all()?;
        }
        Ok(())
    })();
    written.map_err(with_path(path))
}

/// 32 hex digits from the system's random source.
pub fn fresh_secret() -> Result<String, CliError> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| CliError::failed(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Every run of this machine's user, newest first.
pub fn all_runs(home: &Path) -> Result<Vec<RunFolder>, CliError> {
    let entries = match fs::read_dir(home) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(with_path(home)(error)),
    };
    let mut runs: Vec<(std::time::SystemTime, RunFolder)> = entries
        .filter_map(Result::ok)
        .map(|entry| RunFolder { path: entry.path() })
        .filter(RunFolder::exists)
        .map(|run| {
            (
                fs::metadata(run.migration())
                    .and_then(|meta| meta.modified())
                    .unwrap_or(std::time::UNIX_EPOCH),
                run,
            )
        })
        .collect();
    runs.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.path.cmp(&b.1.path)));
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// A unix socket's path may have 107 bytes only; through its folder's descriptor any folder will do.
pub fn reachable_socket(path: &Path) -> std::io::Result<(PathBuf, Option<fs::File>)> {
    use std::os::fd::AsRawFd;
    if path.as_os_str().len() <= 100 {
        return Ok((path.to_owned(), None));
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok((path.to_owned(), None));
    };
    let folder = fs::File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((short, Some(folder)))
}
