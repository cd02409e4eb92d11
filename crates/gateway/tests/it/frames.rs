//! HTTP/2 by hand, for requests that no library sends: frames are written as the test says, HPACK without compression.

use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

const PATIENCE: Duration = Duration::from_secs(2);

/// A connection after its preface.
pub struct Frames(TcpStream);

impl Frames {
    pub async fn connect(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut frames = Self(stream);
        frames.send(SETTINGS, 0, 0, &[]).await;
        frames
    }

    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        // The gateway may have ended the connection already; what it said shows in the answer.
        let _gone = self.0.write_all(&frame).await;
    }

    /// A whole request on stream 1: headers, one piece of body if it is not empty, and trailers if there are any.
    pub async fn request(&mut self, headers: &[(&str, &str)], body: &str, trailers: &[(&str, &str)]) {
        let no_body = body.is_empty() && trailers.is_empty();
        let end = |last: bool| if last { END_STREAM } else { 0 };
        self.send(HEADERS, END_HEADERS | end(no_body), 1, &block(headers)).await;
        if !body.is_empty() {
            self.send(DATA, end(trailers.is_empty()), 1, body.as_bytes()).await;
        }
        if !trailers.is_empty() {
            self.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers)).await;
        }
    }

    /// What stream 1 is answered with: a status, or `reset` or `goaway` with the error's number, or `closed`, or `silent`.
    pub async fn answer(&mut self) -> String {
        let answer = async {
            loop {
                let Some((kind, flags, payload)) = self.next().await else { return "closed".to_owned() };
                match kind {
                    HEADERS => return status(&payload),
                    RST_STREAM => return format!("reset {}", number(&payload)),
                    GOAWAY => return format!("goaway {}", number(&payload[4..])),
                    PING if flags & ACK == 0 => self.send(PING, ACK, 0, &payload).await,
                    SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(|_| "silent".into())
    }

    async fn next(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((head[3], head[4], payload))
    }
}

fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// RFC 7541 section 6.2.2: literals that are not indexed, names and values as they are, below 127 bytes each.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer lengths are not written here");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The status of an answer, which comes first: an entry of the static table (RFC 7541 appendix A) or a literal with its name.
fn status(block: &[u8]) -> String {
    match block {
        [0x88, ..] => "200".into(),
        [0x8c, ..] => "400".into(),
        [0x8d, ..] => "404".into(),
        [0x8e, ..] => "500".into(),
        // Three digits: plain, or packed by Huffman into two bytes.
        [0x08 | 0x48, 3, digits @ ..] => String::from_utf8_lossy(&digits[..3]).into_owned(),
        other => format!("another status: {other:?}"),
    }
}
