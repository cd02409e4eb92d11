//! A MariaDB server of its own for a test: made, started on a socket and a loopback port, and ended here. Debian's programs, never
//! the machine's server.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(60);
/// A port that was free may be taken when the server asks for it.
const ATTEMPTS: u32 = 5;

/// Quick rather than safe: a test's server need not outlive the machine.
const USUAL: [&str; 15] = [
    "--no-defaults",
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--log-bin=bin",
    "--binlog-format=ROW",
    "--log-slave-updates=ON",
    "--sync-binlog=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=OFF",
    "--innodb-buffer-pool-size=24M",
    "--innodb-log-file-size=16M",
    "--innodb-fast-shutdown=2",
    "--performance-schema=OFF",
    "--key-buffer-size=1M",
    "--aria-pagecache-buffer-size=8M",
];

/// Is there a MariaDB? Where there is none, it says loudly that the test did not run, or fails where tools are required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn is_here() -> bool {
    let found = program("mariadbd").is_some();
    if !found {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "MariaDB is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: MariaDB is missing; run scripts/tools.sh");
    }
    found
}

fn program(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(name))
        .find(|path| path.exists())
}

/// A server that runs. Ends when dropped, and its files with it.
#[derive(Debug)]
pub struct Mariadb {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Mariadb {
    /// Makes and starts a server with these options besides the usual ones; root comes in by its socket, without a password.
    ///
    /// # Errors
    /// A program failed; its words are in the error.
    pub fn start(options: &[&str]) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let template = template()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut attempt = 1;
        loop {
            let folder = folder()?;
            for part in ["data", "tmp"] {
                copy_tree(&template.join(part), &folder.path().join(part))?;
            }
            let port = free_port()?;
            let process = serve(folder.path(), port, number, options)?;
            let mut server = Self { process, folder, port };
            match server.wait() {
                Ok(()) => return Ok(server),
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => attempt += 1,
            }
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        loop {
            if self.folder.path().join("s").exists() && self.sql("mysql", "SELECT 1").is_ok() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("the server ended: {status}\n{log}")));
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The address of one of its databases for this user, by its port.
    pub fn address(&self, user: &str, database: &str) -> String {
        format!("mysql://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The same by its socket.
    pub fn socket_address(&self, user: &str, database: &str) -> String {
        format!("mysql://{user}@socket/{database}?socket={}/s", self.folder.path().display())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL as root and returns what it printed, without decoration.
    ///
    /// # Errors
    /// The server refused a statement; its words are in the error.
    pub fn sql(&self, database: &str, text: &str) -> io::Result<String> {
        let mut command = command("mariadb")?;
        command.args(["--no-defaults", "-u", "root", "-N", "-B", "--raw", "-D", database, "-S"]);
        let output = command.arg(self.folder.path().join("s")).args(["-e", text]).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Where its socket, its log and its data are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Mariadb {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}

fn command(name: &str) -> io::Result<Command> {
    let path = program(name)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no program {name} here")))?;
    let mut command = Command::new(path);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    Ok(command)
}

fn serve(folder: &Path, port: u16, number: u32, options: &[&str]) -> io::Result<Child> {
    let mut command = command("mariadbd")?;
    if let Some((user, group)) = owner()? {
        command.uid(user).gid(group);
    }
    command.args(USUAL);
    let files =
        [("datadir", "data"), ("tmpdir", "tmp"), ("socket", "s"), ("pid-file", "pid"), ("log-error", "log")];
    for (name, file) in files {
        command.arg(format!("--{name}={}", folder.join(file).display()));
    }
    // Distinct among all servers of a test; two tests never meet.
    command.arg(format!("--port={port}")).arg(format!("--server-id={number}")).args(options);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn folder() -> io::Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("rehome-my").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    give(folder.path())?;
    Ok(folder)
}

/// To the user that the server runs as: it refuses to run as root.
fn give(path: &Path) -> io::Result<()> {
    if let Some((user, group)) = owner()? {
        chown(path, Some(user), Some(group))?;
    }
    Ok(())
}

/// Whom a server's files must belong to; `None`: to whoever runs the test.
///
/// # Errors
/// There is nobody else here that it could run as.
pub fn owner() -> io::Result<Option<(u32, u32)>> {
    if rustix::process::geteuid().is_root() { crate::postgres::user("mysql").map(Some) } else { Ok(None) }
}

/// The data of a server that was never started, made once and kept beside the test's program: making it takes longer than all else.
fn template() -> io::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let beside = program.parent().ok_or_else(|| io::Error::other("a program lies in a folder"))?;
    let version = command("mariadbd")?.args(["--no-defaults", "--version"]).output()?.stdout;
    let words = String::from_utf8_lossy(&version).into_owned();
    let number = words.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
    let kept = beside.join(format!("mariadb-{}", number.unwrap_or("unknown")));
    if kept.exists() {
        return Ok(kept);
    }
    let made = make_template()?;
    let copy = tempfile::Builder::new().prefix("mariadb-").tempdir_in(beside)?;
    let whole = copy.path().join("whole");
    copy_tree(made.path(), &whole)?;
    // Whoever is first wins; the others have the same.
    match std::fs::rename(&whole, &kept) {
        Err(error) if !kept.exists() => Err(error),
        _ => Ok(kept),
    }
}

fn make_template() -> io::Result<tempfile::TempDir> {
    let folder = folder()?;
    let mut command = command("mariadb-install-db")?;
    if let Some((user, group)) = owner()? {
        command.uid(user).gid(group);
    }
    command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    command.args(["--skip-name-resolve", "--innodb-log-file-size=16M"]);
    // A server that starts removes the temporary tables that it finds, also those of another.
    let tmp = folder.path().join("tmp");
    std::fs::create_dir(&tmp)?;
    give(&tmp)?;
    command.arg(format!("--tmpdir={}", tmp.display()));
    let output = command.arg(format!("--datadir={}", folder.path().join("data").display())).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(folder)
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir(to)?;
    give(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
            give(&target)?;
        }
    }
    Ok(())
}
