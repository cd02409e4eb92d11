//! Messages of `pgoutput`, version 1, as far as late writes need them: which rows of which table, and whether a follower made them.
//! Source of the format: PostgreSQL's manual, "Logical Replication Message Formats".

use super::lsn::Lsn;
use rehome_part::{Error, ErrorKind, Result};
use std::collections::HashMap;

/// A table as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relation {
    pub schema: String,
    pub table: String,
    /// Name, and whether it is a part of what names a row.
    pub columns: Vec<(String, bool)>,
}

/// A value of a row: text, null, or one that was too large to be repeated and did not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Null,
    Same,
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Message {
    /// Where in the log the transaction is committed.
    Begin(Lsn),
    /// The transaction was made by a follower.
    Origin,
    Commit,
    Relation(u32, Relation),
    Insert(u32, Vec<Value>),
    /// What named the row before, if that changed or the whole row names it, and the row.
    Update(u32, Option<Vec<Value>>, Vec<Value>),
    Delete(u32, Vec<Value>),
    Truncate(Vec<u32>),
    /// Types, and what later versions may add.
    Other,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Message> {
    let mut reader = Reader { rest: bytes };
    let message = match reader.byte()? {
        b'B' => Message::Begin(Lsn(u64::from(reader.number()?) << 32 | u64::from(reader.number()?))),
        b'O' => Message::Origin,
        b'C' => Message::Commit,
        b'R' => {
            let id = reader.number()?;
            let (schema, table) = (reader.text()?, reader.text()?);
            let _identity = reader.byte()?;
            let count = reader.short()?;
            let mut columns = Vec::new();
            for _ in 0..count {
                let is_key = reader.byte()? & 1 == 1;
                columns.push((reader.text()?, is_key));
                reader.take(8)?;
            }
            Message::Relation(id, Relation { schema, table, columns })
        }
        b'I' => {
            let id = reader.number()?;
            reader.expect(b'N')?;
            Message::Insert(id, reader.row()?)
        }
        b'U' => {
            let id = reader.number()?;
            let (before, after) = match reader.byte()? {
                b'K' | b'O' => {
                    let before = reader.row()?;
                    reader.expect(b'N')?;
                    (Some(before), reader.row()?)
                }
                b'N' => (None, reader.row()?),
                _ => return Err(nonsense()),
            };
            Message::Update(id, before, after)
        }
        b'D' => {
            let id = reader.number()?;
            match reader.byte()? {
                b'K' | b'O' => Message::Delete(id, reader.row()?),
                _ => return Err(nonsense()),
            }
        }
        b'T' => {
            let count = reader.number()?;
            let _options = reader.byte()?;
            let ids: Result<Vec<u32>> = (0..count.min(100_000)).map(|_| reader.number()).collect();
            Message::Truncate(ids?)
        }
        _ => Message::Other,
    };
    Ok(message)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(nonsense)?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.take(1).map(|taken| taken.first().copied().unwrap_or_default())
    }

    fn expect(&mut self, wanted: u8) -> Result<()> {
        if self.byte()? == wanted { Ok(()) } else { Err(nonsense()) }
    }

    fn short(&mut self) -> Result<u16> {
        let bytes = self.take(2)?.try_into().map_err(|_| nonsense())?;
        Ok(u16::from_be_bytes(bytes))
    }

    fn number(&mut self) -> Result<u32> {
        let bytes = self.take(4)?.try_into().map_err(|_| nonsense())?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn text(&mut self) -> Result<String> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or_else(nonsense)?;
        let text = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(text)
    }

    fn row(&mut self) -> Result<Vec<Value>> {
        let count = self.short()?;
        let mut row = Vec::new();
        for _ in 0..count {
            row.push(match self.byte()? {
                b'n' => Value::Null,
                b'u' => Value::Same,
                b't' => {
                    let length = self.number()? as usize;
                    Value::Text(String::from_utf8_lossy(self.take(length)?).into_owned())
                }
                _ => return Err(nonsense()),
            });
        }
        Ok(row)
    }
}

