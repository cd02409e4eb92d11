//! Runs a program of the machine: no shell, a bounded time, bounded output, ended with its caller.

use crate::EntryError;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// What a program may say; the rest is read and dropped.
const MAX_OUTPUT: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct Ran {
    pub status: ExitStatus,
    /// Both streams as text, bytes that are no UTF-8 replaced.
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The last lines of what it said, for an error message.
    pub fn complaint(&self) -> String {
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let lines: Vec<&str> = said.trim().lines().collect();
        lines[lines.len().saturating_sub(6)..].join("\n")
    }
}

/// Runs `program` to its end, whatever its exit status.
pub async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    patience: Duration,
) -> Result<Ran, EntryError> {
    let failed = |text: String| EntryError::Program { program: program.display().to_string(), text };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async { tokio::join!(text_of(stdout), text_of(stderr), child.wait()) };
    match tokio::time::timeout(patience, all).await {
        Ok((stdout, stderr, Ok(status))) => Ok(Ran { status, stdout, stderr }),
        Ok((_, _, Err(error))) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("did not end within {patience:?}"))),
    }
}

/// The same, and a status other than 0 is an error that holds what the program said.
pub async fn run_well<A: AsRef<OsStr>>(
    program: &Path,
    arguments: &[A],
    patience: Duration,
) -> Result<Ran, EntryError> {
    let ran = run(program, arguments, patience).await?;
    if ran.status.success() {
        return Ok(ran);
    }
    let text = format!("{}: {}", ran.status, ran.complaint());
    Err(EntryError::Program { program: program.display().to_string(), text })
}

async fn text_of(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut piece) = (Vec::new(), vec![0; 8192]);
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len()).min(length);
        kept.extend(piece.iter().take(room));
    }
    String::from_utf8_lossy(&kept).into_owned()
}
