//! A copy of the journal and the register at a place the user names, renewed after every change of state by a thread of
//! its own: a slow or broken place never stops the run, it only becomes visible in [`CopyHealth`].

use crate::database;
use crate::journal::{DECISION_FILE, JOURNAL_FILE};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How the copy is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyHealth {
    /// Copies asked for, and finished (well or not).
    pub wanted: u64,
    pub finished: u64,
    /// Why the last one failed; `None` when it succeeded.
    pub error: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    health: Mutex<CopyHealth>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, CopyHealth> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that copies. Ends when its journal is dropped.
#[derive(Debug)]
pub(crate) struct Copier {
    shared: Arc<Shared>,
    stop: Arc<std::sync::atomic::AtomicBool>,
}

impl Copier {
    pub fn start(folder: PathBuf, place: PathBuf) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (ours, ending) = (Arc::clone(&shared), Arc::clone(&stop));
        std::thread::Builder::new()
            .name("journal-copy".into())
            .spawn(move || run(&ours, &ending, &folder, &place))?;
        Ok(Self { shared, stop })
    }

    /// Asks for a fresh copy; requests made while one is under way become one.
    pub fn ask(&self) {
        self.shared.lock().wanted += 1;
        self.shared.changed.notify_all();
    }

    pub fn health(&self) -> CopyHealth {
        self.shared.lock().clone()
    }

    /// Waits until everything asked for so far is copied or has failed.
    pub fn settle(&self, at_most: Duration) -> CopyHealth {
        let end = Instant::now() + at_most;
        let mut health = self.shared.lock();
        let wanted = health.wanted;
        while health.finished < wanted {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            health = self.shared.changed.wait_timeout(health, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        health.clone()
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        self.shared.changed.notify_all();
    }
}

fn run(shared: &Shared, stop: &std::sync::atomic::AtomicBool, folder: &Path, place: &Path) {
    loop {
        let wanted = {
            let mut health = shared.lock();
            while health.finished >= health.wanted && !stop.load(std::sync::atomic::Ordering::Acquire) {
                health = shared.changed.wait(health).unwrap_or_else(PoisonError::into_inner);
            }
            if health.finished >= health.wanted {
                return;
            }
            health.wanted
        };
        let outcome = copy_both(folder, place);
        let mut health = shared.lock();
        health.finished = wanted;
        health.error = outcome.err().map(|error| error.to_string());
        shared.changed.notify_all();
    }
}

/// The journal first: a copied register then never knows less than the copied journal says was decided.
fn copy_both(folder: &Path, place: &Path) -> Result<()> {
    copy_one(&folder.join(JOURNAL_FILE), &place.join(JOURNAL_FILE))?;
    let register = folder.join(DECISION_FILE);
    if register.exists() { copy_one(&register, &place.join(DECISION_FILE)) } else { Ok(()) }
}

fn copy_one(from: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_extension("db.new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::Io(error)),
        _ => {}
    }
    database::make_private(&fresh)?;
    let connection = database::connect_to_read(from)?;
    connection.execute("VACUUM INTO ?1", [fresh.to_string_lossy()])?;
    std::fs::File::open(&fresh)?.sync_all()?;
    // a log that a reader of the old copy left behind must never be taken for the new copy's
    for suffix in ["-wal", "-shm"] {
        let mut stale = to.as_os_str().to_owned();
        stale.push(suffix);
        match std::fs::remove_file(PathBuf::from(stale)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Error::Io(error)),
            _ => {}
        }
    }
    std::fs::rename(&fresh, to)?;
    if let Some(folder) = to.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}
