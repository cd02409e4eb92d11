//! How a client comes in: TLS if it asks for it, what it wants, and the proof that it is who it says. A client is told of no user whether
//! he exists.

use super::frame::{self, fatal};
use super::scram::{self, Verifier};
use super::server::{Caller, Parameters, Reading};
use super::{Door, Stream};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::net::TcpStream;

/// 3.0, and the codes that stand in its place.
pub(super) const PROTOCOL: u32 = 3 << 16;
pub(super) const CANCEL: u32 = 80_877_102;
const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
/// The server's own bound of a first message.
const MOST_FIRST: usize = 10_000;
const MOST_PROOF: usize = 8 << 10;
/// From the connection to the proof.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first byte of a TLS record, where no request for it comes before (PostgreSQL 17's `sslnegotiation=direct`).
const TLS_RECORD: u8 = 0x16;

/// A client's side of a connection.
pub(super) struct Client {
    pub reading: Reading,
    pub writing: WriteHalf<Box<dyn Stream>>,
}

impl Client {
    /// # Errors
    /// The client is gone.
    pub async fn say(&mut self, message: &[u8]) -> io::Result<()> {
        self.writing.write_all(message).await?;
        self.writing.flush().await
    }
}

/// What somebody came for.
pub(super) enum Visit {
    Session(Client, Caller),
    /// To cancel what the session with this key does.
    Cancel(Bytes),
}

/// Lets a client in, or tells it why not.
///
/// # Errors
/// It was not let in, or went away; what it had to be told was told.
pub(super) async fn welcome(door: &Door, stream: TcpStream) -> io::Result<Visit> {
    let welcomed = tokio::time::timeout(PATIENCE, Box::pin(try_welcome(door, stream))).await;
    welcomed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn try_welcome(door: &Door, mut stream: TcpStream) -> io::Result<Visit> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if first[0] == TLS_RECORD {
        let Some(acceptor) = &door.acceptor else { return Err(frame::wrong("TLS where there is none")) };
        let stream = acceptor.0.accept(stream).await?;
        return session(door, Box::new(stream), true).await;
    }
    // Each request at most once: TLS and Kerberos' encryption, in any order.
    for _ in 0..2 {
        let code = peek_code(&mut stream).await?;
        match (code, &door.acceptor) {
            (TLS, Some(acceptor)) => {
                let mut request = [0; 8];
                stream.read_exact(&mut request).await?;
                stream.write_all(b"S").await?;
                let stream = acceptor.0.accept(stream).await?;
                return session(door, Box::new(stream), true).await;
            }
            (TLS | GSS, _) => {
                let mut request = [0; 8];
                stream.read_exact(&mut request).await?;
                stream.write_all(b"N").await?;
            }
            _ => break,
        }
    }
    session(door, Box::new(stream), false).await
}

/// The code of a first message, which stays where it is.
async fn peek_code(stream: &mut TcpStream) -> io::Result<u32> {
    let mut start = [0; 8];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut start).await?;
        if seen == start.len() {
            return Ok(u32::from_be_bytes([start[4], start[5], start[6], start[7]]));
        }
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Bytes that were seen count as ready for ever, so nothing wakes us up when more come.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

async fn session(door: &Door, stream: Box<dyn Stream>, is_tls: bool) -> io::Result<Visit> {
    let (reading, writing) = tokio::io::split(stream);
    let mut client = Client { reading: Reading::new(reading), writing };
    let mut body = first_message(&mut client.reading).await?;
    let version = frame::long(&mut body)?;
    if version == CANCEL {
        return Ok(Visit::Cancel(body));
    }
    let refusal = match wanted(door, version, body, is_tls) {
        Ok((caller, unknown)) => {
            if version != PROTOCOL || !unknown.is_empty() {
                client.say(&only_3_0(&unknown)).await?;
            }
            match prove(door, &mut client, caller.user.clone()).await? {
                true => return Ok(Visit::Session(client, caller)),
                false => {
                    let user = String::from_utf8_lossy(&caller.user).into_owned();
                    tracing::info!(database = door.plan.name, user, "a login failed");
                    fatal("28P01", &format!("password authentication failed for user \"{user}\""), "")
                }
            }
        }
        Err(refusal) => refusal,
    };
    client.say(&refusal).await?;
    let _gone = client.writing.shutdown().await;
    Err(frame::wrong("a client was not let in"))
}

