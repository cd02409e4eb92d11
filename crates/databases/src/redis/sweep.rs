//! Late writes: what reached an old owner after its end. Read from its stream exactly; copied only where the new owner's stream
//! says that nobody touched the key since; reported otherwise.

use super::RESERVED;
use super::connect::command;
use super::info::Replication;
use super::link::Link;
use super::place::Place;
use super::tap;
use super::verify::{quickest, value};
use redis::{Cmd, Value};
use rehome_part::{Error, ErrorKind, Finding, Flow, Result, Severity, Side};
use std::collections::{BTreeMap, BTreeSet};

/// More late writes than this are no accident: they are counted, not looked at.
const MOST: usize = 10_000;
/// Tries while somebody writes to the same keys.
const TRIES: usize = 5;
/// Commands of a stream that are no write of an application.
const NO_WRITES: &[&str] = &["PING", "REPLCONF", "MULTI", "EXEC", "PUBLISH", "SPUBLISH", "PFCOUNT"];
/// Commands that touch everything, or more than keys.
const WHOLE: &[&str] = &["FLUSHALL", "FLUSHDB", "SWAPDB", "FUNCTION", "SCRIPT", "EVAL", "EVALSHA", "FCALL"];

type Command = (Option<u32>, Vec<Vec<u8>>);

/// Late keys by database, and what of the late writes has no keys.
#[derive(Debug, Default)]
struct LateWrites {
    commands: Vec<Command>,
    whole: BTreeSet<String>,
    beyond: usize,
}

fn finding(flow: Flow, id: &str, severity: Severity, text: String, remedy: &str) -> Finding {
    let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
    Finding { id: id.to_owned(), severity, side: Some(flow.from()), text, remedy }
}

/// Finds what `flow.from()` was given after `end` and up to `now`, brings it to the new owner where it can, and says what it could not.
pub(super) async fn resolve(link: &Link, flow: Flow, end: &Place, now: &Replication) -> Result<Vec<Finding>> {
    let old = flow.from();
    let mut late = LateWrites::default();
    let can_be_read = tap::read(link.end(old), old, end, now, |written| late.note(written)).await?;
    if !can_be_read {
        let text = format!(
            "{} byte(s) came into the stream of the {old} after its end, and cannot be read any more",
            now.place().offset.saturating_sub(end.offset)
        );
        return Err(Error::permanent(ErrorKind::Changed, text).on(old).hint(
            "compare both sides with `rehome db verify`, then make the old owner a replica of the new one with REPLICAOF",
        ));
    }
    let mut findings = Vec::new();
    for name in &late.whole {
        let text = format!("{name} was run on the {old} after the switch");
        findings.push(finding(
            flow,
            "late-command",
            Severity::Warning,
            text,
            "See who did it, and whether the new owner wants it, too.",
        ));
    }
    if late.beyond > 0 {
        let text =
            format!("{} more writes reached the {old} after the switch and were not looked at", late.beyond);
        findings.push(finding(
            flow,
            "late-writes",
            Severity::Warning,
            text,
            "Find out who still writes there, and compare both sides.",
        ));
    }
    for (database, keys) in late.keys(link, databases(link)).await? {
        findings.extend(bring(link, flow, database, &keys).await?);
    }
    Ok(findings)
}

/// The keys that were written on a side since a position, by database; `None` where that cannot be read any more. At most so many
/// writes are looked at.
pub(super) async fn written_keys(
    link: &Link,
    side: Side,
    since: &Place,
    most: usize,
) -> Result<Option<BTreeMap<u32, BTreeSet<Vec<u8>>>>> {
    let now = link.replication(side).await?;
    let mut written = LateWrites::default();
    let warm = link.warmed(side, |warmed| warmed.tap.take());
    let can_be_read = tap::read_on(warm, link.end(side), side, since, &now, |one| {
        if written.commands.len() < most {
            written.note(one);
        }
    });
    if !can_be_read.await? {
        return Ok(None);
    }
    // Both sides have the same databases: one follows the other.
    let databases = quickest(databases_of(link, Side::Source), databases_of(link, Side::Target));
    written.keys(link, databases).await.map(Some)
}

