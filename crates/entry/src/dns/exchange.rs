//! One message to one name server and its answer: UDP first, TCP when that is silent or the answer does not fit.
//!
//! Believed is only what fits the question (id, opcode, question, sender) and, where we signed, is signed. Anything else is
//! passed over and waited past; an unsigned refusal can explain a failure, it never makes a success.

use super::Clock;
use super::tsig::Key;
use crate::EntryError;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

/// How long one datagram is waited for, and how often it is sent.
const UDP_TRY: Duration = Duration::from_millis(1_500);
const UDP_TRIES: u32 = 2;
/// For connecting, sending and reading together.
const TCP_TIME: Duration = Duration::from_secs(4);
/// What passes everywhere without being cut into pieces (the DNS flag day of 2020).
const UDP_SIZE: u16 = 1_232;

/// A question to ask, without recursion unless wanted; the server is told that signatures (DNSSEC) are welcome.
pub fn question(name: Name, kind: RecordType, recursion: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = recursion;
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_SIZE).set_version(0).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

/// Sends a message and gives the answer that can be believed, whatever its response code.
///
/// # Errors
/// `Unreachable` when there is none, `Refused` when the server does not take our signature.
pub async fn exchange(
    server: SocketAddr,
    mut message: Message,
    key: Option<&Key>,
    clock: &Clock,
) -> Result<Message, EntryError> {
    let now = u64::try_from(clock().as_second()).unwrap_or(0);
    if let Some(key) = key {
        message.finalize(&key.signer, now).map_err(|error| cannot(server, &error))?;
    }
    let bytes = message.to_vec().map_err(|error| cannot(server, &error))?;
    let sent = Sent { message, bytes, key, now };
    if sent.bytes.len() <= usize::from(UDP_SIZE)
        && let Some(answer) = by_udp(server, &sent).await
        && !answer.truncation
    {
        return Ok(answer);
    }
    match timeout(TCP_TIME, by_tcp(server, &sent)).await {
        Ok(answer) => answer,
        Err(_) => Err(unreachable(server, &format!("no answer within {} s", TCP_TIME.as_secs()))),
    }
}

fn cannot(server: SocketAddr, error: &hickory_proto::ProtoError) -> EntryError {
    EntryError::unfit(
        format!("the message to {server} cannot be written: {error}"),
        "fewer records go into one message",
    )
}

pub(crate) fn unreachable(server: SocketAddr, text: &str) -> EntryError {
    EntryError::Unreachable { whom: format!("name server {server}"), text: text.to_owned() }
}

/// What went out, and what an answer has to fit.
struct Sent<'a> {
    message: Message,
    bytes: Vec<u8>,
    key: Option<&'a Key>,
    now: u64,
}

enum Heard {
    Believed(Box<Message>),
    /// Signed as it must be, and it says that our own signature will not do.
    Refusal(String),
    /// It fits the question, but nobody vouches for it.
    Unproven(String),
    Nothing,
}

impl Sent<'_> {
    fn judge(&self, bytes: &[u8]) -> Heard {
        let Ok(answer) = Message::from_vec(bytes) else { return Heard::Nothing };
        if !self.fits(&answer) {
            return Heard::Nothing;
        }
        let Some(key) = self.key else { return Heard::Believed(Box::new(answer)) };
        let Some(tsig) = answer.signature() else {
            return Heard::Unproven(format!("an answer without a signature ({})", answer.response_code));
        };
        if tsig.data.mac.is_empty() {
            let why = key.explain(&tsig.data, self.now);
            return Heard::Unproven(why.unwrap_or_else(|| "an empty signature".into()));
        }
        let ours = self.message.signature().map(|ours| ours.data.mac.as_slice());
        match (key.signer.verify_message_byte(bytes, ours, true), key.explain(&tsig.data, self.now)) {
            (Ok(_), Some(why)) => Heard::Refusal(why),
            // The library leaves the clock to us. (With BADTIME the times are apart, and that is what it says.)
            (Ok((_, _, times)), None) if times.contains(&self.now) => Heard::Believed(Box::new(answer)),
            (Ok(_), None) => Heard::Unproven("an answer signed at another time".into()),
            (Err(_), _) => {
                Heard::Unproven(format!("an answer whose signature is not that of key `{}`", key.name()))
            }
        }
    }

    fn fits(&self, answer: &Message) -> bool {
        let (asked, update) = (&self.message, self.message.op_code == OpCode::Update);
        // Whoever could not read the question, and whoever made an update, need not repeat it.
        let need_not = update || answer.response_code != ResponseCode::NoError;
        answer.id == asked.id
            && answer.message_type == MessageType::Response
            && answer.op_code == asked.op_code
            && (answer.queries == asked.queries || (answer.queries.is_empty() && need_not))
    }
}

async fn by_udp(server: SocketAddr, sent: &Sent<'_>) -> Option<Message> {
    // A fresh socket with a port of the kernel's choice, and connected: only this server's datagrams come in.
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(server).await.ok()?;
    let mut buffer = vec![0; 65_535];
    for _ in 0..UDP_TRIES {
        socket.send(&sent.bytes).await.ok()?;
        let deadline = Instant::now() + UDP_TRY;
        let mut doubtful = false;
        while let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await {
            let length = received.ok()?;
            match sent.judge(&buffer[..length]) {
                Heard::Believed(answer) => return Some(*answer),
                // TCP will say it again, and there nobody can have made it up.
                Heard::Refusal(_) => return None,
                Heard::Unproven(_) => doubtful = true,
                Heard::Nothing => {}
            }
        }
        if doubtful {
            return None;
        }
    }
    None
}

async fn by_tcp(server: SocketAddr, sent: &Sent<'_>) -> Result<Message, EntryError> {
    let failed = |error: std::io::Error| unreachable(server, &error.to_string());
    let length =
        u16::try_from(sent.bytes.len()).map_err(|_| unreachable(server, "the message is too long"))?;
    let mut stream = TcpStream::connect(server).await.map_err(failed)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&sent.bytes);
    stream.write_all(&framed).await.map_err(failed)?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await.map_err(failed)?)];
    stream.read_exact(&mut bytes).await.map_err(failed)?;
    let refused = |text| Err(EntryError::Refused { whom: format!("name server {server}"), text });
    match sent.judge(&bytes) {
        Heard::Believed(answer) if answer.truncation => {
            Err(unreachable(server, "it cut its answer over TCP"))
        }
        Heard::Believed(answer) => Ok(*answer),
        Heard::Refusal(text) | Heard::Unproven(text) => refused(text),
        Heard::Nothing => Err(unreachable(server, "what it answered is no answer to the question")),
    }
}