/// A first message has no kind.
async fn first_message(reading: &mut Reading) -> io::Result<Bytes> {
    loop {
        if let Some(length) = reading.buffer.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
            if !(8..=MOST_FIRST).contains(&length) {
                return Err(frame::wrong("no first message of PostgreSQL's protocol"));
            }
            if reading.buffer.len() >= length {
                let mut message = reading.buffer.split_to(length).freeze();
                drop(message.split_to(4));
                return Ok(message);
            }
        }
        if !reading.fill().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

type Unknown = Vec<Bytes>;

/// Who wants what, and the options of the protocol that are not known here; or what to tell who cannot have it.
fn wanted(door: &Door, version: u32, body: Bytes, is_tls: bool) -> Result<(Caller, Unknown), BytesMut> {
    if version >> 16 != 3 {
        return Err(fatal("0A000", "only version 3 of the protocol is spoken here", ""));
    }
    if !is_tls && door.acceptor.is_some() {
        return Err(fatal("28000", "only TLS is taken here", "connect with sslmode=verify-full"));
    }
    let mut parameters = pairs(body).map_err(|_| fatal("08P01", "the first message makes no sense", ""))?;
    let user = parameters.remove(&b"user"[..]).unwrap_or_default();
    let database = parameters.remove(&b"database"[..]).unwrap_or_else(|| user.clone());
    let is_protocol = |name: &Bytes| name.starts_with(b"_pq_.");
    let unknown: Unknown = parameters.keys().filter(|name| is_protocol(name)).cloned().collect();
    parameters.retain(|name, _| !is_protocol(name));
    let is_no = |value: &Bytes| matches!(&value[..], b"false" | b"off" | b"no" | b"0");
    if parameters.remove(&b"replication"[..]).is_some_and(|value| !is_no(&value)) {
        let hint = "connect to the server itself";
        return Err(fatal("0A000", "replication does not pass the gateway", hint));
    }
    if database != door.plan.database.as_bytes() {
        let text = format!("database \"{}\" is not behind this gateway", String::from_utf8_lossy(&database));
        return Err(fatal("3D000", &text, &format!("here is only \"{}\"", door.plan.database)));
    }
    let login = door.plan.logins.iter().find(|login| login.user.as_bytes() == user);
    let passwords = login.map(|login| login.passwords.clone()).unwrap_or_default();
    Ok((Caller { user, passwords, parameters }, unknown))
}

fn pairs(mut body: Bytes) -> io::Result<Parameters> {
    let mut pairs = Parameters::new();
    loop {
        let name = frame::text(&mut body)?;
        if name.is_empty() {
            return Ok(pairs);
        }
        pairs.insert(name, frame::text(&mut body)?);
    }
}

/// `NegotiateProtocolVersion`: a newer minor version is answered with the one that is known, and unknown options are named.
fn only_3_0(unknown: &[Bytes]) -> BytesMut {
    let mut message = BytesMut::new();
    frame::put(&mut message, b'v', |out| {
        out.put_u32(PROTOCOL);
        out.put_u32(unknown.len() as u32);
        unknown.iter().for_each(|name| frame::put_text(out, name));
    });
    message
}

/// True when the client knows the user's password.
async fn prove(door: &Door, client: &mut Client, user: Bytes) -> io::Result<bool> {
    let verifier = door.verifiers.get(&user).cloned();
    let verifier = verifier.unwrap_or_else(|| Verifier::of_nobody(&user, &door.secret));
    let mut ask = BytesMut::new();
    authentication(&mut ask, 10, |out| {
        frame::put_text(out, scram::MECHANISM.as_bytes());
        out.put_u8(0);
    });
    client.say(&ask).await?;
    let Some(first) = initial_response(proof(client).await?)? else { return Ok(false) };
    let mut nonce = [0; 18];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let Some((exchange, answer)) = scram::begin(verifier, &first, &BASE64.encode(nonce)) else {
        return Ok(false);
    };
    let mut message = BytesMut::new();
    authentication(&mut message, 11, |out| out.put_slice(answer.as_bytes()));
    client.say(&message).await?;
    let Some(last) = exchange.finish(&proof(client).await?) else { return Ok(false) };
    let mut message = BytesMut::new();
    authentication(&mut message, 12, |out| out.put_slice(last.as_bytes()));
    client.say(&message).await?;
    Ok(true)
}

pub(super) fn authentication(out: &mut BytesMut, code: u32, body: impl FnOnce(&mut BytesMut)) {
    frame::put(out, b'R', |out| {
        out.put_u32(code);
        body(out);
    });
}

async fn proof(client: &mut Client) -> io::Result<Bytes> {
    let (kind, body) = client.reading.message(MOST_PROOF).await?;
    if kind == b'p' { Ok(body) } else { Err(frame::wrong("no proof came")) }
}

/// The mechanism's first message; `None` where it is another mechanism.
fn initial_response(mut body: Bytes) -> io::Result<Option<Bytes>> {
    let mechanism = frame::text(&mut body)?;
    let length = frame::long(&mut body)? as usize;
    Ok((mechanism == scram::MECHANISM.as_bytes() && length == body.len()).then_some(body))
}
