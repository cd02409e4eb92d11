//! Positions: how far a server's stream of writes is, under the name of that stream. Knows no server.

use rehome_part::Position;
use std::fmt;

/// So many bytes of the stream of this name. A server that was promoted begins a stream of its own at the byte where the old one
/// ended for it, so it also says which stream it goes on from and up to which byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Redis' replication id.
    pub stream: String,
    pub offset: u64,
    pub before: Option<(String, u64)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stream, self.offset)?;
        match &self.before {
            Some((stream, until)) => write!(f, ";{stream}:{until}"),
            None => Ok(()),
        }
    }
}

fn pair(text: &str) -> Option<(String, u64)> {
    let (stream, offset) = text.split_once(':')?;
    Some((stream.to_owned(), offset.parse().ok()?))
}

impl Place {
    pub fn parse(position: &Position) -> Option<Self> {
        let (newest, before) = match position.0.split_once(';') {
            Some((newest, before)) => (newest, Some(pair(before)?)),
            None => (&*position.0, None),
        };
        let (stream, offset) = pair(newest)?;
        Some(Self { stream, offset, before })
    }

    pub fn position(&self) -> Position {
        Position(self.to_string())
    }

    /// Is all of `wanted` in what this has? What cannot be known is not.
    pub fn covers(&self, wanted: &Self) -> bool {
        if self.stream == wanted.stream {
            return self.offset >= wanted.offset;
        }
        self.before
            .as_ref()
            .is_some_and(|(stream, until)| *stream == wanted.stream && *until >= wanted.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Place {
        Place::parse(&Position(text.into())).unwrap()
    }

    #[test]
    fn a_stream_goes_on_under_another_name_only_up_to_where_it_was_left() {
        let promoted = place("b:120;a:100");
        assert_eq!(promoted.to_string(), "b:120;a:100");
        assert!(promoted.covers(&place("a:100")) && promoted.covers(&place("b:120")));
        assert!(!promoted.covers(&place("a:101")), "written on the old owner after it was left");
        assert!(!promoted.covers(&place("b:121")) && !place("a:100").covers(&promoted));
        assert!(!place("c:500").covers(&place("a:1")), "nothing is known of another stream");
        assert!(Place::parse(&Position("pass 7".into())).is_none());
    }
}