impl LateWrites {
    fn note(&mut self, written: &tap::Written<'_>) {
        if NO_WRITES.iter().any(|name| written.is(name)) {
            return;
        }
        if let Some(name) = WHOLE.iter().find(|name| written.is(name)) {
            self.whole.insert((*name).to_owned());
            return;
        }
        match self.commands.len() < MOST {
            true => self.commands.push((written.database, written.words.to_vec())),
            false => self.beyond += 1,
        }
    }

    /// The keys they name. Where the stream did not say in which database, in each that there is.
    async fn keys(
        &self,
        link: &Link,
        databases: impl Future<Output = Result<BTreeSet<u32>>>,
    ) -> Result<BTreeMap<u32, BTreeSet<Vec<u8>>>> {
        let mut found: BTreeMap<u32, BTreeSet<Vec<u8>>> = BTreeMap::new();
        if self.commands.is_empty() {
            return Ok(found);
        }
        let questions: Vec<Cmd> = self.commands.iter().map(|(_, words)| keys_question(words)).collect();
        let ask =
            async |side| link.session(side).await?.answers("read the keys of late writes", &questions).await;
        // Either server knows which words of a command are keys.
        let answers = quickest(ask(Side::Source), ask(Side::Target));
        let (answers, mut everywhere) = tokio::try_join!(answers, databases)?;
        if everywhere.is_empty() {
            everywhere.insert(0);
        }
        let everywhere: Vec<u32> = everywhere.into_iter().collect();
        for ((database, _), answer) in self.commands.iter().zip(answers) {
            let Ok(keys) = redis::from_redis_value::<Vec<Vec<u8>>>(answer) else { continue };
            let keys: Vec<_> = keys.into_iter().filter(|key| !key.starts_with(RESERVED.as_bytes())).collect();
            let everywhere = if database.is_some() { &[] } else { &*everywhere };
            for database in database.iter().chain(everywhere) {
                found.entry(*database).or_default().extend(keys.iter().cloned());
            }
        }
        Ok(found)
    }
}

/// Asks the server which of the words are keys.
fn keys_question(words: &[Vec<u8>]) -> Cmd {
    let mut question = command(&["COMMAND", "GETKEYS"]);
    for word in words {
        question.arg(word);
    }
    question
}

async fn databases_of(link: &Link, side: Side) -> Result<BTreeSet<u32>> {
    let session = link.session(side).await?;
    Ok(super::verify::keys_of(&session).await?.into_keys().collect())
}

async fn databases(link: &Link) -> Result<BTreeSet<u32>> {
    let (mut all, others) =
        tokio::try_join!(databases_of(link, Side::Source), databases_of(link, Side::Target))?;
    all.extend(others);
    Ok(all)
}

/// Brings late keys of one database to the new owner.
async fn bring(link: &Link, flow: Flow, database: u32, keys: &BTreeSet<Vec<u8>>) -> Result<Vec<Finding>> {
    let (old, new) = (flow.from(), flow.to());
    let from = link.session_in(old, database).await?;
    // Watched keys are a matter of the connection.
    let mut to = link.own_session_in(new, database).await?;
    let start = link.sealed(flow)?.map(|sealed| sealed.start()).transpose()?;
    for _ in 0..TRIES {
        let all: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let mut watch = command(&["WATCH"]);
        watch.arg(&all);
        watch.query_async::<()>(to.connection()).await.map_err(|error| to.error("watch keys", &error))?;
        let (ours, theirs) = tokio::try_join!(value::digests(&from, &all), value::digests(&to, &all))?;
        let differing: Vec<&[u8]> = all
            .iter()
            .zip(ours.iter().zip(&theirs))
            .filter(|(_, (one, other))| !value::same(one.as_ref(), other.as_ref()))
            .map(|(key, _)| *key)
            .collect();
        if differing.is_empty() {
            return Ok(Vec::new());
        }
        // From before the switch to after the watch: whoever writes later breaks the watch.
        let touched = touched(link, new, start.as_ref(), &differing).await?;
        let (kept, copied): (Vec<&[u8]>, Vec<&[u8]>) =
            differing.iter().partition(|key| touched.contains(**key));
        let Some(refused) = put(&from, &mut to, &copied).await? else { continue };
        let mut findings: Vec<Finding> = kept.iter().map(|key| conflict(flow, database, key)).collect();
        findings.extend(copied.iter().map(|key| match refused.contains(*key) {
            true => conflict(flow, database, key),
            false => brought(flow, database, key),
        }));
        return Ok(findings);
    }
    let text = format!("late writes of the {old} are to keys that the {new} writes all the time");
    Err(Error::temporary(ErrorKind::Changed, text).on(new))
}

