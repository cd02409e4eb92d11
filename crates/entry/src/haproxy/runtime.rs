//! HAProxy's runtime API over its stats socket: weights, drain, addresses, in about a millisecond each and without a reload.
//! What it changes is gone at the next reload; who calls it says so.

use crate::EntryError;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

const PATIENCE: Duration = Duration::from_secs(10);
/// Statistics of some ten thousand servers.
const MAX_ANSWER: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runtime {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// One server as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunningServer {
    pub backend: String,
    pub server: String,
    pub status: String,
    pub weight: u32,
    /// `host:port`; empty where the socket may not say.
    pub address: String,
    /// Requests under way, and waiting for a free place.
    pub current: u64,
    pub queued: u64,
}

/// What a whole process says of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Info {
    pub version: String,
    pub pid: Option<i32>,
    pub current_connections: Option<u64>,
    pub stopping: bool,
}

impl std::fmt::Display for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp(address) => write!(f, "{address}"),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Runtime {
    /// A path, or `address:port`.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Unix(text.into()), Self::Tcp)
    }

    /// One command and its answer.
    ///
    /// # Errors
    /// [`EntryError::Refused`] where the socket may not be opened or has too low a level; [`EntryError::Unreachable`] where
    /// nobody answers.
    pub async fn command(&self, words: &[&str]) -> Result<String, EntryError> {
        self.commands(&[words.to_vec()]).await
    }

    /// Several commands at once: HAProxy does one right after the other.
    async fn commands(&self, commands: &[Vec<&str>]) -> Result<String, EntryError> {
        if let Some(wrong) = commands.iter().flatten().find(|word| !is_word(word)) {
            return Err(EntryError::unfit(
                format!("`{wrong}` is no name"),
                "see `rehome entry haproxy show`",
            ));
        }
        let line = commands.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join("; ");
        let answered = tokio::time::timeout(PATIENCE, self.exchange(&line)).await;
        let answer = answered.unwrap_or_else(|_| {
            Err(EntryError::Unreachable {
                whom: format!("haproxy at {self}"),
                text: format!("no answer within {PATIENCE:?}"),
            })
        })?;
        let answer = answer.trim().to_owned();
        let refused =
            |text: &str| EntryError::Refused { whom: format!("haproxy at {self}"), text: text.into() };
        if answer.starts_with("Permission denied") {
            return Err(refused("the socket needs `level admin` for this (stats socket … level admin)"));
        }
        if answer.starts_with("Unknown command") {
            return Err(refused(&format!("it does not know `{line}`")));
        }
        Ok(answer)
    }

    /// A command that says nothing when it did what was asked.
    async fn order(&self, words: &[&str]) -> Result<(), EntryError> {
        self.orders(&[words.to_vec()]).await
    }

    async fn orders(&self, commands: &[Vec<&str>]) -> Result<(), EntryError> {
        let answer = self.commands(commands).await?;
        if answer.is_empty() {
            return Ok(());
        }
        Err(EntryError::Refused { whom: format!("haproxy at {self}"), text: answer })
    }

    async fn exchange(&self, line: &str) -> Result<String, EntryError> {
        let failed = |error: std::io::Error| {
            let whom = format!("haproxy at {self}");
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                let text = "this user may not open the socket: see its mode, user and group".into();
                return EntryError::Refused { whom, text };
            }
            EntryError::Unreachable { whom, text: error.to_string() }
        };
        let mut stream: Box<dyn Stream> = match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await.map_err(failed)?),
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await.map_err(failed)?),
        };
        stream.write_all(format!("{line}\n").as_bytes()).await.map_err(failed)?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER + 1).read_to_end(&mut answer).await.map_err(failed)?;
        if answer.len() as u64 > MAX_ANSWER {
            let text = format!("its answer is longer than {} MiB", MAX_ANSWER >> 20);
            return Err(EntryError::Unreachable { whom: format!("haproxy at {self}"), text });
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    /// Every server of every backend.
    ///
    /// # Errors
    /// As [`Runtime::command`].
    pub async fn servers(&self) -> Result<Vec<RunningServer>, EntryError> {
        let text = self.command(&["show", "stat", "-1", "4", "-1"]).await?;
        let mut lines = text.lines();
        let head: Vec<&str> =
            lines.next().unwrap_or_default().trim_start_matches(['#', ' ']).split(',').collect();
        let servers = lines.filter_map(|line| {
            let values: Vec<&str> = line.split(',').collect();
            let get = |name: &str| {
                let at = head.iter().position(|column| *column == name)?;
                values.get(at).copied()
            };
            Some(RunningServer {
                backend: get("pxname")?.to_owned(),
                server: get("svname")?.to_owned(),
                status: get("status")?.to_owned(),
                weight: get("weight")?.parse().unwrap_or(0),
                address: get("addr").unwrap_or_default().to_owned(),
                current: get("scur")?.parse().unwrap_or(0),
                queued: get("qcur")?.parse().unwrap_or(0),
            })
        });
        Ok(servers.collect())
    }

    /// # Errors
    /// As [`Runtime::command`].
    pub async fn info(&self) -> Result<Info, EntryError> {
        let text = self.command(&["show", "info"]).await?;
        let get = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next_back()
        };
        Ok(Info {
            version: get("Version").unwrap_or_default().to_owned(),
            pid: get("Pid").and_then(|value| value.parse().ok()),
            current_connections: get("CurrConns").and_then(|value| value.parse().ok()),
            stopping: get("Stopping").is_some_and(|value| value != "0"),
        })
    }

    /// Weights of servers of one backend, 0 to 256 each. Those that rise come first, so that there is always somebody.
    ///
    /// # Errors
    /// When a server is not there, or nobody would be left: HAProxy answers 503 then.
    pub async fn weights(&self, backend: &str, weights: &[(String, u32)]) -> Result<(), EntryError> {
        let running = self.of(backend).await?;
        for (name, weight) in weights {
            known(&running, backend, name)?;
            if *weight > 256 {
                return Err(EntryError::unfit(
                    format!("{name}={weight}: a weight is 0 to 256"),
                    "0 sends nobody new",
                ));
            }
        }
        let after = |server: &RunningServer| {
            let asked = weights.iter().rfind(|(name, _)| *name == server.server);
            asked.map_or(server.weight, |(_, weight)| *weight)
        };
        // A weight of 0 is shown as a drain and ends with the weight; a drain by order does not.
        let serves_then = |server: &RunningServer| {
            serves(server) || server.status.starts_with("DRAIN") && server.weight == 0
        };
        if !running.iter().any(|server| serves_then(server) && after(server) > 0) {
            return Err(nobody_left(backend));
        }
        let before = |name: &str| {
            running.iter().find(|server| server.server == name).map_or(0, |server| server.weight)
        };
        let mut ordered: Vec<&(String, u32)> = weights.iter().collect();
        ordered.sort_by_key(|(name, weight)| *weight < before(name));
        let words: Vec<(String, String)> =
            ordered.iter().map(|(name, weight)| (format!("{backend}/{name}"), weight.to_string())).collect();
        let orders: Vec<Vec<&str>> =
            words.iter().map(|(place, weight)| vec!["set", "weight", place, weight]).collect();
        self.orders(&orders).await
    }

    /// No new requests for a server; what it has goes on.
    ///
    /// # Errors
    /// When nobody would be left.
    pub async fn drain(&self, backend: &str, server: &str) -> Result<(), EntryError> {
        let running = self.of(backend).await?;
        known(&running, backend, server)?;
        if !running.iter().any(|other| other.server != server && serves(other) && other.weight > 0) {
            return Err(nobody_left(backend));
        }
        self.order(&["set", "server", &format!("{backend}/{server}"), "state", "drain"]).await
    }

    /// # Errors
    /// When the server is not there.
    pub async fn ready(&self, backend: &str, server: &str) -> Result<(), EntryError> {
        known(&self.of(backend).await?, backend, server)?;
        self.order(&["set", "server", &format!("{backend}/{server}"), "state", "ready"]).await
    }

    /// Another address for a server. Connections that are under a request in that moment stay where they lead, and are used
    /// again: [`super::swap`] is the way that leaves none.
    ///
    /// # Errors
    /// When HAProxy does not say that it has it.
    pub(super) async fn move_server(
        &self,
        backend: &str,
        server: &str,
        to: SocketAddr,
    ) -> Result<(), EntryError> {
        let (place, ip, port) = (format!("{backend}/{server}"), to.ip().to_string(), to.port().to_string());
        let answer = self.command(&["set", "server", &place, "addr", &ip, "port", &port]).await?;
        let running = self.of(backend).await?;
        let now = running.iter().find(|found| found.server == server).map(|found| found.address.clone());
        match now {
            Some(address) if address == to.to_string() => Ok(()),
            _ => Err(EntryError::Refused { whom: format!("haproxy at {self}"), text: answer }),
        }
    }

    pub(super) async fn set_state(&self, backend: &str, server: &str, state: &str) -> Result<(), EntryError> {
        self.order(&["set", "server", &format!("{backend}/{server}"), "state", state]).await
    }

    pub(super) async fn of(&self, backend: &str) -> Result<Vec<RunningServer>, EntryError> {
        let mut servers = self.servers().await?;
        servers.retain(|server| server.backend == backend);
        if servers.is_empty() {
            return Err(EntryError::unfit(
                format!("haproxy at {self} has no backend `{backend}` with servers"),
                "see `rehome entry haproxy show`",
            ));
        }
        Ok(servers)
    }
}

