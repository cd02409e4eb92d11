//! The epoch file and the lock of its folder: what survives a crash. Writes are atomic and durable before they return; a file
//! that cannot be believed stops the start. Never decides anything.

use crate::config::GatewayError;
use crate::grant::Saved;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const NAME: &str = "epoch.json";
/// Larger than any state this program writes.
const MAX_BYTES: u64 = 1 << 20;

/// The epoch file of one gateway, locked for this process.
#[derive(Debug)]
pub(crate) struct StateFile {
    folder: PathBuf,
    _lock: File,
}

impl StateFile {
    /// Locks the folder (made with mode 0700 if missing) and reads the state; a missing file is a first start.
    pub fn open(folder: &Path) -> Result<(Self, Saved), GatewayError> {
        let unusable =
            |error: io::Error| GatewayError::State { path: folder.into(), text: error.to_string() };
        make_private_folder(folder).map_err(unusable)?;
        let lock = private().truncate(false).open(folder.join("lock")).map_err(unusable)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| GatewayError::State {
            path: folder.into(),
            text: match error {
                rustix::io::Errno::WOULDBLOCK => "another gateway uses it".into(),
                other => other.to_string(),
            },
        })?;
        let file = Self { folder: folder.into(), _lock: lock };
        let saved = file.read()?;
        Ok((file, saved))
    }

    fn read(&self) -> Result<Saved, GatewayError> {
        let path = self.folder.join(NAME);
        let damaged = |text: String| GatewayError::DamagedState { path: path.clone(), text };
        match fs::metadata(&path) {
            Ok(meta) if meta.len() > MAX_BYTES => return Err(damaged("it is too large".into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::first()),
            Err(error) => return Err(damaged(error.to_string())),
        }
        let bytes = fs::read(&path).map_err(|error| damaged(error.to_string()))?;
        let saved: Saved = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        saved.check().map_err(damaged)?;
        Ok(saved)
    }

    /// Replaces the state; when this returns it survives a power cut.
    pub fn write(&self, saved: &Saved) -> io::Result<()> {
        let new = self.folder.join("epoch.json.new");
        let mut file = private().truncate(true).open(&new)?;
        let mut bytes = serde_json::to_vec_pretty(saved)?;
        bytes.push(b'\n');
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, self.folder.join(NAME))?;
        File::open(&self.folder)?.sync_all()
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Makes a folder that only its owner can enter; one that exists is left as it is.
pub(crate) fn make_private_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rehome_part::{Epoch, Side, Token};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_written_is_read_and_nobody_else_may_look() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("state");
        let (file, saved) = StateFile::open(&folder).unwrap();
        assert_eq!(saved, Saved::first());
        let changed = Saved { epoch: Epoch(2), owner: Side::Target, highest_token: Token(3), ..saved };
        file.write(&changed).unwrap();
        drop(file);
        let (_file, again) = StateFile::open(&folder).unwrap();
        assert_eq!(again, changed);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(NAME))), (0o700, 0o600));
    }

    #[test]
    fn one_process_per_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFile::open(folder.path()).unwrap();
        let error = StateFile::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another gateway uses it"), "{error}");
        drop(first);
        StateFile::open(folder.path()).unwrap();
    }

    #[test]
    fn a_damaged_file_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let good = serde_json::to_string(&Saved::first()).unwrap();
        let bad = [
            String::new(),
            "\0\0\0\0".into(),
            good.chars().take(40).collect(),
            good.replace("\"version\":1", "\"version\":2"),
            good.replace("\"epoch\":1", "\"epoch\":0"),
            good.replace("\"intent\":null", "\"intent\":9"),
            good.replace("\"armed\":null", "\"armed\":{\"epoch\":1,\"held\":true}"),
            good.replace("\"run\"", "\"ran\""),
        ];
        for text in bad {
            fs::write(folder.path().join(NAME), &text).unwrap();
            let error = StateFile::open(folder.path()).unwrap_err();
            assert!(matches!(error, GatewayError::DamagedState { .. }), "{text}: {error}");
            assert!(error.to_string().contains("epoch.json"), "{error}");
        }
    }
}
