//! The caller's end of the control socket, here or on another machine: engine, guard and command line use it. One [`Client`] may be shared; calls that
//! run at once use a connection each. Every request is safe to repeat, so a broken connection is replaced once.

use crate::control::{Hello, MAX_LINE, Request, Response, VERSION};
use crate::remote::RemoteGateway;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Idle connections kept for the next call.
const KEPT: usize = 4;

/// Why a call got no answer. A refusal is an answer: see [`Response::Refused`].
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the connection broke twice.
    #[error("cannot reach the gateway at {place}: {source}")]
    Unreachable { place: String, source: io::Error },
    #[error("the gateway at {place} did not answer within {waited:?}")]
    TimedOut { place: String, waited: Duration },
    /// Secret or version were not accepted.
    #[error("the gateway at {place} refused the greeting: {text}")]
    Unwelcome { place: String, text: String },
    #[error("the gateway at {place} said what this version does not understand: {text}")]
    Garbled { place: String, text: String },
}

impl ClientError {
    /// May the same call succeed later without anybody changing anything?
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. })
    }
}

/// Where a gateway is spoken to.
#[derive(Debug, Clone)]
pub enum Place {
    /// Its unix socket on this machine.
    Socket(PathBuf),
    Remote(RemoteGateway),
}

impl<P: Into<PathBuf>> From<P> for Place {
    fn from(path: P) -> Self {
        Self::Socket(path.into())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Remote(remote) => f.write_str(remote.address()),
        }
    }
}

/// Either way there.
trait Way: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Way for S {}

type Connection = BufReader<Box<dyn Way>>;

/// A caller of one gateway.
pub struct Client {
    place: Place,
    secret: String,
    who: String,
    timeout: Duration,
    idle: Mutex<Vec<Connection>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("place", &self.place).field("who", &self.who).finish_non_exhaustive()
    }
}

impl Client {
    /// A client that connects at its first call. `who` is for the gateway's log, such as `engine pid 123`.
    pub fn new(place: impl Into<Place>, secret: impl Into<String>, who: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            secret: secret.into(),
            who: who.into(),
            timeout: Duration::from_secs(2),
            idle: Mutex::new(Vec::new()),
        }
    }

    /// A client that has been welcomed once.
    ///
    /// # Errors
    /// Nobody listens at `place`, or the secret is wrong.
    pub async fn connect(
        place: impl Into<Place>,
        secret: impl Into<String>,
        who: impl Into<String>,
    ) -> Result<Self, ClientError> {
        let client = Self::new(place, secret, who);
        let connection = client.limited(client.timeout, client.open()).await?;
        client.keep(connection);
        Ok(client)
    }

    /// How long a call may take; [`Request::Hold`] gets its own deadline on top. Two seconds unless told.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn place(&self) -> String {
        self.place.to_string()
    }

    /// Sends one request and waits for its answer. Repeats it once on a fresh connection when an idle one broke.
    ///
    /// # Errors
    /// No answer in time, or none that can be understood.
    pub async fn call(&self, request: Request) -> Result<Response, ClientError> {
        let mut line = serde_json::to_vec(&request)
            .map_err(|error| ClientError::Garbled { place: self.place(), text: error.to_string() })?;
        line.push(b'\n');
        let waited = match request {
            Request::Hold { in_flight_ms, .. } => self.timeout + Duration::from_millis(in_flight_ms),
            _ => self.timeout,
        };
        self.limited(waited, self.exchange(&line)).await
    }

    async fn limited<T>(
        &self,
        waited: Duration,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::time::timeout(waited, work)
            .await
            .unwrap_or_else(|_| Err(ClientError::TimedOut { place: self.place(), waited }))
    }

    async fn exchange(&self, line: &[u8]) -> Result<Response, ClientError> {
        let kept = self.idle.lock().map(|mut idle| idle.pop()).unwrap_or_default();
        if let Some(mut connection) = kept
            && let Ok(response) = say(&mut connection, line).await
        {
            return self.understand(connection, &response);
        }
        let mut connection = self.open().await?;
        let response = say(&mut connection, line).await.map_err(|source| self.unreachable(source))?;
        self.understand(connection, &response)
    }

    fn understand(&self, connection: Connection, line: &[u8]) -> Result<Response, ClientError> {
        let response = serde_json::from_slice(line)
            .map_err(|error| ClientError::Garbled { place: self.place(), text: error.to_string() })?;
        self.keep(connection);
        Ok(response)
    }

    fn keep(&self, connection: Connection) {
        if let Ok(mut idle) = self.idle.lock()
            && idle.len() < KEPT
        {
            idle.push(connection);
        }
    }

    async fn open(&self) -> Result<Connection, ClientError> {
        let stream: io::Result<Box<dyn Way>> = match &self.place {
            Place::Socket(path) => UnixStream::connect(path).await.map(|stream| Box::new(stream) as _),
            Place::Remote(remote) => remote.connect().await.map(|stream| Box::new(stream) as _),
        };
        let mut connection = BufReader::new(stream.map_err(|source| self.unreachable(source))?);
        let hello = Hello { version: VERSION, secret: self.secret.clone(), who: self.who.clone() };
        let mut line = serde_json::to_vec(&hello)
            .map_err(|error| ClientError::Garbled { place: self.place(), text: error.to_string() })?;
        line.push(b'\n');
        let answer = say(&mut connection, &line).await.map_err(|source| self.unreachable(source))?;
        match serde_json::from_slice(&answer) {
            Ok(Response::Done) => Ok(connection),
            Ok(Response::Refused { text, .. }) => Err(ClientError::Unwelcome { place: self.place(), text }),
            Ok(other) => {
                Err(ClientError::Garbled { place: self.place(), text: format!("{other:?} to a greeting") })
            }
            Err(error) => Err(ClientError::Garbled { place: self.place(), text: error.to_string() }),
        }
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { place: self.place(), source }
    }
}

/// One line out, one line back.
pub(crate) async fn say<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut BufReader<S>,
    line: &[u8],
) -> io::Result<Vec<u8>> {
    connection.get_mut().write_all(line).await?;
    connection.get_mut().flush().await?;
    read_line(connection).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// The next line without its end, at most [`MAX_LINE`] bytes long; `None` at the end of the stream.
pub(crate) async fn read_line<R: tokio::io::AsyncBufRead + Unpin>(
    reader: &mut R,
) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let read = reader.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        let why = if read > MAX_LINE { "the line is too long" } else { "the line has no end" };
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(Some(line))
}
