//! What a server holds and what stands in the way of moving it by its own replication. Reads only; every finding has a remedy.

use super::connect::Session;
use super::fence::users;
use super::info::Info;
use super::link::setting;
use super::verify::keys_of;
use super::{RESERVED, VERSIONS};
use crate::findings::Findings;
use redis::Value;
use rehome_part::{Error, Finding, Result, Severity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An interruption of so long should not cost a full copy.
const BACKLOG_SECONDS: f64 = 60.0;
/// Keys looked at to see whether there are streams.
const SAMPLE: usize = 10_000;
/// Commands without which nothing can be moved, by side.
const ON_SOURCE: &[&str] = &["psync", "replconf", "acl", "config", "client"];
const ON_TARGET: &[&str] = &["replicaof", "acl", "config", "client"];

/// What was found about one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Assessed {
    pub version: String,
    /// Keys by number of the database.
    pub databases: BTreeMap<u32, u64>,
    pub keys: u64,
    /// Of the keys, those that end by themselves.
    pub expiring: u64,
    /// Memory that the data takes.
    pub bytes: u64,
    pub users: Vec<String>,
    pub modules: Vec<String>,
    pub watched: Option<Watched>,
    pub findings: Vec<Finding>,
}

/// How much changes, between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Watched {
    pub seconds: f64,
    /// `None` where it saved in between and began to count anew.
    pub changes_per_second: Option<f64>,
    /// Of the stream for replicas; `None` where there is no stream yet.
    pub stream_bytes_per_second: Option<f64>,
}

fn version(info: &Info) -> (u32, u32) {
    let mut numbers = info.text("redis_version").split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Looks at a server. `watch`: how long its changes are counted; zero: not at all.
///
/// # Errors
/// It cannot be asked.
pub async fn assess(session: &Session, watch: Duration) -> Result<Assessed> {
    let info = Info::read(session, "all").await?;
    let mut found = Findings::of(session.side());
    judge_server(&info, &mut found);
    let databases = keys_of(session).await?;
    let expiring = info.keyspace().values().map(|(_, expires)| expires).sum();
    let keys = databases.values().sum();
    permissions(session, ON_SOURCE, &mut found).await?;
    let users = judge_users(session, &mut found).await?;
    let modules = judge_modules(session, &mut found).await?;
    judge_settings(session, &mut found).await?;
    judge_clients(session, &info, &mut found).await?;
    judge_content(session, expiring, keys, &mut found).await?;
    let watched = if watch.is_zero() { None } else { Some(watched(session, watch).await?) };
    judge_backlog(session, watched, &mut found).await?;
    Ok(Assessed {
        version: info.text("redis_version").to_owned(),
        databases,
        keys,
        expiring,
        bytes: info.number("used_memory_dataset").unwrap_or(0),
        users,
        modules,
        watched,
        findings: found.all,
    })
}

fn judge_server(info: &Info, found: &mut Findings) {
    let (version, text) = (version(info), info.text("redis_version"));
    if !VERSIONS.contains(&version) {
        let (oldest, newest) = (VERSIONS.start(), VERSIONS.end());
        let text = format!("Redis {text} is none of {}.{} to {}.{}", oldest.0, oldest.1, newest.0, newest.1);
        found.block(
            "version",
            text,
            "Upgrade the source first: before 6.0 there are no users, and nobody could be kept out.",
        );
    }
    if info.is("cluster_enabled", "1") || info.is("redis_mode", "cluster") {
        found.block(
            "cluster",
            "this server is a node of a cluster, whose slots are not moved yet",
            "Move it by a replica of each node, or by an application that writes to both.",
        );
    }
    if info.is("redis_mode", "sentinel") {
        found.block(
            "is-sentinel",
            "this is a Sentinel, which holds no data",
            "Name the server that it watches.",
        );
    }
    if info.is("role", "slave") {
        let text =
            format!("this server is a replica of {}:{}", info.text("master_host"), info.text("master_port"));
        found.block("is-replica", text, "Name the primary: writes are fenced there.");
    }
    if info.is("loading", "1") {
        found.block("loading", "it is still loading its data", "Wait until it has.");
    }
    if info.is("rdb_last_bgsave_status", "err") {
        let remedy = "See its log (memory to fork, room on the disk): a full copy is made the same way.";
        found.warn("save-failed", "its last save failed", remedy);
    }
    if let Some(replicas) = info.number("connected_slaves").filter(|replicas| *replicas > 0) {
        found.note(
            "replicas",
            format!("{replicas} replica(s) follow it; they follow it still after the switch"),
        );
    }
    let (used, most) =
        (info.number("used_memory").unwrap_or(0), info.number("total_system_memory").unwrap_or(0));
    if most > 0 && used.saturating_mul(2) > most {
        let text = format!("it uses {} MiB of the machine's {}", used >> 20, most >> 20);
        let remedy = "Leave room: while a full copy is made, every page that is written is kept twice.";
        found.warn("memory-for-copy", text, remedy);
    }
}

/// What our user may do, and whether the server has it at all.
async fn permissions(session: &Session, commands: &[&str], found: &mut Findings) -> Result<()> {
    let mut words = vec!["COMMAND", "INFO"];
    words.extend(commands);
    let known: Vec<Value> = session.ask("read which commands there are", &words).await?;
    let missing =
        commands.iter().zip(&known).filter(|(_, known)| **known == Value::Nil).map(|(name, _)| *name);
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        let text = format!("the server has no {}", missing.join(", ").to_uppercase());
        let remedy = "Managed services take these away: ask for an external replica, or move it by a dump in a stop of the service.";
        found.block("replication-forbidden", text, remedy);
    }
    let me: String = session.asked(&["ACL", "WHOAMI"]).await.unwrap_or_else(|_| "default".to_owned());
    let mut refused = Vec::new();
    for name in commands.iter().filter(|name| !missing.contains(name)) {
        let tried = match *name {
            "psync" => session.asked::<Value>(&["ACL", "DRYRUN", &me, "psync", "?", "-1"]).await,
            "replicaof" => session.asked(&["ACL", "DRYRUN", &me, "replicaof", "no", "one"]).await,
            "replconf" => session.asked(&["ACL", "DRYRUN", &me, "replconf", "capa", "psync2"]).await,
            _ => Ok(Value::Okay),
        };
        // Before 7.0 nothing can be tried dry.
        if matches!(&tried, Ok(answer) if *answer != Value::Okay && *answer != Value::SimpleString("OK".into()))
        {
            refused.push(name.to_uppercase());
        }
    }
    if !refused.is_empty() {
        let text = format!("{me} may not {}", refused.join(", "));
        let remedy =
            format!("ACL SETUSER {me} ~* &* +@all, or make another user for the migration that may.");
        found.block("may-replicate", text, &remedy);
    }
    Ok(())
}

