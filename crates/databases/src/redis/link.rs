//! Both servers and what binds them: sessions, settings, who follows whom, and the moments in which that changes.
//! Knows nothing of users.

use super::connect::{Session, Stream, command, connect};
use super::fence::Users;
use super::info::{Info, Replication};
use super::memory::{Matter, Memory};
use super::place::Place;
use super::verify::keys_of;
use super::wire::Wire;
use crate::end::{End, Ends, FenceMeans};
use redis::{Pipeline, Value};
use rehome_part::{Error, ErrorKind, Flow, Result, Side};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long an old owner stands still after the seal. Long enough for the new owner to open and the old to begin to follow it; a
/// pause that nobody takes away ends by itself.
const FREEZE: Duration = Duration::from_secs(30);
/// The longest the last bytes may take to the other side once the old owner stands still.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// Between two looks while writes wait.
pub(super) const LOOK: Duration = Duration::from_millis(2);
/// What makes a replica an owner.
pub(super) const PROMOTION: &[&str] = &["REPLICAOF", "NO", "ONE"];
/// Calls that are made again when a connection breaks, so far apart.
const PAUSES: [Duration; 3] =
    [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

/// Where a switch ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sealed {
    /// The new owner's position: the way back begins here.
    pub start: String,
    /// All that the old owner ever wrote for the application: whatever is after this is late.
    pub frozen: String,
}

impl Sealed {
    pub fn start(&self) -> Result<Place> {
        place(&self.start)
    }

    pub fn frozen(&self) -> Result<Place> {
        place(&self.frozen)
    }
}

/// A server knows numbers of IPv6 without the brackets that addresses want.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn place(text: &str) -> Result<Place> {
    let parsed = Place::parse(&rehome_part::Position(text.to_owned()));
    parsed.ok_or_else(|| Error::permanent(ErrorKind::Corrupt, format!("`{text}` is no position")))
}

/// What may be made and read of a side before writes wait.
#[derive(Default)]
pub(super) struct Warmed {
    /// Connections on which nobody has logged in yet.
    pub streams: Vec<Box<dyn Stream>>,
    /// To read the stream of writes on.
    pub tap: Option<Wire>,
    /// The users and when they were read.
    pub users: Option<(Instant, Users)>,
    /// The keys with which users try to write.
    pub probe_keys: HashMap<String, String>,
}

impl std::fmt::Debug for Warmed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Warmed").field("streams", &self.streams.len()).finish_non_exhaustive()
    }
}

/// What all of a part works with.
#[derive(Debug)]
pub(super) struct Link {
    pub ends: Ends,
    pub means: FenceMeans,
    pub memory: Memory,
    /// By side and number of the database.
    sessions: Mutex<HashMap<(Side, u32), Session>>,
    /// What the next switch will want, made beforehand.
    warmed: Mutex<HashMap<Side, Warmed>>,
}

impl Link {
    pub fn new(ends: Ends, means: FenceMeans, memory: Memory) -> Self {
        Self { ends, means, memory, sessions: Mutex::default(), warmed: Mutex::default() }
    }

    pub fn end(&self, side: Side) -> &End {
        self.ends.of(side)
    }

    /// The session of a side in database 0.
    pub async fn session(&self, side: Side) -> Result<Session> {
        self.session_in(side, 0).await
    }

