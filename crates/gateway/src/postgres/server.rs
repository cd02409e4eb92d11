//! One session at a database's server: opened as the client's user with what the client asked for, and read and written as messages.
//! Knows nothing of the client or of the gate.

use super::frame::{self, fatal};
use super::{End, Stream};
use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::ServerName;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

/// A server that does not let somebody in for so long is not there.
const CONNECT: Duration = Duration::from_secs(10);
/// Of a message that is looked into as a whole.
const MOST: usize = 64 << 20;
const SPARE: usize = 16 << 10;

/// One direction of a connection, with what was read and not used.
pub(super) struct Reading {
    stream: ReadHalf<Box<dyn Stream>>,
    pub buffer: BytesMut,
}

impl Reading {
    pub fn new(stream: ReadHalf<Box<dyn Stream>>) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads what has come; false at the end. Nothing is lost when it is given up.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.reserve(SPARE);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// The next message of at most `most` bytes. Nothing is lost when it is given up.
    ///
    /// # Errors
    /// The end came first, or what came is no message.
    pub async fn message(&mut self, most: usize) -> io::Result<(u8, Bytes)> {
        loop {
            if let Some(message) = frame::take(&mut self.buffer, most)? {
                return Ok(message);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// What a client told its server of itself, but for its user and database: they go to every server as they are.
pub(super) type Parameters = BTreeMap<Bytes, Bytes>;

/// Who comes in.
#[derive(Clone)]
pub(super) struct Caller {
    pub user: Bytes,
    /// At the source and at the target.
    pub passwords: [String; 2],
    pub parameters: Parameters,
}

/// Why no session was opened.
#[derive(Debug)]
pub(super) enum Closed {
    /// The server's own `ErrorResponse`, whole.
    Refused(BytesMut),
    /// It cannot be reached, or does not speak as it should.
    Unreachable(String),
    /// The session cannot be there what it was; trying again is of no use.
    Unlike(String),
}

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

impl Closed {
    /// As the client is told.
    pub fn message(self) -> BytesMut {
        match self {
            Self::Refused(message) => message,
            Self::Unreachable(why) => {
                fatal("57P03", &format!("the database cannot be reached: {why}"), "try again")
            }
            Self::Unlike(why) => cannot_go(&why),
        }
    }

    /// For logs.
    pub fn words(&self) -> String {
        match self {
            Self::Refused(message) => {
                let body = message.get(frame::HEAD..).map(Bytes::copy_from_slice).unwrap_or_default();
                frame::field(body, b'M').unwrap_or_else(|| "refused".into())
            }
            Self::Unreachable(why) | Self::Unlike(why) => why.clone(),
        }
    }
}

/// How a client is told that its session ends with the move; SQLSTATE `admin_shutdown`, which pools of connections understand.
pub(super) fn cannot_go(why: &str) -> BytesMut {
    fatal("57P01", &format!("the database has moved, and this session cannot: {why}"), "connect again")
}

/// An open session.
pub(super) struct Server {
    pub reading: Reading,
    pub writing: WriteHalf<Box<dyn Stream>>,
    /// What it reports of its settings.
    pub reported: BTreeMap<Bytes, Bytes>,
    /// What a request to cancel must show.
    pub key: Bytes,
}

/// The way to a server, with nothing said on it yet.
pub(super) async fn dial(end: &End) -> io::Result<Box<dyn Stream>> {
    let at = &end.at;
    if at.host.starts_with('/') {
        let path = format!("{}/.s.PGSQL.{}", at.host, at.port);
        return Ok(Box::new(UnixStream::connect(path).await?));
    }
    let mut stream = TcpStream::connect((&*at.host, at.port)).await?;
    super::prepare(&stream)?;
    let Some(tls) = &end.tls else { return Ok(Box::new(stream)) };
    let mut request = BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Read alone: whatever came with the answer would not be protected.
    if stream.read_u8().await? != b'S' {
        return Err(frame::wrong(
            "the server does not speak TLS; `sslmode=disable` in its address does without",
        ));
    }
    let name =
        ServerName::try_from(at.host.clone()).map_err(|_| frame::wrong("no name for a certificate"))?;
    Ok(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?))
}

impl Server {
    /// Opens a session; `password` is shown only to a server that asks for it.
    pub async fn open(end: &End, caller: &Caller, password: &str) -> Result<Self, Closed> {
        let opened = tokio::time::timeout(CONNECT, Self::try_open(end, caller, password)).await;
        opened.unwrap_or_else(|_| Err(Closed::Unreachable(format!("no answer in {} s", CONNECT.as_secs()))))
    }

    async fn try_open(end: &End, caller: &Caller, password: &str) -> Result<Self, Closed> {
        let (reading, writing) = tokio::io::split(dial(end).await?);
        let mut server =
            Self { reading: Reading::new(reading), writing, reported: BTreeMap::new(), key: Bytes::new() };
        let mut hello = BytesMut::new();
        startup(&mut hello, end.at.database.as_bytes(), caller);
        server.writing.write_all(&hello).await?;
        server.writing.flush().await?;
        server.authenticate(&caller.user, password).await?;
        loop {
            let (kind, mut body) = server.reading.message(MOST).await?;
            match kind {
                b'K' => server.key = body,
                b'S' => {
                    let name = frame::text(&mut body)?;
                    server.reported.insert(name, frame::text(&mut body)?);
                }
                b'Z' => return Ok(server),
                b'E' => return Err(refused(&body)),
                // Notices of a login are nobody's concern; what else may come is none of ours.
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, user: &[u8], password: &str) -> Result<(), Closed> {
        let mut scram: Option<ScramSha256> = None;
        loop {
            let (kind, mut body) = self.reading.message(MOST).await?;
            let mut answer = BytesMut::new();
            match kind {
                b'E' => return Err(refused(&body)),
                b'R' => {}
                _ => continue,
            }
            match frame::long(&mut body)? {
                0 => return Ok(()),
                3 => frame::put(&mut answer, b'p', |out| {
                    frame::put_text(out, password.as_bytes());
                }),
                5 => {
                    let salt = body.first_chunk().copied().ok_or_else(|| frame::wrong("no salt"))?;
                    let sum = md5_hash(user, password.as_bytes(), salt);
                    frame::put(&mut answer, b'p', |out| frame::put_text(out, sum.as_bytes()));
                }
                10 => {
                    let exchange = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
                    frame::put(&mut answer, b'p', |out| {
                        frame::put_text(out, super::scram::MECHANISM.as_bytes());
                        out.put_u32(exchange.message().len() as u32);
                        out.put_slice(exchange.message());
                    });
                    scram = Some(exchange);
                }
                11 => {
                    let exchange = scram.as_mut().ok_or_else(|| frame::wrong("an answer to no question"))?;
                    exchange.update(&body)?;
                    frame::put(&mut answer, b'p', |out| out.put_slice(exchange.message()));
                }
                12 => {
                    scram.as_mut().ok_or_else(|| frame::wrong("an answer to no question"))?.finish(&body)?;
                    continue;
                }
                other => {
                    let text = format!("the server asks for a proof that is not known here (kind {other})");
                    return Err(Closed::Unreachable(text));
                }
            }
            self.writing.write_all(&answer).await?;
            self.writing.flush().await?;
        }
    }

    /// Sends messages that end with a Sync, and gives the rows that come back. What is meant for the client is put `aside`.
    ///
    /// # Errors
    /// The connection is broken, or the server reports an error: its text.
    pub async fn ask(
        &mut self,
        messages: &[u8],
        aside: &mut BytesMut,
    ) -> io::Result<Vec<Vec<Option<Bytes>>>> {
        self.writing.write_all(messages).await?;
        self.writing.flush().await?;
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let (kind, body) = self.reading.message(MOST).await?;
            match kind {
                b'D' => rows.push(frame::columns(body)?),
                b'E' => error = error.or_else(|| frame::field(body, b'M')).or_else(|| Some("refused".into())),
                b'A' | b'N' => frame::put(aside, kind, |out| out.put_slice(&body)),
                b'S' => {
                    let mut both = body.clone();
                    let name = frame::text(&mut both)?;
                    self.reported.insert(name, frame::text(&mut both)?);
                }
                b'Z' => return error.map_or(Ok(rows), |text| Err(io::Error::other(text))),
                _ => {}
            }
        }
    }

    /// Says goodbye, if that can be done at once.
    pub fn leave(mut self) {
        tokio::spawn(async move {
            let mut goodbye = BytesMut::new();
            frame::put(&mut goodbye, b'X', |_| {});
            let leaving = async {
                // A server that is gone knows already.
                let _gone = self.writing.write_all(&goodbye).await;
                let _gone = self.writing.shutdown().await;
            };
            let _late = tokio::time::timeout(Duration::from_secs(1), leaving).await;
        });
    }
}

/// The first message of a session.
fn startup(out: &mut BytesMut, database: &[u8], caller: &Caller) {
    let start = out.len();
    out.put_u32(0);
    out.put_u32(super::login::PROTOCOL);
    let ours: [(&[u8], &[u8]); 2] = [(b"user", &caller.user), (b"database", database)];
    let theirs = caller.parameters.iter().map(|(name, value)| (&name[..], &value[..]));
    for (name, value) in ours.into_iter().chain(theirs) {
        frame::put_text(out, name);
        frame::put_text(out, value);
    }
    out.put_u8(0);
    let length = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn refused(body: &Bytes) -> Closed {
    let mut message = BytesMut::new();
    frame::put(&mut message, b'E', |out| out.put_slice(body));
    Closed::Refused(message)
}

/// Passes a request to cancel on; nobody answers one.
pub(super) async fn cancel(end: &End, key: &[u8]) -> io::Result<()> {
    let cancelling = async {
        let mut stream = dial(end).await?;
        let mut request = BytesMut::new();
        request.put_u32(8 + key.len() as u32);
        request.put_u32(super::login::CANCEL);
        request.put_slice(key);
        stream.write_all(&request).await?;
        stream.flush().await?;
        // The server closes when it has done it.
        let mut end = [0; 1];
        let _end = stream.read(&mut end).await;
        Ok(())
    };
    tokio::time::timeout(CONNECT, cancelling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