async fn judge_users(session: &Session, found: &mut Findings) -> Result<Vec<String>> {
    let me: String = session.ask("read who we are", &["ACL", "WHOAMI"]).await?;
    let users = users(session).await?;
    if me == "default" {
        let text = "we are the default user, as most applications are: a fence for them would be one for us";
        let remedy = "Make a user for the migration: ACL SETUSER rehome on >… ~* &* +@all, and name it in the address.";
        found.block("own-user", text, remedy);
    }
    let is_open = |rules: &&super::rules::Rules| rules.is_on() && rules.needs_no_password();
    let open: Vec<&str> =
        users.all.iter().filter(is_open).map(|rules| &*rules.user).filter(|user| *user != me).collect();
    if !open.is_empty() {
        let text = format!("{} may come in without a password", open.join(", "));
        let remedy = "Nothing for the move: the fence takes their writes like all others'. Think of a password all the same.";
        found.add(Severity::Info, "no-password", text, remedy);
    }
    if !users.is_in_file {
        let text =
            "there is no aclfile: a restart behind the fence brings users back as the configuration has them";
        let remedy = "Do not restart it during the switch, or keep users in an aclfile.";
        found.warn("fence-not-durable", text, remedy);
    }
    Ok(users.all.into_iter().map(|rules| rules.user).filter(|user| *user != me).collect())
}

/// Names of modules with their versions.
async fn modules(session: &Session) -> Vec<String> {
    let listed: std::result::Result<Vec<BTreeMap<String, Value>>, _> =
        session.asked(&["MODULE", "LIST"]).await;
    let name = |module: &BTreeMap<String, Value>| redis::from_redis_value(module.get("name")?.clone()).ok();
    listed.unwrap_or_default().iter().filter_map(name).collect()
}

async fn judge_modules(session: &Session, found: &mut Findings) -> Result<Vec<String>> {
    let modules = modules(session).await;
    if !modules.is_empty() {
        let text = format!("modules: {}", modules.join(", "));
        found.warn("modules", text, "Load the same modules in the same versions on the target: a replica cannot read their values otherwise.");
    }
    Ok(modules)
}

