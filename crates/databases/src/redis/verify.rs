//! Do two servers hold the same keys? Both are read, key by key, database by database; no replication is believed. What differs is
//! looked at again, since a change may still be on its way.

pub(super) mod value;

use super::RESERVED;
use super::connect::{Session, command, connect};
use super::info::{Info, Replication};
use crate::address::Address;
use crate::verify::{Compared, Found, Options, Pair, Progress, Row, What};
use redis::{Cmd, Value};
use rehome_part::{Error, ErrorKind, Result, Side};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use value::{Digest, same};

/// Keys that are asked for in one go, at most.
const AT_ONCE: usize = 200;
/// Bytes of values that are read in one go, unless one alone is larger.
const BYTES_AT_ONCE: u64 = 8 << 20;
/// Looks at keys that differ; what changes between two is under way, not wrong.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);
/// Differing keys that are remembered, at most.
const MOST_LOOKED_AT: usize = 100_000;

/// Keys of each database, without ours.
pub(super) async fn keys_of(session: &Session) -> Result<BTreeMap<u32, u64>> {
    let both = [command(&["INFO", "keyspace"]), command(&["EXISTS", super::part::MARKERS])];
    let mut answers = session.answers("count the keys", &both).await?.into_iter();
    let text: String = redis::from_redis_value(answers.next().unwrap_or(Value::Nil))
        .map_err(|error| session.error("count the keys", &error.into()))?;
    let keyspace = Info::parse(&text).keyspace();
    let mut databases: BTreeMap<u32, u64> =
        keyspace.into_iter().map(|(number, (keys, _))| (number, keys)).collect();
    // A node of a cluster may not have the slot, nor a key of ours.
    if let (Some(keys), Some(Value::Int(own))) = (databases.get_mut(&0), answers.next()) {
        *keys = keys.saturating_sub(own.unsigned_abs());
    }
    databases.retain(|_, keys| *keys > 0);
    Ok(databases)
}

/// Compares all databases, and says of each what was found.
///
/// # Errors
/// A side cannot be read, or `stop` was asked for.
pub async fn verify(
    pair: &Pair,
    options: &Options,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Vec<Compared>> {
    let (source, target) = tokio::try_join!(session(pair, Side::Source, 0), session(pair, Side::Target, 0))?;
    let (ours, theirs) = tokio::try_join!(keys_of(&source), keys_of(&target))?;
    progress.rows_expected.store(ours.values().sum(), Ordering::Relaxed);
    let mut all: Vec<u32> = ours.into_keys().chain(theirs.into_keys()).collect();
    all.sort_unstable();
    all.dedup();
    if !options.tables.is_empty() {
        let wanted = numbers(&options.tables)?;
        all.retain(|number| wanted.contains(number));
    }
    progress.tables_expected.store(all.len() as u64, Ordering::Relaxed);
    let mut compared = Vec::new();
    for number in all {
        let (source, target) =
            tokio::try_join!(session(pair, Side::Source, number), session(pair, Side::Target, number))?;
        let work = Work { source: &source, target: &target, options, progress, stop };
        compared.push(Box::pin(work.database(number)).await?);
        progress.tables.fetch_add(1, Ordering::Relaxed);
    }
    Ok(compared)
}

fn numbers(names: &[String]) -> Result<Vec<u32>> {
    let number = |name: &String| {
        name.parse().map_err(|_| {
            let text = format!("{name} is no database of Redis");
            Error::permanent(ErrorKind::NotFound, text).hint("they have numbers: 0, 1, …")
        })
    };
    names.iter().map(number).collect()
}

async fn session(pair: &Pair, side: Side, database: u32) -> Result<Session> {
    let (address, password): &(Address, Option<String>) =
        if side == Side::Source { &pair.source } else { &pair.target };
    let address = Address { database: database.to_string(), ..address.clone() };
    Box::pin(connect(&address, password.as_deref(), side)).await
}

/// Compares these keys of one database and nothing else.
pub(super) async fn some_keys(
    source: &Session,
    target: &Session,
    number: u32,
    keys: Vec<Vec<u8>>,
    options: &Options,
    stop: &CancellationToken,
) -> Result<Compared> {
    let work = Work { source, target, options, progress: &Progress::default(), stop };
    let mut compared = nothing_yet(number);
    compared.source_rows = keys.len() as u64;
    let mut differing = Vec::new();
    for chunk in keys.chunks(AT_ONCE) {
        differing.extend(work.differing_now(chunk).await?);
    }
    work.settle(differing, &mut compared).await?;
    Ok(compared)
}

/// How many of the next values are read in one go: one at least.
fn fitting(sizes: impl Iterator<Item = u64>) -> usize {
    let mut bytes = 0;
    let fits = |size: &u64| {
        bytes += size;
        bytes <= BYTES_AT_ONCE
    };
    sizes.take_while(fits).count().max(1)
}

/// Whoever is nearer answers first; the other one where that fails.
pub(super) async fn quickest<T>(
    one: impl Future<Output = Result<T>>,
    other: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
    tokio::select! {
        first = &mut one => if first.is_ok() { first } else { other.await },
        first = &mut other => if first.is_ok() { first } else { one.await },
    }
}

fn nothing_yet(number: u32) -> Compared {
    Compared {
        table: number.to_string(),
        found: Found::Same,
        key: vec!["key".to_owned()],
        source_rows: 0,
        target_rows: 0,
        looked_again: 0,
        differing: 0,
        unsettled: 0,
        rows: Vec::new(),
        notes: Vec::new(),
    }
}

type Both = (Option<Digest>, Option<Digest>);

/// Did neither side change between two looks?
fn is_still(one: &Both, other: &Both) -> bool {
    same(one.0.as_ref(), other.0.as_ref()) && same(one.1.as_ref(), other.1.as_ref())
}

struct Work<'a> {
    source: &'a Session,
    target: &'a Session,
    options: &'a Options,
    progress: &'a Progress,
    stop: &'a CancellationToken,
}