fn conflict(flow: Flow, database: u32, key: &[u8]) -> Finding {
    let (old, new) = (flow.from(), flow.to());
    let text = format!(
        "`{}` (database {database}) was written on the {old} after the switch, and the {new} has another value that is kept",
        value::shown(key)
    );
    finding(
        flow,
        "late-write-conflict",
        Severity::Warning,
        text,
        "Compare both values and decide which is right.",
    )
}

fn brought(flow: Flow, database: u32, key: &[u8]) -> Finding {
    let text = format!(
        "`{}` (database {database}) was written on the {} after the switch, and was copied to the {}",
        value::shown(key),
        flow.from(),
        flow.to()
    );
    finding(flow, "late-write-copied", Severity::Warning, text, "Find out who still writes there.")
}

/// Which of the keys appear in what the new owner wrote since the switch; all, where that cannot be known.
async fn touched(link: &Link, new: Side, start: Option<&Place>, keys: &[&[u8]]) -> Result<BTreeSet<Vec<u8>>> {
    let all = || keys.iter().map(|key| key.to_vec()).collect::<BTreeSet<_>>();
    let Some(start) = start else { return Ok(all()) };
    let now = link.replication(new).await?;
    let (wanted, mut found, mut is_whole) = (all(), BTreeSet::new(), false);
    let known = tap::read(link.end(new), new, start, &now, |written| {
        is_whole |= WHOLE.iter().any(|name| written.is(name));
        found.extend(written.words.iter().filter(|word| wanted.contains(*word)).cloned());
    });
    let is_known = known.await?;
    Ok(if is_known && !is_whole { found } else { wanted })
}

/// Makes keys on one side as they are on the other, unless somebody wrote them since they were watched: then `None`. Gives the keys
/// whose form this server does not read.
async fn put(
    from: &super::connect::Session,
    to: &mut super::connect::Session,
    keys: &[&[u8]],
) -> Result<Option<BTreeSet<Vec<u8>>>> {
    let mut questions = Vec::new();
    for key in keys {
        questions.extend([keyed("DUMP", key), keyed("PTTL", key)]);
    }
    let answers = from.answers("read late writes", &questions).await?;
    let mut transaction = redis::Pipeline::new();
    transaction.atomic().ignore_errors();
    for (key, answer) in keys.iter().zip(answers.chunks(2)) {
        let [Value::BulkString(dump), Value::Int(millis)] = answer else {
            transaction.add_command(keyed("DEL", key));
            continue;
        };
        let mut restore = keyed("RESTORE", key);
        restore.arg((*millis).max(0)).arg(dump).arg("REPLACE");
        transaction.add_command(restore);
    }
    if keys.is_empty() {
        let done: std::result::Result<(), _> = command(&["UNWATCH"]).query_async(to.connection()).await;
        return done.map(|()| Some(BTreeSet::new())).map_err(|error| to.error("end the watch", &error));
    }
    let done: std::result::Result<Option<Vec<Value>>, _> = transaction.query_async(to.connection()).await;
    let Some(answers) = done.map_err(|error| to.error("copy late writes", &error))? else { return Ok(None) };
    let refused = keys.iter().zip(answers).filter(|(_, answer)| matches!(answer, Value::ServerError(_)));
    Ok(Some(refused.map(|(key, _)| key.to_vec()).collect()))
}

fn keyed(name: &str, key: &[u8]) -> Cmd {
    let mut command = Cmd::new();
    command.arg(name).arg(key);
    command
}