    /// The session of a side in a database, opened where there is none or it broke.
    pub async fn session_in(&self, side: Side, database: u32) -> Result<Session> {
        let known =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).get(&(side, database)).cloned();
        if let Some(session) = known.filter(|session| !session.is_lost()) {
            return Ok(session);
        }
        let session = self.own_session_in(side, database).await?;
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.insert((side, database), session.clone());
        Ok(session)
    }

    /// Looks into, or changes, what was made beforehand of a side.
    pub fn warmed<T>(&self, side: Side, look: impl FnOnce(&mut Warmed) -> T) -> T {
        look(self.warmed.lock().unwrap_or_else(PoisonError::into_inner).entry(side).or_default())
    }

    /// A session in a database that nobody shares.
    pub async fn own_session_in(&self, side: Side, database: u32) -> Result<Session> {
        let end = self.end(side);
        let mut address = end.address.clone();
        address.database = database.to_string();
        Box::pin(connect(&address, end.password.as_deref(), side)).await
    }

    /// Makes a call again when a connection broke: every call here may be made twice.
    pub async fn patiently<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        for pause in PAUSES {
            match call().await {
                Err(error) if error.is_temporary() && error.kind == ErrorKind::Network => {
                    tracing::debug!(%error, "once more");
                    tokio::time::sleep(pause).await;
                }
                done => return done,
            }
        }
        call().await
    }

    pub async fn replication(&self, side: Side) -> Result<Replication> {
        Replication::read(&self.session(side).await?).await
    }

    /// Does the side that is to follow in this flow do so?
    pub fn is_bound(&self, flow: Flow, replica: &Replication) -> bool {
        let address = self.end(flow.from()).as_seen_by_other();
        replica.follows(bare(&address.host), address.port)
    }

    pub fn sealed(&self, flow: Flow) -> Result<Option<Sealed>> {
        self.memory.get(Matter::Sealed(flow))
    }

    /// Binds `flow.to()` to `flow.from()`. What it holds is replaced, unless it can go on from what it has.
    pub async fn bind(&self, flow: Flow) -> Result<()> {
        let (owner, address) = (self.end(flow.from()), self.end(flow.from()).as_seen_by_other());
        if address.host.starts_with('/') {
            let text = format!("a replica cannot follow {address} by a socket");
            return Err(Error::permanent(ErrorKind::Unsupported, text)
                .on(flow.from())
                .hint("say how the other server reaches it by a name or number and a port"));
        }
        // A user without a password is still a user; any word lets it in.
        let (user, password) = match (&*owner.address.user, &owner.password) {
            ("default", None) => ("", ""),
            (user, None) => (user, "-"),
            (user, Some(password)) => (user, &**password),
        };
        let tls = if address.tls == crate::address::Tls::Off { "no" } else { "yes" };
        let mut wanted = vec![
            ("replica-read-only", "yes"),
            ("repl-backlog-ttl", "0"),
            ("masteruser", user),
            ("masterauth", password),
        ];
        let replica = self.session(flow.to()).await?;
        // Servers built without TLS do not know the setting.
        if tls == "yes" || !setting(&replica, "tls-replication").await?.is_empty() {
            wanted.push(("tls-replication", tls));
        }
        self.set(flow.to(), &wanted).await?;
        // An owner that nobody follows forgets its stream after an hour, and the way back with it.
        self.set(flow.from(), &[("repl-backlog-ttl", "0")]).await?;
        let port = address.port.to_string();
        let bound: Result<Value, _> = replica.asked(&["REPLICAOF", bare(&address.host), &port]).await;
        bound.map(drop).map_err(|error| {
            replica
                .error("make it a replica", &error)
                .hint("REPLICAOF must be allowed there; many clouds forbid it")
        })
    }

    /// Ends following; what was copied stays, and the stream goes on under a new name.
    pub async fn promote(&self, side: Side) -> Result<()> {
        let session = self.session(side).await?;
        session.ask::<Value>("end following", PROMOTION).await.map(drop)
    }

    /// Stops every writer of a side for a while, ours as well, and what expires: its position does not move. Before 6.2 there is no
    /// pause that lets reads through, so there is none.
    pub async fn freeze(&self, side: Side) -> Result<Replication> {
        let session = self.session(side).await?;
        let millis = FREEZE.as_millis().to_string();
        let both = [command(&["CLIENT", "PAUSE", &millis, "WRITE"]), command(&["INFO", "replication"])];
        let mut answers = session.answers("pause writes", &both).await?.into_iter();
        if let Some(Value::ServerError(error)) = answers.next() {
            let error = redis::RedisError::from(error);
            tracing::info!(%side, %error, "the old owner is not held still; the way back may need a full copy");
        }
        let info: std::result::Result<String, _> =
            redis::from_redis_value(answers.next().unwrap_or(Value::Nil));
        let info = info.map_err(|error| session.error("pause writes", &error.into()))?;
        Ok(Replication(Info::parse(&info)))
    }

    pub async fn thaw(&self, side: Side) -> Result<()> {
        let session = self.session(side).await?;
        let thawed: Result<Value, _> = session.asked(&["CLIENT", "UNPAUSE"]).await;
        match thawed.map_err(|error| session.error("end the pause of writes", &error)) {
            Err(error) if error.kind == ErrorKind::Network => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until `side` has executed all of `wanted`.
    pub async fn wait_for(&self, side: Side, wanted: &Place, patience: Duration) -> Result<Place> {
        let until = Instant::now() + patience;
        loop {
            let place = self.replication(side).await?.place();
            if place.covers(wanted) {
                return Ok(place);
            }
            if Instant::now() > until {
                let text = format!("the {side} is at {place}, and {wanted} does not arrive");
                return Err(Error::temporary(ErrorKind::Deadline, text).on(side));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn seal(&self, flow: Flow) -> Result<Sealed> {
        if let Some(sealed) = self.sealed(flow)? {
            return Ok(sealed);
        }
        // Both are asked at once: most of the time the last bytes are there long since.
        let (frozen, there) = tokio::try_join!(self.freeze(flow.from()), self.replication(flow.to()))?;
        let (frozen, there) = (frozen.place(), there.place());
        let start = if there.covers(&frozen) {
            Ok(there)
        } else {
            self.wait_for(flow.to(), &frozen, LAST_BYTES).await
        };
        let start = match start {
            Ok(start) => start,
            Err(error) => {
                // The first error is the one to tell; a pause ends by itself.
                let _thawed = self.thaw(flow.from()).await;
                return Err(error);
            }
        };
        let sealed = Sealed { start: start.to_string(), frozen: frozen.to_string() };
        self.memory.forget(Matter::Late(flow))?;
        self.memory.set(Matter::Sealed(flow), &sealed)?;
        if self.means == FenceMeans::None {
            // Nobody will be asked to open the new owner.
            self.open_new_owner(flow.to()).await?;
        }
        Ok(sealed)
    }

    /// A side that was sealed as the new owner stops following when it opens. Not before: until the commit it can go on following as
    /// if nothing had been, and afterwards a promoted server could only begin with a full copy.
    pub async fn open_new_owner(&self, side: Side) -> Result<()> {
        let flow = Flow::leaving(side.other());
        if self.sealed(flow)?.is_none() {
            return Ok(());
        }
        if self.is_bound(flow, &self.replication(side).await?) {
            self.promote(side).await?;
        }
        self.end_history(flow)
    }

    /// The seal of the switch before this one is history. Until the new owner opens an abort would go back to it.
    pub fn end_history(&self, flow: Flow) -> Result<()> {
        self.memory.forget(Matter::Sealed(flow.back()))?;
        self.memory.forget(Matter::Late(flow.back()))
    }

    /// Takes a seal back. What `flow.to()` holds is a copy of the owner, wherever it was promoted in between.
    pub async fn unseal(&self, flow: Flow) -> Result<()> {
        if self.sealed(flow)?.is_none() {
            return Ok(());
        }
        // First what would stand: a pause ends by itself.
        self.thaw(flow.from()).await?;
        self.memory.set(Matter::Copied(flow), &true)?;
        self.memory.forget(Matter::Late(flow))?;
        self.memory.forget(Matter::Sealed(flow))
    }

    /// Sets settings of a server, remembering once what they were. Values may be secrets.
    pub async fn set(&self, side: Side, wanted: &[(&str, &str)]) -> Result<()> {
        let session = self.session(side).await?;
        let known: BTreeMap<String, String> = self.memory.get(Matter::Settings(side))?.unwrap_or_default();
        let (mut all, mut changes) = (known.clone(), Pipeline::new());
        for (name, value) in wanted {
            let former = setting(&session, name).await?;
            if former != *value {
                all.entry((*name).to_owned()).or_insert(former);
                changes.add_command(command(&["CONFIG", "SET", name, value]));
            }
        }
        if all != known {
            self.memory.set(Matter::Settings(side), &all)?;
        }
        if changes.is_empty() { Ok(()) } else { session.ask_all("change settings", &changes).await }
    }

    /// Puts the settings of a server back.
    pub async fn restore_settings(&self, side: Side) -> Result<()> {
        let Some(former) = self.memory.get::<BTreeMap<String, String>>(Matter::Settings(side))? else {
            return Ok(());
        };
        let session = self.session(side).await?;
        let mut changes = Pipeline::new();
        for (name, value) in &former {
            changes.add_command(command(&["CONFIG", "SET", name, value]));
        }
        session.ask_all::<()>("put settings back", &changes).await?;
        self.memory.forget(Matter::Settings(side))
    }

    /// Keys of others in all databases of a side.
    pub async fn foreign_keys(&self, side: Side) -> Result<u64> {
        keys_of(&self.session(side).await?).await.map(|databases| databases.values().sum())
    }
}

/// A setting's value; empty where the server does not know it.
pub(super) async fn setting(session: &Session, name: &str) -> Result<String> {
    let pair: Vec<String> =
        session.ask(&format!("read the setting {name}"), &["CONFIG", "GET", name]).await?;
    Ok(pair.into_iter().nth(1).unwrap_or_default())
}
