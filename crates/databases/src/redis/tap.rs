//! A look into a server's stream of writes, as a replica would get it: exact, in order, from a position to another. Never asks for a
//! full copy, and writes nothing.

use super::connect::open;
use super::info::Replication;
use super::place::Place;
use super::wire::Wire;
use crate::end::End;
use rehome_part::{Error, Side};

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
    each: impl FnMut(&Written<'_>) + Send,
) -> Result<bool, Error> {
    read_on(None, end, side, from, now, each).await
}

/// A connection that is ready to read.
pub(super) async fn open_at(end: &End, side: Side) -> Result<Wire, Error> {
    let mut wire = Wire::new(open(&end.address, side).await?, side);
    let user = &*end.address.user;
    let mut words = vec![vec!["REPLCONF", "capa", "psync2"]];
    if end.password.is_some() || user != "default" {
        words.insert(0, vec!["AUTH", user, end.password.as_deref().unwrap_or("-")]);
    }
    wire.say(&words).await?;
    for words in &words {
        wire.hear(words[0], "+OK").await?;
    }
    Ok(wire)
}

/// Says from where, and hears that it can be had.
async fn begin(wire: &mut Wire, from: &Place) -> Result<(), Error> {
    let next = (from.offset + 1).to_string();
    // Alone: a server refuses it while it still has something else to say.
    wire.say(&[vec!["PSYNC", &from.stream, &next]]).await?;
    wire.hear("PSYNC", "+CONTINUE").await
}

/// The same on a connection that was made before, if there is one and it still works.
pub(super) async fn read_on(
    warm: Option<Wire>,
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
    let ready = match warm {
        Some(mut wire) => begin(&mut wire, from).await.ok().map(|()| wire),
        None => None,
    };
    let mut wire = match ready {
        Some(wire) => wire,
        None => {
            let mut wire = open_at(end, side).await?;
            begin(&mut wire, from).await?;
            wire
        }
    };
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