async fn judge_settings(session: &Session, found: &mut Findings) -> Result<()> {
    let policy = setting(session, "maxmemory-policy").await?;
    let most = setting(session, "maxmemory").await?.parse::<u64>().unwrap_or(0);
    if most > 0 && !policy.is_empty() && policy != "noeviction" {
        let text = format!(
            "it drops keys when {} MiB are full ({policy}), and the target may drop others after the switch",
            most >> 20
        );
        found.warn(
            "evicts",
            text,
            "Give the target at least as much memory; expect differences in what was dropped.",
        );
    }
    let keeps_log = setting(session, "appendonly").await? == "yes";
    if !keeps_log && setting(session, "save").await?.is_empty() {
        let text = "it saves nothing: when it ends, its data are gone, and a replica that follows it is emptied, too";
        found.warn(
            "no-persistence",
            text,
            "Set save or appendonly for the time of the move, or see that nothing restarts it by itself.",
        );
    }
    if setting(session, "replica-read-only").await? == "no" {
        let text = "a replica here would take writes (replica-read-only no)";
        found.note("replica-not-read-only", format!("{text}; it is set to yes while it follows"));
    }
    Ok(())
}

async fn judge_clients(session: &Session, info: &Info, found: &mut Findings) -> Result<()> {
    let clients = info.number("connected_clients").unwrap_or(0);
    found.note(
        "clients",
        format!(
            "{clients} connection(s), {} of them wait for an element",
            info.number("blocked_clients").unwrap_or(0)
        ),
    );
    let list: String = session.ask("list clients", &["CLIENT", "LIST"]).await?;
    if list.contains(" name=sentinel-") {
        let text = "a Sentinel watches it and would undo what the move does";
        found.block(
            "sentinel",
            text,
            "SENTINEL REMOVE … for the time of the move, or name the target to it afterwards.",
        );
    }
    Ok(())
}

async fn judge_content(session: &Session, expiring: u64, keys: u64, found: &mut Findings) -> Result<()> {
    if expiring > 0 {
        found.note("expiring", format!("{expiring} of {keys} keys end by themselves, on both sides at the same time: keep the clocks right"));
    }
    let (mut cursor, mut seen, mut streams) = ("0".to_owned(), 0, 0_u64);
    loop {
        let asked: std::result::Result<(String, Vec<Vec<u8>>), _> =
            session.asked(&["SCAN", &cursor, "COUNT", "1000", "TYPE", "stream"]).await;
        let Ok((next, found)) = asked else { break };
        streams += found.iter().filter(|key| !key.starts_with(RESERVED.as_bytes())).count() as u64;
        seen += 1000;
        cursor = next;
        if cursor == "0" || seen >= SAMPLE {
            break;
        }
    }
    if streams > 0 {
        found.note(
            "streams",
            format!("{streams} stream(s) in database 0 as far as it was looked at; their groups come along"),
        );
    }
    let functions: std::result::Result<Vec<Value>, _> = session.asked(&["FUNCTION", "LIST"]).await;
    if let Some(functions) = functions.ok().filter(|functions| !functions.is_empty()) {
        found.note("functions", format!("{} library(ies) of functions; they come along", functions.len()));
    }
    if Info::read(session, "memory").await?.number("number_of_cached_scripts").unwrap_or(0) > 0 {
        let text = "scripts are kept under their hash (EVALSHA), and do not come along";
        found.add(
            Severity::Info,
            "scripts",
            text,
            "See that clients send a script again when the server does not know it; most do.",
        );
    }
    Ok(())
}

async fn watched(session: &Session, watch: Duration) -> Result<Watched> {
    let look = async || {
        let info = Info::read(session, "all").await?;
        let changes = info.number("rdb_changes_since_last_save").unwrap_or(0);
        let has_stream = info.is("repl_backlog_active", "1");
        Ok::<_, Error>((
            Instant::now(),
            changes,
            has_stream.then(|| info.number("master_repl_offset").unwrap_or(0)),
        ))
    };
    let before = look().await?;
    tokio::time::sleep(watch).await;
    let after = look().await?;
    let seconds = (after.0 - before.0).as_secs_f64();
    let per_second = |before: u64, after: u64| after.checked_sub(before).map(|grown| grown as f64 / seconds);
    Ok(Watched {
        seconds,
        changes_per_second: per_second(before.1, after.1),
        stream_bytes_per_second: before.2.zip(after.2).and_then(|(before, after)| per_second(before, after)),
    })
}

