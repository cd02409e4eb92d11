//! Starts the kit's processes from the `rehome` binary, waits until each says that it listens, and ends them.

use super::WorldError;
use crate::cloud::process::Ready;
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Reading a large log on a busy machine takes a while; a process that is not ready by then never will be.
const READY: Duration = Duration::from_secs(60);
const LONGEST_LINE: u64 = 64 * 1024;

/// One process of the world. Unless it may outlive us it ends with this value, or with this process, however that ends.
#[derive(Debug)]
pub struct Process {
    /// `a-s3`, `b-shop`, `distance`, …
    pub name: String,
    pub ready: Vec<std::net::SocketAddr>,
    command: (PathBuf, String, PathBuf),
    outlives: bool,
    child: Child,
    /// Its end is the process's sign that we are gone.
    _input: Option<ChildStdin>,
    _output: ChildStdout,
}

/// What is needed to start one.
#[derive(Debug)]
pub(super) struct Launch<'a, C> {
    pub rehome: &'a Path,
    /// `s3`, `shop` or `delay`.
    pub kind: &'static str,
    pub name: String,
    pub config: &'a C,
    /// Where configuration and log go.
    pub folder: &'a Path,
    pub outlives: bool,
}

impl<C: Serialize> Launch<'_, C> {
    pub(super) async fn start(self) -> Result<Process, WorldError> {
        let config = self.folder.join(format!("{}.json", self.name));
        let text = serde_json::to_vec_pretty(self.config).expect("configurations are plain data");
        write_secret(&config, &text)?;
        Process::spawn((self.rehome.into(), self.kind.into(), config), self.name, self.outlives).await
    }
}

impl Process {
    async fn spawn(
        command: (PathBuf, String, PathBuf),
        name: String,
        outlives: bool,
    ) -> Result<Self, WorldError> {
        let failed = |why: String| WorldError::Process { name: name.clone(), why };
        let (rehome, kind, config) = &command;
        let log = File::options().create(true).append(true).open(config.with_extension("log"));
        let log = log.map_err(|error| failed(error.to_string()))?;
        let mut child = Command::new(rehome)
            .args(["__cloud", kind])
            .arg(config)
            .stdin(if outlives { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(log)
            // A database ends its own children; the end of our pipe tells it to.
            .kill_on_drop(!outlives && kind != "postgres")
            .process_group(0) // Ctrl-C is for us; we end them ourselves
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", rehome.display())))?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| failed("it has no standard output".into()))?;
        let mut reader = BufReader::new(output).take(LONGEST_LINE);
        let mut line = String::new();
        let read = tokio::time::timeout(READY, reader.read_line(&mut line)).await;
        let ready: Option<Ready> = match read {
            Ok(Ok(_)) => serde_json::from_str(&line).ok(),
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("not ready after {} s", READY.as_secs()))),
        };
        let Some(ready) = ready else {
            return Err(failed(format!(
                "it ended before it was ready; see {}",
                config.with_extension("log").display()
            )));
        };
        let output = reader.into_inner().into_inner();
        Ok(Self { name, ready: ready.addresses, command, outlives, child, _input: input, _output: output })
    }

    /// `None` once it has been waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self) -> Result<(), WorldError> {
        let failed =
            |error: std::io::Error| WorldError::Process { name: self.name.clone(), why: error.to_string() };
        self.child.kill().await.map_err(failed)
    }

    /// Starts it again on the addresses it had.
    pub async fn restart(&mut self) -> Result<(), WorldError> {
        let started = Self::spawn(self.command.clone(), self.name.clone(), self.outlives).await?;
        *self = started;
        Ok(())
    }
}

/// A file that only its owner may read.
pub(super) fn write_secret(path: &Path, content: &[u8]) -> Result<(), WorldError> {
    let failed = |source| WorldError::File { path: path.into(), source };
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(content).map_err(failed)
}

/// Addresses for processes that have to come back to where they were: asked of the kernel once, then fixed.
pub(super) fn free_addresses<const N: usize>() -> Result<[std::net::SocketAddr; N], WorldError> {
    let failed = |source| WorldError::File { path: PathBuf::from("127.0.0.1:0"), source };
    // All at once, so that none is given twice.
    let mut listeners = Vec::new();
    for _ in 0..N {
        listeners.push(std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?);
    }
    let mut addresses = [std::net::SocketAddr::from(([127, 0, 0, 1], 0)); N];
    for (address, listener) in addresses.iter_mut().zip(&listeners) {
        *address = listener.local_addr().map_err(failed)?;
    }
    Ok(addresses)
}
