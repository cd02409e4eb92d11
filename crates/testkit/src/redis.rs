//! A Redis server of its own for a test: started on a socket and a port that the kernel chose, and ended here. Debian's program,
//! never the machine's service.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START: Duration = Duration::from_secs(30);
/// Somebody may take a free port before the server does.
const PORTS_TRIED: usize = 10;

/// Is there one to start? Where there is none it says loudly that the test did not run, or fails where tools are required.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn is_here_or_skip() -> bool {
    let is_here = Command::new("redis-server").arg("--version").output().is_ok();
    if !is_here {
        let required = std::env::var_os("REHOME_REQUIRE_TOOLS").is_some();
        assert!(!required, "Redis is missing: run scripts/tools.sh");
        eprintln!("SKIPPED: Redis is missing; run scripts/tools.sh");
    }
    is_here
}

/// A server that runs. Ends when dropped, and its files with it.
#[derive(Debug)]
pub struct Redis {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Redis {
    /// Starts a server with these settings besides the usual ones: nothing is saved, and a full copy begins at once.
    ///
    /// # Errors
    /// It did not come up.
    pub fn start(settings: &[(&str, &str)]) -> io::Result<Self> {
        let mut tried = 0;
        loop {
            let free = std::net::TcpListener::bind("127.0.0.1:0")?;
            let port = free.local_addr()?.port();
            drop(free);
            tried += 1;
            match Self::start_on(port, settings) {
                Err(error) if tried < PORTS_TRIED && error.kind() != io::ErrorKind::NotFound => {}
                started => return started,
            }
        }
    }

    fn start_on(port: u16, settings: &[(&str, &str)]) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("rehome-redis").tempdir()?;
        let settings: Vec<(String, String)> =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let process = Self::serve(folder.path(), port, &settings)?;
        let mut server = Self { process, folder, port, settings };
        server.wait()?;
        Ok(server)
    }

    fn serve(folder: &Path, port: u16, settings: &[(String, String)]) -> io::Result<Child> {
        let port = port.to_string();
        let socket = folder.join("redis.sock").display().to_string();
        let files = folder.display().to_string();
        let usual = [
            ("bind", "127.0.0.1"),
            ("port", &*port),
            ("unixsocket", &*socket),
            ("dir", &*files),
            ("save", ""),
            ("repl-diskless-sync", "yes"),
            ("repl-diskless-sync-delay", "0"),
        ];
        let mut command = Command::new("redis-server");
        let settings = settings.iter().map(|(name, value)| (&**name, &**value));
        for (name, value) in usual.into_iter().chain(settings) {
            command.arg(format!("--{name}")).arg(value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
    }

    /// Ends it at once, as a crash does, and starts it again at the same place. What it did not save is gone.
    ///
    /// # Errors
    /// It did not come up again.
    pub fn restart(&mut self) -> io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = Self::serve(self.folder.path(), self.port, &self.settings)?;
        self.wait()
    }

    fn wait(&mut self) -> io::Result<()> {
        let until = Instant::now() + START;
        loop {
            // Anything it says will do: a server with a password says that it wants one.
            if !self.redis_cli().arg("PING").output()?.stdout.is_empty() {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(io::Error::other(format!("the server ended: {status}")));
            }
            if Instant::now() > until {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The address of one of its databases for this user, by its port: another server finds it there, too.
    pub fn address(&self, user: &str, database: u32) -> String {
        format!("redis://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// The same by its socket.
    pub fn socket_address(&self, user: &str, database: u32) -> String {
        format!("redis://{user}@socket/{database}?socket={}/redis.sock", self.folder.path().display())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    fn redis_cli(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command.arg("-s").arg(self.folder.path().join("redis.sock")).arg("--no-auth-warning");
        command.stdin(Stdio::null());
        command
    }

    /// Runs one command as the default user and returns what came back, without decoration.
    ///
    /// # Errors
    /// The server refused it; its words are in the error.
    pub fn run(&self, words: &[&str]) -> io::Result<String> {
        self.run_as(None, words)
    }

    /// Runs one command as a user with a password. For tests alone: the password is in the list of processes.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_as(&self, login: Option<(&str, &str)>, words: &[&str]) -> io::Result<String> {
        let mut command = self.redis_cli();
        if let Some((user, password)) = login {
            command.args(["--user", user, "--pass", password]);
        }
        let output = command.arg("-e").args(words).output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        // Not let in, it would go on as the default user.
        if !output.status.success() || why.contains("AUTH failed") {
            return Err(io::Error::other(format!("{said}{why}")));
        }
        Ok(said)
    }

    /// Where its socket and its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}
