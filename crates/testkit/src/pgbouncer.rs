//! A PgBouncer of its own for a test, on a socket in a folder of its own; Debian's program, never the machine's service.

use crate::postgres::owner;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(20);
/// The number in the name of its socket; nothing listens on a port.
pub const PORT: u16 = 6432;
const PROGRAMS: [&str; 2] = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];

/// Where the program is; without it a test says loudly that it did not run, or fails where tools are required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn program_or_skip() -> Option<PathBuf> {
    let found = PROGRAMS.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "PgBouncer is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: PgBouncer is missing; run scripts/tools.sh");
    }
    found
}

/// One that runs. Ends when dropped, and its files with it.
#[derive(Debug)]
pub struct PgBouncer {
    process: Child,
    folder: tempfile::TempDir,
}

impl PgBouncer {
    /// Starts one whose `[databases]` are `databases`, in a file that it includes. `users`: with their passwords, the first may use the
    /// console. `settings`: more lines of its configuration.
    ///
    /// # Errors
    /// It did not start; its log is in the error.
    pub fn start(
        program: &Path,
        databases: &str,
        users: &[(&str, &str)],
        settings: &str,
    ) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rehome-pb").tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let here = folder.path().display();
        let listed: String =
            users.iter().map(|(user, password)| format!("\"{user}\" \"{password}\"\n")).collect();
        let admin = users.first().map_or("nobody", |(user, _)| user);
        let config = format!(
            "[pgbouncer]\nlisten_port = {PORT}\nunix_socket_dir = {here}\nauth_type = scram-sha-256\nauth_file = {here}/users\n\
             admin_users = {admin}\nlogfile = {here}/log\npidfile = {here}/pid\nstats_period = 2\nmax_client_conn = 200\n\
             default_pool_size = 20\n{settings}\n%include {here}/rehome.ini\n"
        );
        let owner = owner()?;
        for (name, text) in [
            ("users", &*listed),
            ("pgbouncer.ini", &config),
            ("rehome.ini", &format!("[databases]\n{databases}\n")),
        ] {
            std::fs::write(folder.path().join(name), text)?;
        }
        if let Some((user, group)) = owner {
            chown(folder.path(), Some(user), Some(group))?;
        }
        let mut command = Command::new(program);
        command.arg(folder.path().join("pgbouncer.ini")).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some((user, group)) = owner {
            command.uid(user).gid(group);
        }
        let mut bouncer = Self { process: command.spawn()?, folder };
        bouncer.wait()?;
        Ok(bouncer)
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        while UnixStream::connect(self.folder.path().join(format!(".s.PGSQL.{PORT}"))).is_err() {
            let ended = self.process.try_wait()?;
            if ended.is_some() || Instant::now() > until {
                let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("PgBouncer did not start: {ended:?}\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Where its socket, its log and the included file `rehome.ini` are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The address of a database, or of the console (`pgbouncer`).
    pub fn address(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@socket:{PORT}/{database}?host={}", self.folder.path().display())
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}
