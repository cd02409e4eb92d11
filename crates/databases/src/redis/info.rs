//! What a server says of itself in `INFO`, read once into words of ours. Changes nothing.

use super::connect::Session;
use super::place::Place;
use rehome_part::Error;
use std::collections::BTreeMap;

/// The fields of one or more sections.
#[derive(Debug, Clone, Default)]
pub(super) struct Info(BTreeMap<String, String>);

impl Info {
    pub async fn read(session: &Session, section: &str) -> Result<Self, Error> {
        let text: String = session.ask(&format!("read INFO {section}"), &["INFO", section]).await?;
        Ok(Self::parse(&text))
    }

    pub fn parse(text: &str) -> Self {
        let fields = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.trim_end().split_once(':')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self(fields.collect())
    }

    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        self.0.get(name)?.parse().ok()
    }

    pub fn is(&self, name: &str, value: &str) -> bool {
        self.text(name) == value
    }

    /// Keys, and keys that expire, of each database that has any.
    pub fn keyspace(&self) -> BTreeMap<u32, (u64, u64)> {
        let databases = self.0.iter().filter_map(|(name, value)| {
            let number = name.strip_prefix("db")?.parse().ok()?;
            let field = |wanted: &str| {
                let mut fields = value.split(',').filter_map(|field| field.split_once('='));
                fields.find(|(name, _)| *name == wanted)?.1.parse::<u64>().ok()
            };
            Some((number, (field("keys")?, field("expires").unwrap_or(0))))
        });
        databases.collect()
    }
}

/// A server's part in replication.
#[derive(Debug, Clone)]
pub(super) struct Replication(pub Info);

impl Replication {
    pub async fn read(session: &Session) -> Result<Self, Error> {
        Info::read(session, "replication").await.map(Self)
    }

    pub fn is_replica(&self) -> bool {
        self.0.is("role", "slave")
    }

    /// Does it follow this server?
    pub fn follows(&self, host: &str, port: u16) -> bool {
        self.is_replica()
            && self.0.is("master_host", host)
            && self.0.number("master_port") == Some(port.into())
    }

    /// It follows, and hears what it follows.
    pub fn is_linked(&self) -> bool {
        self.is_replica()
            && self.0.is("master_link_status", "up")
            && !self.0.is("master_sync_in_progress", "1")
    }

    /// How far it is: as an owner what it wrote, as a replica what it executed.
    pub fn place(&self) -> Place {
        let offset = if self.is_replica() { "slave_repl_offset" } else { "master_repl_offset" };
        // The first byte that is not of the stream before.
        let until = self.0.number("second_repl_offset").filter(|first| *first > 0).map(|first| first - 1);
        let stream = self.0.text("master_replid2");
        Place {
            stream: self.0.text("master_replid").to_owned(),
            offset: self.0.number(offset).unwrap_or(0),
            before: until.map(|until| (stream.to_owned(), until)),
        }
    }

    /// Can what came after `place` still be read from this server?
    pub fn still_has(&self, place: &Place) -> bool {
        let first = self.0.number("repl_backlog_first_byte_offset").unwrap_or(u64::MAX);
        let here = self.place();
        let is_known = here.stream == place.stream
            || here.before.as_ref().is_some_and(|(s, until)| *s == place.stream && place.offset <= *until);
        self.0.is("repl_backlog_active", "1")
            && is_known
            && place.offset + 1 >= first
            && place.offset <= self.0.number("master_repl_offset").unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promoted_server_says_what_it_goes_on_from() {
        let text = "# Replication\r\nrole:master\r\nmaster_replid:bb\r\nmaster_replid2:aa\r\nmaster_repl_offset:120\r\n\
            second_repl_offset:101\r\nrepl_backlog_active:1\r\nrepl_backlog_first_byte_offset:50\r\n";
        let promoted = Replication(Info::parse(text));
        assert_eq!(promoted.place().to_string(), "bb:120;aa:100");
        let has =
            |text: &str| promoted.still_has(&Place::parse(&rehome_part::Position(text.into())).unwrap());
        assert!(has("aa:100") && has("aa:49") && has("bb:120"));
        assert!(!has("aa:48") && !has("aa:101") && !has("cc:100"));
        let keys = Info::parse("db0:keys=3,expires=1,avg_ttl=0\ndb12:keys=1,expires=0,avg_ttl=0").keyspace();
        assert_eq!(keys, BTreeMap::from([(0, (3, 1)), (12, (1, 0))]));
    }
}
