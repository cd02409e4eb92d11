//! A look into a server's stream of writes, as a replica would get it: exact, in order, from a position to another. Never asks for a
//! full copy, and writes nothing.

use super::connect::{command, open};
use super::info::Replication;
use super::place::Place;
use crate::end::End;
use rehome_part::{Error, ErrorKind, Side};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The longest the server may say nothing.
const QUIET: Duration = Duration::from_secs(10);
/// The longest line between commands.
const LINE: usize = 1024;

/// One command of the stream.
#[derive(Debug)]
pub(super) struct Written<'a> {
    /// Not known until the stream first says it.
    pub database: Option<u32>,
    pub words: &'a [Vec<u8>],
}

impl Written<'_> {
    pub fn is(&self, name: &str) -> bool {
        self.words.first().is_some_and(|word| word.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// Shows `each` what was written after `from` and up to the server's position in `now`. `false`: that cannot be read any more.
///
/// # Errors
/// The server cannot be reached, or does not let us see it.
pub(super) async fn read(
    end: &End,
    side: Side,
    from: &Place,
    now: &Replication,
    mut each: impl FnMut(&Written<'_>) + Send,
) -> Result<bool, Error> {
    // Asked without this look, the server would begin a full copy for us.
    if !now.still_has(from) {
        return Ok(false);
    }
    let length = now.place().offset.saturating_sub(from.offset);
    if length == 0 {
        return Ok(true);
    }
    let mut wire = Wire { stream: open(&end.address, side).await?, buffer: Vec::new(), read: 0, side };
    let (user, next) = (&*end.address.user, (from.offset + 1).to_string());
    let mut words = vec![vec!["REPLCONF", "capa", "psync2"]];
    if end.password.is_some() || user != "default" {
        words.insert(0, vec!["AUTH", user, end.password.as_deref().unwrap_or("-")]);
    }
    wire.say(&words).await?;
    for words in &words {
        wire.hear(words[0], "+OK").await?;
    }
    // Alone: a server refuses it while it still has something else to say.
    wire.say(&[vec!["PSYNC", &from.stream, &next]]).await?;
    wire.hear("PSYNC", "+CONTINUE").await?;
    let (mut gone, mut database) = (0, None);
    while gone < length {
        let (words, bytes) = wire.next().await?;
        gone += bytes;
        let written = Written { database, words: &words };
        if written.is("SELECT") {
            database = words.get(1).and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
        } else if !words.is_empty() {
            each(&written);
        }
    }
    Ok(true)
}

struct Wire {
    stream: Box<dyn super::connect::Stream>,
    buffer: Vec<u8>,
    read: usize,
    side: Side,
}

impl Wire {
    fn error(&self, kind: ErrorKind, why: &str) -> Error {
        Error::temporary(kind, format!("read the stream of writes: {why}")).on(self.side)
    }

    /// All of it in one go: the answers come from far away.
    async fn say(&mut self, all: &[Vec<&str>]) -> Result<(), Error> {
        let packed: Vec<u8> = all.iter().flat_map(|words| command(words).get_packed_command()).collect();
        let sent = self.stream.write_all(&packed).await;
        sent.map_err(|error| self.error(ErrorKind::Network, &error.to_string()))
    }

    async fn hear(&mut self, name: &str, wanted: &str) -> Result<(), Error> {
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
    async fn next(&mut self) -> Result<(Vec<Vec<u8>>, u64), Error> {
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
