//! A PostgreSQL server of its own for a test: made, started on a socket and ended here. Debian's programs or, of another version, those that
//! `scripts/postgres_versions.sh` brought; never the machine's cluster.

mod process;
mod versions;

pub use versions::{major_of, programs_of, programs_of_or_skip};

pub use process::{APPLICATION, DATABASE, MIGRATION, PostgresConfig, main};

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where Debian keeps the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";
const START: Duration = Duration::from_secs(60);

/// The same for a test: where there are none it says loudly that the test did not run, or fails where tools are required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn programs_or_skip() -> Option<PathBuf> {
    let found = programs();
    if found.is_none() {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "PostgreSQL is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: PostgreSQL is missing; run scripts/tools.sh");
    }
    found
}

/// The programs of the newest version here; `None` where there are none.
pub fn programs() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(VERSIONS)
        .ok()?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").exists().then(|| (version, path.join("bin")))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, path)| path)
}

/// A server that runs. Ends when dropped, and its files with it.
#[derive(Debug)]
pub struct Postgres {
    process: Child,
    folder: tempfile::TempDir,
    programs: PathBuf,
    port: u16,
}

/// Whom a server's files must belong to: it refuses to run as root. `None`: to whoever runs the test.
///
/// # Errors
/// There is nobody else here that it could run as.
pub fn owner() -> io::Result<Option<(u32, u32)>> {
    if rustix::process::geteuid().is_root() { user("postgres").map(Some) } else { Ok(None) }
}

impl Postgres {
    /// Makes and starts a server with these settings besides the usual ones; everybody may come in by its socket as anybody.
    ///
    /// # Errors
    /// A program failed; its words are in the error.
    pub fn start(programs: &Path, settings: &[(&str, &str)]) -> io::Result<Self> {
        Self::start_in(&std::env::temp_dir(), programs, settings)
    }

    /// The same with its files below `disk`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(disk: &Path, programs: &Path, settings: &[(&str, &str)]) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rehome-pg").tempdir_in(disk)?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let owner = owner()?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group))?;
            chown(&data, Some(user), Some(group))?;
        }
        let programs = &versions::within_reach(programs, folder.path(), owner)?;
        let mut made = Self::command(programs, "initdb", owner);
        made.arg("-D").arg(&data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        ]);
        let made = made.output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let process = Self::serve(programs, folder.path(), owner, settings)?;
        let port = settings.iter().find(|(name, _)| *name == "port").and_then(|(_, port)| port.parse().ok());
        let port = port.unwrap_or(5432);
        let mut server = Self { process, folder, programs: programs.to_owned(), port };
        server.wait()?;
        Ok(server)
    }

    fn command(programs: &Path, name: &str, owner: Option<(u32, u32)>) -> Command {
        let mut command = Command::new(programs.join(name));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
        if let Some((user, group)) = owner {
            command.uid(user).gid(group);
        }
        command
    }

    fn serve(
        programs: &Path,
        folder: &Path,
        owner: Option<(u32, u32)>,
        settings: &[(&str, &str)],
    ) -> io::Result<Child> {
        let mut command = Self::command(programs, "postgres", owner);
        command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
        let usual = [
            ("listen_addresses", ""),
            ("fsync", "off"),
            ("shared_buffers", "16MB"),
            ("wal_level", "logical"),
        ];
        for (name, value) in usual.iter().chain(settings) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        loop {
            let mut asked =
                Self::command(&versions::client(&self.programs, "pg_isready")?, "pg_isready", None);
            asked.arg("-h").arg(self.folder.path()).args(["-U", "postgres", "-d", "postgres"]);
            asked.args(["-p", &self.port.to_string()]);
            if asked.output()?.status.success() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("the server ended: {status}")));
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it again with these settings if it ended.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self, settings: &[(&str, &str)]) -> io::Result<()> {
        if self.process.try_wait()?.is_some() {
            self.process = Self::serve(&self.programs, self.folder.path(), owner()?, settings)?;
            self.wait()?;
        }
        Ok(())
    }

    /// The address of one of its databases for this user.
    pub fn address(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@socket:{}/{database}?host={}", self.port, self.folder.path().display())
    }

    /// The number in the name of its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs SQL with `psql` and returns what it printed, without decoration.
    ///
    /// # Errors
    /// The server refused a statement; its words are in the error.
    pub fn sql(&self, database: &str, text: &str) -> io::Result<String> {
        let mut command = Self::command(&versions::client(&self.programs, "psql")?, "psql", None);
        command.arg("-h").arg(self.folder.path()).args(["-U", "postgres", "-d", database]);
        command.args(["-p", &self.port.to_string()]);
        let output = command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Where its socket and its data are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT: at once, and its children with it; SIGKILL would leave them.
        let id = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            let _gone = rustix::process::kill_process(id, rustix::process::Signal::QUIT);
        }
        let _ended = self.process.wait();
    }
}

/// Number and group of a user, from the system's list.
pub(crate) fn user(name: &str) -> io::Result<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd")?;
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no user {name} here"));
    let line = users.lines().find(|line| line.split(':').next() == Some(name)).ok_or_else(missing)?;
    let mut numbers = line.split(':').skip(2).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(user)), Some(Ok(group))) => Ok((user, group)),
        _ => Err(missing()),
    }
}
