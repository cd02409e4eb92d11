//! Runs the binary with a state folder of its own, and finds the tools that `scripts/tools.sh` installed.

use rustix::process::{Pid, Signal, kill_process};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct Place {
    pub folder: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A command that sees nothing of the caller's settings.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rehome"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("REHOME_STATE", self.path("state"))
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Ran {
    /// Exit status, stdout and stderr in one text for a snapshot, with the folder's name taken out.
    pub fn snapshot(&self, place: &Place) -> String {
        let text = format!("exit {}\n--- stdout\n{}--- stderr\n{}", self.code, self.stdout, self.stderr);
        text.replace(&place.folder.path().display().to_string(), "[FOLDER]")
    }

    pub fn last_json(&self) -> serde_json::Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| {
            panic!("the last line is no JSON ({error}): {line}\nexit {}\n{}", self.code, self.stderr)
        })
    }
}

/// A program that `scripts/tools.sh` installed; `None` (said loudly) where it is missing and not required.
pub fn tool(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("REHOME_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools"), PathBuf::from);
    let path = folder.join("bin").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(), "{name} is missing: run scripts/tools.sh");
    eprintln!("SKIPPED: {name} is missing; run scripts/tools.sh");
    None
}

/// Waits until `ready` gives something, at most `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(begun.elapsed() < limit, "{what} did not come within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program of the system; `None` (said loudly) where it is missing and not required.
pub fn system(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(),
            "{name} is missing: run scripts/tools.sh"
        );
        eprintln!("SKIPPED: {name} is missing; run scripts/tools.sh");
    }
    found
}

/// Ended politely with its test: nginx and HAProxy end their workers on TERM only.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.id().cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A `rehome gateway` process; ended when dropped, also when it is stopped.
pub struct Gateway {
    child: Child,
    pub listens: SocketAddr,
    /// Where clients of the database `orders` come in, if they do.
    pub front: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
}

impl Gateway {
    pub fn start(place: &Place, file: &str, name: &str) -> Self {
        let ready = place.path(&format!("{name}.ready"));
        let log = std::fs::File::create(place.path(&format!("{name}.log"))).unwrap();
        let arguments = ["--file", file, "gateway", "--name", name, "--end-with-stdin", "--ready"];
        let mut command = place.command(&arguments);
        let mut child =
            command.arg(&ready).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let said: serde_json::Value = wait_for(name, Duration::from_secs(60), || {
            assert!(child.try_wait().unwrap().is_none(), "{name} ended; see its log");
            serde_json::from_slice(&std::fs::read(&ready).ok()?).ok()
        });
        let address = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse().ok());
        // One that only drives others listens nowhere.
        let listens = address(&said["services"]["shop"]).unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
        let front = address(&said["services"]["orders"]);
        Self { child, listens, front, remote: address(&said["remote"]) }
    }

    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}
