//! Starts the test servers and ends them again. A server that is not installed is said loudly; with
//! REHOME_REQUIRE_TOOLS=1 it fails the test.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A server process; killed when dropped.
pub struct Server {
    child: Child,
    pub url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Azurite, where npm could install it: optional also under REHOME_REQUIRE_TOOLS=1.
pub fn azurite() -> Option<Server> {
    let Some(program) = find("azurite-blob") else {
        eprintln!(
            "NOT TESTED: `azurite-blob` is not installed (scripts/tools.sh installs it where there is npm)"
        );
        return None;
    };
    let mut command = Command::new(program);
    command.args(["--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence"]);
    command.args(["--skipApiVersionCheck", "--disableTelemetry"]);
    Some(start(command, "successfully listens on "))
}

/// The program, from `$REHOME_TOOLS/bin`, `.tools/bin` of the repository, or the path.
pub fn tool(name: &str) -> Option<PathBuf> {
    let found = find(name);
    if found.is_none() {
        eprintln!("NOT TESTED: `{name}` is not installed; run scripts/tools.sh");
        let required = std::env::var("REHOME_REQUIRE_TOOLS").is_ok_and(|text| text == "1");
        assert!(!required, "`{name}` is required by REHOME_REQUIRE_TOOLS=1 and is not installed");
    }
    found
}

fn find(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned();
    let tools = std::env::var_os("REHOME_TOOLS").map_or_else(|| root.join(".tools"), PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools.join("bin"))
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// moto: in-memory S3 with AWS's own semantics; takes any keys.
pub fn moto() -> Option<Server> {
    let mut command = Command::new(tool("moto_server")?);
    command.args(["-H", "127.0.0.1", "-p", "0"]);
    Some(start(command, "Running on "))
}

/// moto that asks for rights from the fourth call on: three calls make a user.
pub fn moto_with_users() -> Option<Server> {
    let mut command = Command::new(tool("moto_server")?);
    command.args(["-H", "127.0.0.1", "-p", "0"]).env("INITIAL_NO_AUTH_ACTION_COUNT", "3");
    Some(start(command, "Running on "))
}

/// moto behind TLS, with a certificate for 127.0.0.1 that only `certificate` vouches for.
pub fn moto_over_tls(certificate: &Path, key: &Path) -> Option<Server> {
    let mut command = Command::new(tool("moto_server")?);
    command.args(["-H", "127.0.0.1", "-p", "0", "-c"]).arg(certificate).arg("-k").arg(key);
    Some(start(command, "Running on "))
}

/// rclone's S3 server over a folder; checks signatures.
pub fn rclone(folder: &Path, access_key: &str, secret_key: &str) -> Option<Server> {
    let mut command = Command::new(tool("rclone")?);
    command
        .args(["serve", "s3", "--addr", "127.0.0.1:0", "--config", "/dev/null", "--log-level", "INFO"])
        .args(["--auth-key", &format!("{access_key},{secret_key}"), "--vfs-cache-mode", "off"])
        .arg(folder);
    Some(start(command, "Starting s3 server on ["))
}

/// Waits until the server says where it listens.
fn start(mut command: Command, marker: &'static str) -> Server {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (send, lines) = mpsc::channel();
    watch(child.stdout.take().unwrap(), marker, send.clone());
    watch(child.stderr.take().unwrap(), marker, send);
    let found = lines.recv_timeout(Duration::from_secs(120));
    let mut server = Server { child, url: String::new() };
    server.url = found.expect("the server says within two minutes where it listens");
    server
}

/// Reads all a server says, so that it never waits for us, and tells the address behind `marker`.
fn watch(stream: impl Read + Send + 'static, marker: &'static str, found: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once(marker) {
                let address = rest.split([']', ' ']).next().unwrap_or(rest);
                let _ = found.send(address.trim_end_matches('/').to_owned());
            }
        }
    });
}
