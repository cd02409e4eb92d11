//! The protocol spoken by hand, where commands have to go out together before the first is answered, or a stream of commands comes
//! instead of answers.

use super::connect::{Stream, command};
use rehome_part::{Error, ErrorKind, Side};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The longest the server may say nothing.
const QUIET: Duration = Duration::from_secs(10);
/// The longest line between commands.
const LINE: usize = 1024;

/// Says commands in one go and hears the first line of each answer.
pub(super) async fn converse(
    stream: Box<dyn Stream>,
    all: &[Vec<&str>],
    side: Side,
) -> Result<Vec<String>, Error> {
    let mut wire = Wire::new(stream, side);
    wire.say(all).await?;
    let mut said = Vec::new();
    for _ in all {
        said.push(String::from_utf8_lossy(&wire.line().await?).into_owned());
    }
    Ok(said)
}

/// A connection and what came on it.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    read: usize,
    side: Side,
}

impl Wire {
    pub fn new(stream: Box<dyn Stream>, side: Side) -> Self {
        Self { stream, buffer: Vec::new(), read: 0, side }
    }

    fn error(&self, kind: ErrorKind, why: &str) -> Error {
        Error::temporary(kind, format!("read the stream of writes: {why}")).on(self.side)
    }

    /// All of it in one go: the answers come from far away.
    pub async fn say(&mut self, all: &[Vec<&str>]) -> Result<(), Error> {
        let packed: Vec<u8> = all.iter().flat_map(|words| command(words).get_packed_command()).collect();
        let sent = self.stream.write_all(&packed).await;
        sent.map_err(|error| self.error(ErrorKind::Network, &error.to_string()))
    }

    pub async fn hear(&mut self, name: &str, wanted: &str) -> Result<(), Error> {
        let mut answer = String::new();
        // A server that prepares something keeps the connection alive with empty lines.
        while answer.is_empty() {
            answer = String::from_utf8_lossy(&self.line().await?).into_owned();
        }
        if answer.starts_with(wanted) {
            return Ok(());
        }
        let text = format!("read the stream of writes: {name} was answered by {answer}");
        Err(Error::permanent(ErrorKind::Credentials, text)
            .on(self.side)
            .hint("allow our user PSYNC and REPLCONF: ACL SETUSER rehome +psync +replconf"))
    }

    async fn fill(&mut self) -> Result<(), Error> {
        if self.read > 1 << 16 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        match tokio::time::timeout(QUIET, self.stream.read_buf(&mut self.buffer)).await {
            Err(_) => Err(self.error(ErrorKind::Network, "nothing came for too long")),
            Ok(Ok(0)) => Err(self.error(ErrorKind::Network, "the server ended the connection")),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.error(ErrorKind::Network, &error.to_string())),
        }
    }

    /// A line without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Error> {
        let mut looked = self.read;
        loop {
            if let Some(at) = self.buffer[looked..].iter().position(|byte| *byte == b'\n') {
                let end = looked + at;
                let line =
                    self.buffer[self.read..end].strip_suffix(b"\r").unwrap_or(&self.buffer[self.read..end]);
                let line = line.to_vec();
                self.read = end + 1;
                return Ok(line);
            }
            if self.buffer.len() - self.read > LINE {
                return Err(self.error(ErrorKind::Corrupt, "a line has no end"));
            }
            let unread = self.buffer.len() - self.read;
            self.fill().await?;
            looked = self.read + unread;
        }
    }

    async fn exactly(&mut self, bytes: usize) -> Result<Vec<u8>, Error> {
        while self.buffer.len() - self.read < bytes + 2 {
            self.fill().await?;
        }
        let word = self.buffer[self.read..self.read + bytes].to_vec();
        self.read += bytes + 2;
        Ok(word)
    }

    async fn number(&mut self, sign: u8, bytes: &mut u64) -> Result<usize, Error> {
        let line = self.line().await?;
        *bytes += line.len() as u64 + 2;
        let number = line.strip_prefix(&[sign]).and_then(|rest| std::str::from_utf8(rest).ok()?.parse().ok());
        number.ok_or_else(|| self.error(ErrorKind::Corrupt, "what came is no command"))
    }

    /// The next command, and how much of the stream it is.
    pub async fn next(&mut self) -> Result<(Vec<Vec<u8>>, u64), Error> {
        let mut bytes = 0;
        if self.buffer.get(self.read) == Some(&b'\n') {
            self.read += 1;
            return Ok((Vec::new(), 1));
        }
        let count = self.number(b'*', &mut bytes).await?;
        let mut words = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let length = self.number(b'$', &mut bytes).await?;
            words.push(self.exactly(length).await?);
            bytes += length as u64 + 2;
        }
        Ok((words, bytes))
    }
}
