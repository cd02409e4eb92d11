//! The content of keys as something that can be compared between servers: first as the server packs it, which is quick and may differ
//! where the values do not, then read by type. Read only.

use crate::redis::connect::Session;
use redis::{Cmd, Value};
use rehome_part::{Error, Result};

/// Version and checksum at the end of a packed value.
const TRAILER: usize = 10;
/// Times to live are absolute in Redis, but old servers tell them relative to a clock that two servers do not share.
const CLOCKS_MILLIS: i64 = 2_000;

/// A value of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::redis) struct Digest {
    hash: blake3::Hash,
    /// When it ends, in milliseconds of the epoch.
    ends: Option<i64>,
    pub bytes: u64,
}

/// Are these the same? `None`: there is no such key.
pub(in crate::redis) fn same(one: Option<&Digest>, other: Option<&Digest>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            let ends = match (one.ends, other.ends) {
                (None, None) => true,
                (Some(one), Some(other)) => one.abs_diff(other) <= CLOCKS_MILLIS.unsigned_abs(),
                _ => false,
            };
            ends && one.hash == other.hash
        }
        _ => false,
    }
}

/// A key for people.
pub(in crate::redis) fn shown(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn of(words: &[&[u8]]) -> Cmd {
    let mut command = Cmd::new();
    for word in words {
        command.arg(*word);
    }
    command
}

/// How much memory each key takes about; nothing where there is none.
pub(in crate::redis) async fn sizes(session: &Session, keys: &[&[u8]]) -> Result<Vec<u64>> {
    let questions: Vec<Cmd> = keys.iter().map(|key| of(&[b"MEMORY", b"USAGE", key])).collect();
    let answers = session.answers("read how large keys are", &questions).await?;
    Ok(answers.into_iter().map(|size| redis::from_redis_value(size).unwrap_or(0)).collect())
}

/// The values as the server packs them.
pub(in crate::redis) async fn packed(session: &Session, keys: &[&[u8]]) -> Result<Vec<Option<Digest>>> {
    let mut questions = vec![of(&[b"TIME"])];
    for key in keys {
        questions.extend([of(&[b"DUMP", key]), of(&[b"PTTL", key])]);
    }
    let answers = session.answers("read values", &questions).await?;
    let now = millis(answers.first());
    let digests = answers.get(1..).unwrap_or_default().chunks(2).map(|pair| {
        let [Value::BulkString(dump), left] = pair else { return refused(session, pair).map(|()| None) };
        let content = dump.get(..dump.len().saturating_sub(TRAILER)).unwrap_or_default();
        Ok(Some(Digest { hash: blake3::hash(content), ends: ends(now, left), bytes: dump.len() as u64 }))
    });
    digests.collect()
}

/// An error among answers is one; no value is none.
fn refused(session: &Session, answers: &[Value]) -> Result<()> {
    let refusal = answers.iter().find_map(|answer| match answer {
        Value::ServerError(error) => Some(redis::RedisError::from(error.clone())),
        _ => None,
    });
    refusal.map_or(Ok(()), |error| Err(session.error("read values", &error)))
}

fn millis(time: Option<&Value>) -> i64 {
    let Some(Value::Array(parts)) = time else { return 0 };
    let number = |at: usize| parts.get(at).and_then(|part| redis::from_redis_value::<i64>(part.clone()).ok());
    number(0).unwrap_or(0) * 1_000 + number(1).unwrap_or(0) / 1_000
}

fn ends(now: i64, left: &Value) -> Option<i64> {
    match left {
        Value::Int(left) if *left >= 0 => Some(now + left),
        _ => None,
    }
}

/// The type of each key, `none` where there is no such key, and how much memory it takes about.
pub(in crate::redis) async fn outlines(session: &Session, keys: &[&[u8]]) -> Result<Vec<(String, u64)>> {
    let questions: Vec<Cmd> =
        keys.iter().flat_map(|key| [of(&[b"TYPE", key]), of(&[b"MEMORY", b"USAGE", key])]).collect();
    let answers = session.answers("read the types of keys", &questions).await?;
    let outline = |pair: &[Value]| {
        refused(session, pair)?;
        let size = pair.get(1).and_then(|size| redis::from_redis_value(size.clone()).ok());
        Ok((kind_of(pair.first()), size.unwrap_or(0)))
    };
    answers.chunks(2).map(outline).collect()
}

fn kind_of(answer: Option<&Value>) -> String {
    answer.and_then(|kind| redis::from_redis_value(kind.clone()).ok()).unwrap_or_default()
}

/// The values read by type, so that the order in a set and the way it is packed do not matter.
pub(in crate::redis) async fn digests(session: &Session, keys: &[&[u8]]) -> Result<Vec<Option<Digest>>> {
    let outlines = outlines(session, keys).await?;
    let kinds: Vec<&str> = outlines.iter().map(|(kind, _)| &**kind).collect();
    digests_as(session, keys, &kinds).await
}

/// The same in one round trip, for types that the other server told: what is of another type here is unlike anything.
pub(in crate::redis) async fn digests_as(
    session: &Session,
    keys: &[&[u8]],
    kinds: &[&str],
) -> Result<Vec<Option<Digest>>> {
    let mut questions = vec![of(&[b"TIME"])];
    for (key, kind) in keys.iter().zip(kinds) {
        questions.extend([of(&[b"TYPE", key]), of(&[b"PTTL", key])]);
        questions.extend(questions_of(kind, key));
    }
    let mut answers = session.answers("read values", &questions).await?.into_iter();
    let now = millis(answers.next().as_ref());
    let mut digests = Vec::new();
    for (key, kind) in keys.iter().zip(kinds) {
        let about: Vec<Value> = answers.by_ref().take(2).collect();
        let parts: Vec<Value> = answers.by_ref().take(questions_of(kind, key).len()).collect();
        refused(session, &about)?;
        let (here, ends) = (kind_of(about.first()), about.get(1).and_then(|left| ends(now, left)));
        digests.push(match here == *kind {
            true => digest(session, kind, parts, ends)?,
            false if here == "none" => None,
            false => Some(Digest { hash: blake3::hash(here.as_bytes()), ends, bytes: 0 }),
        });
    }
    Ok(digests)
}

fn questions_of(kind: &str, key: &[u8]) -> Vec<Cmd> {
    match kind {
        "none" => Vec::new(),
        "string" => vec![of(&[b"GET", key])],
        "list" => vec![of(&[b"LRANGE", key, b"0", b"-1"])],
        "set" => vec![of(&[b"SMEMBERS", key])],
        "zset" => vec![of(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"])],
        "hash" => vec![of(&[b"HGETALL", key])],
        "stream" => vec![
            of(&[b"XRANGE", key, b"-", b"+"]),
            of(&[b"XINFO", b"STREAM", key]),
            of(&[b"XINFO", b"GROUPS", key]),
        ],
        // A module's own: only the module can read it.
        _ => vec![of(&[b"DUMP", key])],
    }
}

fn digest(session: &Session, kind: &str, parts: Vec<Value>, ends: Option<i64>) -> Result<Option<Digest>> {
    if parts.is_empty() || parts.contains(&Value::Nil) {
        return Ok(None);
    }
    refused(session, &parts).or_else(gone_meanwhile)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes());
    for (number, part) in parts.iter().enumerate() {
        match (kind, number, part) {
            ("set", _, Value::Array(members)) => unordered(&mut hasher, members, 1),
            ("hash", _, Value::Array(members)) => unordered(&mut hasher, members, 2),
            // Of the rest of what a stream says of itself, some is how it is packed.
            ("stream", 1 | 2, part) => {
                named(&mut hasher, part, &["last-generated-id", "name", "pending", "last-delivered-id"])
            }
            (_, _, part) => ordered(&mut hasher, part),
        }
    }
    Ok(Some(Digest { bytes: hasher.count(), hash: hasher.finalize(), ends }))
}

/// A key that ended between two questions, or is of another type now, is looked at again.
fn gone_meanwhile(error: Error) -> Result<()> {
    if error.text.contains("WRONGTYPE") || error.text.contains("no such key") { Ok(()) } else { Err(error) }
}

fn ordered(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::BulkString(bytes) => {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        Value::Array(values) => {
            hasher.update(&(values.len() as u64).to_be_bytes());
            values.iter().for_each(|value| ordered(hasher, value));
        }
        other => {
            hasher.update(format!("{other:?}").as_bytes());
        }
    }
}

fn unordered(hasher: &mut blake3::Hasher, members: &[Value], together: usize) {
    let mut all: Vec<[u8; 32]> = members
        .chunks(together)
        .map(|member| {
            let mut one = blake3::Hasher::new();
            member.iter().for_each(|value| ordered(&mut one, value));
            *one.finalize().as_bytes()
        })
        .collect();
    all.sort_unstable();
    for one in all {
        hasher.update(&one);
    }
}

/// Fields of a list of names and values, or of a list of such lists.
fn named(hasher: &mut blake3::Hasher, value: &Value, wanted: &[&str]) {
    let Value::Array(values) = value else { return };
    if values.iter().all(|value| matches!(value, Value::Array(_))) {
        return values.iter().for_each(|value| named(hasher, value, wanted));
    }
    for pair in values.chunks(2) {
        let [Value::BulkString(name), value] = pair else { continue };
        if wanted.iter().any(|wanted| wanted.as_bytes() == name) {
            ordered(hasher, value);
        }
    }
}
