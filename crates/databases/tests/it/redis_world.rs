//! Two real Redis servers, the users on them, and parts over them.

use async_trait::async_trait;
use rehome_databases::redis::RedisPart;
use rehome_databases::{Address, End, Ends, FenceMeans, Login};
use rehome_part::contract::{Refused, Rig};
use rehome_part::{Part, Side};
use rehome_testkit::redis::{Redis, is_here_or_skip};
use std::sync::Arc;

/// Ours, and the application's.
pub const OWN: (&str, &str) = ("rehome", "own-secret");
pub const APPLICATION: (&str, &str) = ("app", "app-secret");

#[derive(Debug)]
pub struct World {
    pub source: Redis,
    pub target: Redis,
    pub state: tempfile::TempDir,
    pub means: FenceMeans,
}

/// A server with both users; the default user needs no password, as so often.
pub fn server(settings: &[(&str, &str)]) -> Option<Redis> {
    if !is_here_or_skip() {
        return None;
    }
    let server = Redis::start(settings).unwrap();
    server.run(&["ACL", "SETUSER", OWN.0, "on", &format!(">{}", OWN.1), "~*", "&*", "+@all"]).unwrap();
    let password = format!(">{}", APPLICATION.1);
    server
        .run(&["ACL", "SETUSER", APPLICATION.0, "on", &password, "~*", "+@all", "-@dangerous", "+keys"])
        .unwrap();
    Some(server)
}

pub fn login(of: (&str, &str)) -> Login {
    Login { user: of.0.to_owned(), password: Some(of.1.to_owned()) }
}

pub fn end(server: &Redis) -> End {
    let address = Address::parse(&server.address(OWN.0, 0)).unwrap();
    let nobody = Login { user: "default".to_owned(), password: None };
    End { applications: vec![login(APPLICATION), nobody], ..End::new(address, Some(OWN.1.to_owned())) }
}

impl World {
    pub fn new(means: FenceMeans) -> Option<Self> {
        let (source, target) = (server(&[])?, server(&[])?);
        Some(Self { source, target, state: tempfile::tempdir().unwrap(), means })
    }

    /// Servers that keep their users in a file.
    pub fn with_files(means: FenceMeans) -> Option<Self> {
        let state = tempfile::tempdir().unwrap();
        let server = |name: &str| {
            let users = state.path().join(format!("{name}.acl"));
            std::fs::write(&users, "").unwrap();
            let server = server(&[("aclfile", &users.display().to_string())])?;
            server.run(&["ACL", "SAVE"]).unwrap();
            Some(server)
        };
        let (source, target) = (server("source")?, server("target")?);
        Some(Self { source, target, state, means })
    }

    pub fn of(&self, side: Side) -> &Redis {
        if side == Side::Source { &self.source } else { &self.target }
    }

    pub fn part(&self) -> RedisPart {
        let ends = Ends { source: end(&self.source), target: end(&self.target) };
        RedisPart::new("cache", ends, self.means, self.state.path()).unwrap()
    }

    /// As ourselves, past every fence.
    pub fn own(&self, side: Side, words: &[&str]) -> String {
        self.of(side).run_as(Some(OWN), words).unwrap()
    }

    pub fn application(&self, side: Side, words: &[&str]) -> Result<String, Refused> {
        self.of(side).run_as(Some(APPLICATION), words).map_err(|error| Refused(error.to_string()))
    }
}

#[async_trait]
impl Rig for World {
    fn part(&self) -> Arc<dyn Part> {
        Arc::new(World::part(self))
    }

    async fn write(&self, side: Side, key: &str, content: &[u8]) -> Result<(), Refused> {
        self.application(side, &["SET", key, std::str::from_utf8(content).unwrap()]).map(drop)
    }

    async fn delete(&self, side: Side, key: &str) -> Result<(), Refused> {
        self.application(side, &["DEL", key]).map(drop)
    }

    async fn read(&self, side: Side, key: &str) -> Option<Vec<u8>> {
        let is_there = self.own(side, &["EXISTS", key]) == "1";
        is_there.then(|| self.own(side, &["GET", key]).into_bytes())
    }

    async fn plant(&self, side: Side, key: &str, content: Option<&[u8]>) {
        // What a replica is made to write is in no stream.
        let is_replica = self.own(side, &["ROLE"]).starts_with("slave");
        if is_replica {
            self.own(side, &["CONFIG", "SET", "replica-read-only", "no"]);
        }
        match content {
            Some(content) => self.own(side, &["SET", key, std::str::from_utf8(content).unwrap()]),
            None => self.own(side, &["DEL", key]),
        };
        if is_replica {
            self.own(side, &["CONFIG", "SET", "replica-read-only", "yes"]);
        }
    }

    async fn write_late(&self, side: Side, key: &str, content: &[u8]) {
        // The old owner stands still for a while after the seal; this one comes when it does no more.
        self.own(side, &["CLIENT", "UNPAUSE"]);
        self.own(side, &["SET", key, std::str::from_utf8(content).unwrap()]);
    }

    async fn guard(&self, side: Side) -> String {
        self.own(side, &["ACL", "LIST"])
    }

    async fn make_target(&self) {}

    async fn remains(&self) -> Vec<String> {
        let mut remains = Vec::new();
        for side in [Side::Source, Side::Target] {
            let keys = self.own(side, &["KEYS", "rehome:*"]);
            remains.extend(keys.lines().map(|key| format!("{side}: {key}")));
            for name in ["masterauth", "masteruser"] {
                if let Some(value) =
                    self.own(side, &["CONFIG", "GET", name]).lines().nth(1).filter(|value| !value.is_empty())
                {
                    remains.push(format!("{side}: {name} {value}"));
                }
            }
        }
        remains
    }
}