impl Work<'_> {
    async fn database(&self, number: u32) -> Result<Compared> {
        let mut compared = nothing_yet(number);
        let mut differing = Vec::new();
        let mut cursor = 0;
        loop {
            let (next, keys) = self.scan(self.source, cursor).await?;
            compared.source_rows += keys.len() as u64;
            self.progress.rows.fetch_add(keys.len() as u64, Ordering::Relaxed);
            for chunk in keys.chunks(AT_ONCE) {
                differing.extend(self.differing(chunk).await?);
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        loop {
            let (next, keys) = self.scan(self.target, cursor).await?;
            compared.target_rows += keys.len() as u64;
            differing.extend(self.missing_on_source(keys).await?);
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        self.settle(differing, &mut compared).await?;
        Ok(compared)
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    async fn scan(&self, session: &Session, cursor: u64) -> Result<(u64, Vec<Vec<u8>>)> {
        self.check_stop()?;
        let (cursor, count) = (cursor.to_string(), AT_ONCE.to_string());
        let (next, mut keys): (u64, Vec<Vec<u8>>) =
            session.ask("go through the keys", &["SCAN", &cursor, "COUNT", &count]).await?;
        keys.retain(|key| !key.starts_with(RESERVED.as_bytes()));
        Ok((next, keys))
    }

    /// Which of the keys are not alike.
    async fn differing(&self, keys: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let sizes = value::sizes(self.source, &keys).await?;
        let (mut unlike, mut rest, mut sizes) = (Vec::new(), &*keys, &*sizes);
        while !rest.is_empty() {
            self.check_stop()?;
            let count = fitting(sizes.iter().copied());
            unlike.extend(self.unlike(&rest[..count]).await?);
            (rest, sizes) = (&rest[count..], &sizes[count..]);
        }
        Ok(unlike)
    }

    /// The same with one round trip to the side that is farther, since writes may wait.
    async fn differing_now(&self, keys: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let outlines =
            quickest(value::outlines(self.source, &keys), value::outlines(self.target, &keys)).await?;
        let (mut unlike, mut rest, mut outlines) = (Vec::new(), &*keys, &*outlines);
        while !rest.is_empty() {
            self.check_stop()?;
            let count = fitting(outlines.iter().map(|(_, size)| *size));
            let kinds: Vec<&str> = outlines[..count].iter().map(|(kind, _)| &**kind).collect();
            let (ours, theirs) = tokio::try_join!(
                value::digests_as(self.source, &rest[..count], &kinds),
                value::digests_as(self.target, &rest[..count], &kinds)
            )?;
            let bytes = ours.iter().flatten().map(|digest| digest.bytes).sum();
            self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
            let both = rest[..count].iter().zip(ours.iter().zip(&theirs));
            let differing = both.filter(|(_, (one, other))| !same(one.as_ref(), other.as_ref()));
            unlike.extend(differing.map(|(key, _)| key.to_vec()));
            (rest, outlines) = (&rest[count..], &outlines[count..]);
        }
        Ok(unlike)
    }

    /// The same for keys that fit into memory together: by type where how they are packed differs.
    async fn unlike(&self, keys: &[&[u8]]) -> Result<Vec<Vec<u8>>> {
        let (ours, theirs) =
            tokio::try_join!(value::packed(self.source, keys), value::packed(self.target, keys))?;
        let bytes = ours.iter().flatten().map(|digest| digest.bytes).sum();
        self.progress.bytes.fetch_add(bytes, Ordering::Relaxed);
        let both = ours.into_iter().zip(theirs);
        let unlike: Vec<&[u8]> = keys
            .iter()
            .zip(both)
            .filter(|(_, (one, other))| !same(one.as_ref(), other.as_ref()))
            .map(|(key, _)| *key)
            .collect();
        let both = self.digests(&unlike).await?;
        let unlike = unlike.iter().zip(both).filter(|(_, (one, other))| !same(one.as_ref(), other.as_ref()));
        Ok(unlike.map(|(key, _)| key.to_vec()).collect())
    }

    async fn digests(&self, keys: &[&[u8]]) -> Result<Vec<Both>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (ours, theirs) =
            tokio::try_join!(value::digests(self.source, keys), value::digests(self.target, keys))?;
        Ok(ours.into_iter().zip(theirs).collect())
    }

    async fn missing_on_source(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let questions: Vec<Cmd> = keys
            .iter()
            .map(|key| {
                let mut exists = Cmd::new();
                exists.arg("EXISTS").arg(key);
                exists
            })
            .collect();
        let answers = self.source.answers("look for keys of the target", &questions).await?;
        let missing = keys.into_iter().zip(answers).filter(|(_, answer)| *answer == Value::Int(0));
        Ok(missing.map(|(key, _)| key).collect())
    }

    /// Looks again at what differed. What is the same in one look is the same; what stays as it is differs.
    async fn settle(&self, mut differing: Vec<Vec<u8>>, compared: &mut Compared) -> Result<()> {
        compared.looked_again = differing.len() as u64;
        if differing.len() > MOST_LOOKED_AT {
            compared.differing += (differing.len() - MOST_LOOKED_AT) as u64;
            differing.truncate(MOST_LOOKED_AT);
        }
        if !differing.is_empty() {
            self.wait_for_stream().await?;
        }
        let mut before = self.still(differing).await?;
        for look in 1..LOOKS {
            if before.is_empty() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(BETWEEN_LOOKS) => {}
                () = self.stop.cancelled() => return Err(Error::cancelled()),
            }
            let now = self.still(before.keys().cloned().collect()).await?;
            let is_settled =
                now.iter().all(|(key, both)| before.get(key).is_some_and(|known| is_still(known, both)));
            if is_settled || look + 1 == LOOKS {
                self.note(&before, &now, compared);
                break;
            }
            before = now;
        }
        compared.found = match (compared.differing, compared.unsettled) {
            (0, 0) => Found::Same,
            (0, _) => Found::Unsettled,
            _ => Found::Differs,
        };
        Ok(())
    }

    /// Where one follows the other, what the owner wrote until now is waited for.
    async fn wait_for_stream(&self) -> Result<()> {
        let (one, other) = tokio::try_join!(Replication::read(self.source), Replication::read(self.target))?;
        let (replica, wanted) = match (one.is_linked(), other.is_linked()) {
            (false, true) => (self.target, one.place()),
            (true, false) => (self.source, other.place()),
            _ => return Ok(()),
        };
        let until = Instant::now() + self.options.patience;
        while Instant::now() < until && !Replication::read(replica).await?.place().covers(&wanted) {
            self.check_stop()?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    async fn still(&self, keys: Vec<Vec<u8>>) -> Result<BTreeMap<Vec<u8>, Both>> {
        let mut found = BTreeMap::new();
        for chunk in keys.chunks(AT_ONCE) {
            self.check_stop()?;
            let keys: Vec<&[u8]> = chunk.iter().map(Vec::as_slice).collect();
            for (key, both) in chunk.iter().zip(self.digests(&keys).await?) {
                if !same(both.0.as_ref(), both.1.as_ref()) {
                    found.insert(key.clone(), both);
                }
            }
        }
        Ok(found)
    }

    fn note(&self, before: &BTreeMap<Vec<u8>, Both>, now: &BTreeMap<Vec<u8>, Both>, compared: &mut Compared) {
        for (key, both) in now {
            if !before.get(key).is_some_and(|known| is_still(known, both)) {
                compared.unsettled += 1;
                continue;
            }
            compared.differing += 1;
            let what = match both {
                (Some(_), None) => What::OnlyOnSource,
                (None, _) => What::OnlyOnTarget,
                _ => What::Differs,
            };
            if compared.rows.len() < self.options.most_named {
                compared.rows.push(Row { key: vec![value::shown(key)], what });
            }
        }
    }
}