fn nonsense() -> Error {
    Error::permanent(ErrorKind::Corrupt, "the server's stream of changes makes no sense here")
}

/// A change of one row that no follower made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub relation: Relation,
    /// What names the row now; empty after a delete.
    pub after: Vec<Value>,
    /// What named it before, where that is not told by `after`.
    pub before: Vec<Value>,
    /// All rows of the table at once.
    pub is_truncate: bool,
}

/// Reads a stream of whole transactions, and keeps what was written here and committed after `since`.
pub(super) fn local_changes(messages: impl IntoIterator<Item = Vec<u8>>, since: Lsn) -> Result<Vec<Change>> {
    let mut relations: HashMap<u32, Relation> = HashMap::new();
    let (mut changes, mut is_of_no_interest) = (Vec::new(), false);
    for bytes in messages {
        let message = parse(&bytes)?;
        let of = |id: u32| relations.get(&id).cloned().ok_or_else(nonsense);
        let change = match message {
            Message::Begin(committed) => {
                is_of_no_interest = committed <= since;
                continue;
            }
            Message::Origin => {
                is_of_no_interest = true;
                continue;
            }
            Message::Relation(id, relation) => {
                relations.insert(id, relation);
                continue;
            }
            Message::Commit | Message::Other => continue,
            Message::Insert(id, after) => {
                vec![Change { relation: of(id)?, after, before: Vec::new(), is_truncate: false }]
            }
            Message::Update(id, before, after) => {
                vec![Change {
                    relation: of(id)?,
                    after,
                    before: before.unwrap_or_default(),
                    is_truncate: false,
                }]
            }
            Message::Delete(id, before) => {
                vec![Change { relation: of(id)?, after: Vec::new(), before, is_truncate: false }]
            }
            Message::Truncate(ids) => {
                let truncated = ids.into_iter().map(|id| {
                    Ok(Change { relation: of(id)?, after: Vec::new(), before: Vec::new(), is_truncate: true })
                });
                truncated.collect::<Result<Vec<_>>>()?
            }
        };
        if !is_of_no_interest {
            changes.extend(change.into_iter().filter(|change| change.relation.schema != "rehome"));
        }
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relation() -> Vec<u8> {
        [
            b"R\0\0\0\x07public\0orders\0d\0\x02".as_slice(),
            b"\x01id\0\0\0\0\x14\xff\xff\xff\xff",
            b"\0what\0\0\0\0\x19\xff\xff\xff\xff",
        ]
        .concat()
    }

    fn begin(committed: u64) -> Vec<u8> {
        [b"B".as_slice(), &committed.to_be_bytes(), &[0; 12]].concat()
    }

    #[test]
    fn what_was_written_here_is_told_from_what_was_followed() {
        let insert = b"I\0\0\0\x07N\0\x02t\0\0\0\x0242n".to_vec();
        let delete = b"D\0\0\0\x07K\0\x02t\0\0\0\x0242n".to_vec();
        let stream = vec![
            begin(2),
            relation(),
            insert.clone(),
            b"C".to_vec(),
            begin(3),
            b"O\0\0\0\0\0\0\0\0x\0".to_vec(),
            insert,
            b"C".to_vec(),
            begin(4),
            delete,
            b"C".to_vec(),
        ];
        assert_eq!(local_changes(stream.clone(), Lsn(4)).unwrap(), []);
        let changes = local_changes(stream, Lsn(1)).unwrap();
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert_eq!(changes[0].after, vec![Value::Text("42".into()), Value::Null]);
        assert_eq!(changes[0].relation.columns, vec![("id".to_owned(), true), ("what".to_owned(), false)]);
        assert!(changes[1].after.is_empty() && changes[1].before[0] == Value::Text("42".into()));
    }

    #[test]
    fn a_torn_message_is_refused() {
        let whole = relation();
        for end in 1..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        assert!(parse(b"I\0\0\0\x07N\0\x01t\xff\xff\xff\xffx").is_err());
        assert!(
            local_changes([b"I\0\0\0\x09N\0\x01n".to_vec()], Lsn(0)).is_err(),
            "a table nobody described"
        );
    }
}