async fn judge_backlog(session: &Session, watched: Option<Watched>, found: &mut Findings) -> Result<()> {
    let size = setting(session, "repl-backlog-size").await?.parse::<u64>().unwrap_or(0);
    let rate = watched.and_then(|watched| {
        // Without a stream a change counts as a short one.
        watched.stream_bytes_per_second.or_else(|| Some(watched.changes_per_second? * 100.0))
    });
    if let Some(rate) = rate.filter(|rate| size > 0 && size as f64 / rate < BACKLOG_SECONDS) {
        let text = format!(
            "the last {} KiB of writes are kept for replicas, which is {:.0} s of them: a longer interruption costs a full copy",
            size >> 10,
            size as f64 / rate
        );
        let remedy = format!(
            "CONFIG SET repl-backlog-size {}",
            ((rate * BACKLOG_SECONDS * 2.0) as u64).next_power_of_two()
        );
        found.warn("backlog-size", text, &remedy);
    }
    let limits = setting(session, "client-output-buffer-limit").await?;
    if let Some(hard) = replica_limit(&limits).filter(|hard| *hard > 0)
        && rate.is_some_and(|rate| rate * BACKLOG_SECONDS > hard as f64)
    {
        let text = format!(
            "a replica that is {} MiB behind is thrown out, and the full copy begins anew",
            hard >> 20
        );
        found.warn(
            "replica-buffer",
            text,
            "CONFIG SET client-output-buffer-limit \"replica 0 0 0\" for the time of the copy.",
        );
    }
    Ok(())
}

/// The hard limit for replicas, in bytes.
fn replica_limit(limits: &str) -> Option<u64> {
    let words: Vec<&str> = limits.split(' ').collect();
    let at = words.iter().position(|word| matches!(*word, "slave" | "replica"))?;
    words.get(at + 1)?.parse().ok()
}

/// Can what was assessed go to this server?
///
/// # Errors
/// It cannot be asked.
pub async fn fits(source: &Assessed, target: &Session) -> Result<Vec<Finding>> {
    let info = Info::read(target, "all").await?;
    let mut found = Findings::of(target.side());
    let ours = version(&Info::parse(&format!("redis_version:{}", source.version)));
    if version(&info) < ours {
        let text = format!(
            "Redis {} is older than the source's {}, and cannot read its data",
            info.text("redis_version"),
            source.version
        );
        found.block("older-version", text, "Take a target of the same version or a newer one.");
    } else if version(&info) > ours {
        let text = format!(
            "Redis {} is newer than the source's {}: an older one cannot follow it",
            info.text("redis_version"),
            source.version
        );
        found.warn(
            "no-way-back",
            text,
            "Take a target of the same version if the move is to be taken back after the switch.",
        );
    }
    if info.is("cluster_enabled", "1") {
        found.block("cluster", "this server is a node of a cluster", "Take a server by itself.");
    }
    permissions(target, ON_TARGET, &mut found).await?;
    let keys: u64 = keys_of(target).await?.values().sum();
    if info.is("role", "slave") {
        let text = format!("it follows {}:{}", info.text("master_host"), info.text("master_port"));
        found.note("target-follows", text);
    } else if keys > 0 {
        let text = format!("{keys} key(s) are there already, and following the source would remove them");
        found.block(
            "target-not-empty",
            text,
            "Take an empty server, or FLUSHALL it yourself if nobody needs them.",
        );
    } else {
        found.note("target-empty", "no key is there yet");
    }
    let most = setting(target, "maxmemory").await?.parse::<u64>().unwrap_or(0);
    if most > 0 && most < source.bytes {
        let text = format!("it may use {} MiB, the data take {}", most >> 20, source.bytes >> 20);
        found.block("too-small", text, "Raise maxmemory, or take a larger server.");
    }
    let databases = setting(target, "databases").await?.parse::<u32>().unwrap_or(16);
    if let Some(last) = source.databases.keys().last().filter(|last| **last >= databases) {
        let text = format!("it has {databases} database(s), and the source uses number {last}");
        found.block("databases", text, "Raise `databases` in its configuration and restart it.");
    }
    if setting(target, "min-replicas-to-write").await?.parse::<u32>().unwrap_or(0) > 0 {
        let text = "it refuses writes while it has too few replicas (min-replicas-to-write)";
        found.warn("min-replicas", text, "See that its replicas follow it before the switch.");
    }
    let have = modules(target).await;
    let missing: Vec<&str> =
        source.modules.iter().filter(|name| !have.contains(name)).map(String::as_str).collect();
    if !missing.is_empty() {
        let text = format!("these modules are not loaded here: {}", missing.join(", "));
        found.block("missing-modules", text, "Load them, in the source's versions.");
    }
    Ok(found.all)
}

/// What a plan is bound to: nothing that ordinary traffic changes.
pub(super) fn fingerprint(source: &Assessed, target: &[Finding]) -> String {
    let mut hasher = blake3::Hasher::new();
    let blockers =
        source.findings.iter().chain(target).filter(|finding| finding.severity == Severity::Blocker);
    let ids: Vec<&str> = blockers.map(|finding| &*finding.id).collect();
    hasher.update(format!("{} {:?} {:?} {ids:?}", source.version, source.users, source.modules).as_bytes());
    hasher.finalize().to_hex().to_string()
}
