//! The engine's small ports: the application's background workers, and the guard as a second process.

use super::launch;
use crate::paths::RunFolder;
use async_trait::async_trait;
use rehome_engine::ports::{EntryPort, EntryTaken, GuardPort, Workers};
use rehome_part::{Error, ErrorKind, Result, Side};
use rehome_spec::Worker;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Runs the user's own words by `/bin/sh -c`, with the side in `REHOME_SIDE`; nothing is pasted into them.
#[derive(Debug)]
pub struct ShellWorkers {
    pub workers: Vec<Worker>,
}

/// A worker's command that takes longer is ended: the pause of a switch is being paid meanwhile.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);

impl ShellWorkers {
    async fn run(worker: &Worker, command: &str, side: Side) -> Result<bool> {
        let mut child = Command::new("/bin/sh");
        child.arg("-c").arg(command).envs(&worker.env).env("REHOME_SIDE", side.to_string());
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let failed = |text: String| {
            Error::permanent(ErrorKind::Other, format!("worker {}: {text}", worker.name)).on(side)
        };
        match tokio::time::timeout(COMMAND_DEADLINE, child.status()).await {
            Ok(Ok(status)) => Ok(status.success()),
            Ok(Err(error)) => Err(failed(format!("`{command}` cannot run: {error}"))),
            Err(_) => Err(failed(format!("`{command}` took longer than {} s", COMMAND_DEADLINE.as_secs()))),
        }
    }
}

#[async_trait]
impl Workers for ShellWorkers {
    async fn stop(&self, side: Side) -> Result<()> {
        for worker in &self.workers {
            Self::run(worker, &worker.stop, side).await?;
            if !Self::run(worker, &worker.is_stopped, side).await? {
                let text = format!("worker {} is still running after `{}`", worker.name, worker.stop);
                return Err(Error::permanent(ErrorKind::Other, text)
                    .on(side)
                    .hint(format!("see `{}`", worker.is_stopped)));
            }
        }
        Ok(())
    }

    async fn start(&self, side: Side) -> Result<()> {
        for worker in &self.workers {
            if !Self::run(worker, &worker.start, side).await? {
                let text = format!("worker {}: `{}` failed", worker.name, worker.start);
                return Err(Error::temporary(ErrorKind::Other, text).on(side));
            }
        }
        Ok(())
    }
}

/// Starts `rehome __guard RUN` beside the engine.
#[derive(Debug)]
pub struct GuardProcess {
    pub home: PathBuf,
    pub run: RunFolder,
    /// Test instruments for the guard; empty in every ordinary run.
    pub arguments: Vec<String>,
}

#[async_trait]
impl GuardPort for GuardProcess {
    async fn start(&self) -> Result<()> {
        let mut child =
            launch::start("__guard", &self.home, &self.run, &self.run.guard_log(), &self.arguments).map_err(
                |error| {
                    Error::temporary(ErrorKind::Other, format!("the guard cannot be started: {}", error.text))
                },
            )?;
        // Somebody has to take its exit status, or it stays as a zombie while the engine lives.
        std::thread::spawn(move || child.wait());
        Ok(())
    }
}

/// The entry of a run on this machine: a lock that the kernel takes back from the dead. A switch holds it, and so does `rehome entry`
/// while it changes something.
#[derive(Debug)]
pub struct EntryLock {
    pub path: PathBuf,
}

impl EntryPort for EntryLock {
    fn take(&self) -> Result<Option<EntryTaken>> {
        let failed = |error: std::io::Error| {
            Error::temporary(ErrorKind::Other, format!("{}: {error}", self.path.display()))
        };
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }
}