fn known(running: &[RunningServer], backend: &str, name: &str) -> Result<(), EntryError> {
    if running.iter().any(|server| server.server == name) {
        return Ok(());
    }
    let names: Vec<&str> = running.iter().map(|server| server.server.as_str()).collect();
    Err(EntryError::unfit(
        format!("backend {backend} has no server `{name}`"),
        format!("it has {}", names.join(", ")),
    ))
}

fn serves(server: &RunningServer) -> bool {
    ["UP", "no check"].iter().any(|word| server.status.starts_with(word))
}

fn nobody_left(backend: &str) -> EntryError {
    EntryError::unfit(
        format!("no server of {backend} would take new requests: HAProxy answers 503 then, it does not wait"),
        "give another server a weight first; to make writes wait, use `hold`",
    )
}

/// A command is a line: what could end it or begin another one is no word.
fn is_word(word: &str) -> bool {
    !word.is_empty()
        && word
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b';' | b'\\' | b'"' | b'\'' | b'<'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_cannot_hold_another() {
        for text in ["a;b", "a b", "a\nb", "", "a\\", "<<"] {
            assert!(!is_word(text), "{text}");
        }
        assert!(is_word("be_1/s.2:x-3") && is_word("[::1]"));
    }

    #[tokio::test]
    async fn a_silent_or_endless_socket_is_bounded() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let runtime = Runtime::Tcp(listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let piece = vec![b'x'; 1 << 20];
            while stream.write_all(&piece).await.is_ok() {}
        });
        let error = runtime.command(&["show", "info"]).await.unwrap_err();
        assert!(matches!(error, EntryError::Unreachable { .. }), "{error}");
        assert!(matches!(Runtime::parse("/run/x.sock"), Runtime::Unix(_)));
        let error = Runtime::parse("/no/such.sock").command(&["x"]).await.unwrap_err();
        assert!(error.is_retryable());
    }
}
