//! Who may write on a side: the users of its ACL lose their writes (or their entry), and get back exactly what they had.
//! A server runs one command at a time, so when the change is done nothing is under way: scripts have ended, transactions ask again
//! when they are executed, and a client that waits for an element waits for a write that nobody can make.

use super::connect::{Session, command, open as open_stream};
use super::info::Replication;
use super::link::{Link, PROMOTION, Warmed};
use super::memory::Matter;
use super::rules::{AROUND, Rules};
use super::wire;
use crate::end::{FenceMeans, Login};
use redis::{Pipeline, Value};
use rehome_part::{Error, ErrorKind, Fence, Flow, Result, Side};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The longest that clients who are ended may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// Users that were read longer ago are read again.
const READ_USERS_AGE: Duration = Duration::from_secs(10);
/// A key that no application has.
const ANY_KEY: &str = "rehome:probe";

type Former = BTreeMap<String, Rules>;

/// All users of a server, and whether it keeps them in a file.
#[derive(Debug)]
pub(super) struct Users {
    pub all: Vec<Rules>,
    pub is_in_file: bool,
}

pub(super) async fn users(session: &Session) -> Result<Users> {
    let mut both = Pipeline::new();
    both.cmd("ACL").arg("LIST").cmd("CONFIG").arg("GET").arg("aclfile");
    let read: Result<(Vec<String>, Vec<String>)> = session.ask_all("read the users", &both).await;
    let (lines, file) = read.map_err(|error| {
        error.hint("users came with Redis 6.0, and our user must be allowed ACL and CONFIG")
    })?;
    let all = lines.iter().filter_map(|line| Rules::parse(line)).collect();
    Ok(Users { all, is_in_file: file.get(1).is_some_and(|path| !path.is_empty()) })
}

/// Runs commands that change users in one go. Where users are kept in a file, a restart does not bring the old ones back.
async fn change_users(session: &Session, changes: Vec<Vec<&str>>, is_in_file: bool) -> Result<()> {
    let mut all = Pipeline::new();
    for words in changes {
        all.add_command(command(&words));
    }
    if is_in_file {
        all.add_command(command(&["ACL", "SAVE"]));
    }
    if all.is_empty() { Ok(()) } else { session.ask_all("change users", &all).await }
}

async fn known_commands(session: &Session) -> Result<Vec<bool>> {
    let mut words = vec!["COMMAND", "INFO"];
    words.extend(AROUND);
    let known: Vec<Value> = session.ask("read which commands there are", &words).await?;
    Ok(known.iter().map(|command| *command != Value::Nil).collect())
}

/// Closes a side to all but our own user.
pub(super) async fn close(link: &Link, side: Side) -> Result<()> {
    if link.means == FenceMeans::None {
        return Ok(());
    }
    let end = link.end(side);
    let own = &end.address.user;
    if let Some(login) = end.applications.iter().find(|login| login.user == *own) {
        let text = format!(
            "the application is {} on the {side}, and so are we: nobody would be kept out",
            login.user
        );
        return Err(Error::permanent(ErrorKind::Unsupported, text)
            .on(side)
            .hint("make a user for the migration: ACL SETUSER rehome on >… ~* &* +@all"));
    }
    let session = link.session(side).await?;
    // What was read before is not so any more.
    link.warmed(side, |warmed| warmed.users = None);
    let (users, commands) = tokio::try_join!(users(&session), known_commands(&session))?;
    let is_known = |name: &str| {
        AROUND.iter().position(|known| *known == name).is_some_and(|at| commands.get(at) == Some(&true))
    };
    let mut former: Former = link.memory.get(Matter::Fence(side))?.unwrap_or_default();
    let known = former.len();
    let others: Vec<Rules> = users.all.into_iter().filter(|rules| rules.user != *own).collect();
    for rules in &others {
        former.entry(rules.user.clone()).or_insert_with(|| rules.clone());
    }
    if former.len() != known || known == 0 {
        // Before the change: whoever comes after a kill knows how it was.
        link.memory.set(Matter::Fence(side), &former)?;
    }
    let fenced: Vec<Rules> = others
        .iter()
        .map(|rules| match link.means {
            FenceMeans::Logins => rules.kept_out(),
            // From what it was, lest a second fence takes away twice; whatever else others changed since stays.
            _ => rules.as_before(&former[&rules.user]).without_writes(is_known),
        })
        .collect();
    let changes = fenced.iter().zip(&others).map(|(fenced, now)| fenced.change(now)).collect();
    change_users(&session, changes, users.is_in_file).await?;
    if link.means == FenceMeans::Logins {
        let names: Vec<&str> = others.iter().map(|rules| &*rules.user).collect();
        return end_clients(&session, &names).await;
    }
    Ok(())
}

/// Ends the connections of these users until there is none. Replicas stay: they write nothing.
async fn end_clients(session: &Session, users: &[&str]) -> Result<()> {
    let until = Instant::now() + GONE;
    loop {
        let mut left = Vec::new();
        for kind in ["normal", "pubsub"] {
            let list: String = session.ask("list clients", &["CLIENT", "LIST", "TYPE", kind]).await?;
            left.extend(list.lines().filter(|line| is_of(line, users)).filter_map(id_of));
        }
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            let text = format!("{} connection(s) do not end", left.len());
            return Err(Error::temporary(ErrorKind::Deadline, text).on(session.side()));
        }
        for id in left {
            // One that left by itself meanwhile is as good.
            let _gone: std::result::Result<Value, _> = session.asked(&["CLIENT", "KILL", "ID", &id]).await;
        }
    }
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

fn is_of(line: &str, users: &[&str]) -> bool {
    field(line, "user").is_some_and(|user| users.contains(&user))
}

fn id_of(line: &str) -> Option<String> {
    field(line, "id").map(str::to_owned)
}

/// Opens a side again. A new owner stops following first, in the same breath.
pub(super) async fn open(link: &Link, side: Side) -> Result<()> {
    let flow = Flow::leaving(side.other());
    let is_new_owner = link.sealed(flow)?.is_some();
    let former: Option<Former> = link.memory.get(Matter::Fence(side))?;
    if !is_new_owner && former.is_none() {
        return Ok(());
    }
    let session = link.session(side).await?;
    let read = link.warmed(side, |warmed| warmed.users.take());
    let users = match read.filter(|(at, _)| at.elapsed() < READ_USERS_AGE) {
        Some((_, users)) => users,
        None => users(&session).await?,
    };
    let opened: Vec<(Rules, &Rules)> = match &former {
        Some(former) => {
            let opened = |now| Some((Rules::as_before(now, former.get(&now.user)?), now));
            users.all.iter().filter_map(opened).collect()
        }
        None => Vec::new(),
    };
    let mut changes = Vec::new();
    if is_new_owner {
        // Nothing happens where it is an owner already.
        changes.push(PROMOTION.to_vec());
    }
    changes.extend(opened.iter().map(|(opened, now)| opened.change(now)));
    change_users(&session, changes, users.is_in_file && former.is_some()).await?;
    link.memory.forget(Matter::Fence(side))?;
    if is_new_owner { link.end_history(flow) } else { Ok(()) }
}

/// Is the side fenced by us, as far as we know?
pub(super) fn is_set(link: &Link, side: Side) -> Result<bool> {
    Ok(link.memory.get::<Former>(Matter::Fence(side))?.is_some())
}

/// Tries to write as the application does, by a login of its own for each.
pub(super) async fn probe(link: &Link, side: Side) -> Result<Fence> {
    if link.means == FenceMeans::None {
        return Ok(Fence::None);
    }
    let end = link.end(side);
    if end.applications.is_empty() {
        let session = link.session(side).await?;
        let is_closed = is_set(link, side)? || Replication::read(&session).await?.is_replica();
        return Ok(if is_closed { Fence::Closed } else { Fence::Open });
    }
    let has_keys = |warmed: &mut Warmed| {
        end.applications.iter().all(|login| warmed.probe_keys.contains_key(&login.user))
    };
    if !link.warmed(side, has_keys) {
        read_users(link, side).await?;
    }
    let tries = end.applications.iter().map(|login| Box::pin(one_probe(link, login, side)));
    let found = futures::future::try_join_all(tries).await?;
    let is = |wanted: Fence| found.contains(&wanted);
    Ok(if is(Fence::Open) {
        Fence::Open
    } else if is(Fence::Closed) {
        Fence::Closed
    } else {
        Fence::ProvedClosed
    })
}

/// Reads the users of a side, and notes with which key each would try to write.
async fn read_users(link: &Link, side: Side) -> Result<Users> {
    let users = users(&link.session(side).await?).await?;
    link.warmed(side, |warmed| {
        for login in &link.end(side).applications {
            let rules = users.all.iter().find(|rules| rules.user == login.user);
            let key = rules.and_then(Rules::probe_key).unwrap_or_else(|| ANY_KEY.to_owned());
            warmed.probe_keys.insert(login.user.clone(), key);
        }
    });
    Ok(users)
}

/// The write is of a key that no application has, and only if it were there: it changes nothing.
async fn one_probe(link: &Link, login: &Login, side: Side) -> Result<Fence> {
    let key = link.warmed(side, |warmed| warmed.probe_keys.get(&login.user).cloned());
    let mut words = vec![vec!["SET", key.as_deref().unwrap_or(ANY_KEY), "", "XX"]];
    if login.password.is_some() || login.user != "default" {
        words.insert(0, vec!["AUTH", &login.user, login.password.as_deref().unwrap_or("")]);
    }
    let said = match link.warmed(side, |warmed| warmed.streams.pop()) {
        // It may have been ended since it was opened.
        Some(stream) => wire::converse(stream, &words, side).await.ok(),
        None => None,
    };
    let said = match said {
        Some(said) => said,
        None => wire::converse(open_stream(&link.end(side).address, side).await?, &words, side).await?,
    };
    let is_set = is_set(link, side)?;
    let failed = |why: &str| {
        Error::permanent(ErrorKind::Other, format!("try a write as {}: {why}", login.user)).on(side)
    };
    match &*said {
        // Not let in, what it says next is said as somebody else.
        [entry, _] if entry.starts_with("-WRONGPASS") => refused(link, login, side).await,
        [entry, _] if entry != "+OK" => Err(failed(entry)),
        [.., write] if !write.starts_with('-') => Ok(Fence::Open),
        [.., write] if write.starts_with("-READONLY") => Ok(Fence::ProvedClosed),
        [.., write] if write.starts_with("-NOAUTH") => refused(link, login, side).await,
        // A key that it may not touch says nothing of its other keys.
        [.., write] if is_set && write.starts_with("-NOPERM") && write.contains("to run the") => {
            Ok(Fence::ProvedClosed)
        }
        [.., write] if write.starts_with("-NOPERM") => Ok(if is_set { Fence::Closed } else { Fence::Open }),
        other => Err(failed(&other.join(", "))),
    }
}

/// A login that is refused proves that the side is closed where nobody is let in as this user; where somebody is, it only proves that
/// the password is wrong.
async fn refused(link: &Link, login: &Login, side: Side) -> Result<Fence> {
    let users = read_users(link, side).await?.all;
    if users.iter().any(|rules| rules.user == login.user && rules.is_on()) {
        let text = format!("try a write as {}: the password is wrong", login.user);
        return Err(Error::permanent(ErrorKind::Credentials, text)
            .on(side)
            .hint("name the application's own login, so that the fence can be proved with it"));
    }
    Ok(Fence::ProvedClosed)
}

/// Before a switch: what the next fence and the proofs of it will want.
pub(super) async fn warm(link: &Link, side: Side) -> Result<()> {
    if link.means == FenceMeans::None {
        return Ok(());
    }
    let address = &link.end(side).address;
    let opening = link.end(side).applications.iter().map(|_| Box::pin(open_stream(address, side)));
    let (users, opened) = tokio::join!(read_users(link, side), futures::future::join_all(opening));
    let (users, read) = (users?, Instant::now());
    link.warmed(side, |warmed| {
        warmed.streams = opened.into_iter().filter_map(Result::ok).collect();
        warmed.users = Some((read, users));
    });
    Ok(())
}

/// Makes the source's users on the target, where they are missing; remembers which, before it makes them.
pub(super) async fn make_users(link: &Link) -> Result<()> {
    let (source, target) = tokio::try_join!(link.session(Side::Source), link.session(Side::Target))?;
    let (ours, theirs) = tokio::try_join!(users(&source), users(&target))?;
    let own = [&link.end(Side::Source).address.user, &link.end(Side::Target).address.user];
    // Behind a fence of the source they would come as they are for the moment.
    let former: Former = link.memory.get(Matter::Fence(Side::Source))?.unwrap_or_default();
    let missing: Vec<Rules> = ours
        .all
        .into_iter()
        .filter(|rules| {
            !own.contains(&&rules.user) && !theirs.all.iter().any(|other| other.user == rules.user)
        })
        .map(|rules| former.get(&rules.user).map_or(rules.clone(), |former| rules.as_before(former)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut made: Vec<String> = link.memory.get(Matter::Users)?.unwrap_or_default();
    made.extend(missing.iter().map(|rules| rules.user.clone()));
    link.memory.set(Matter::Users, &made)?;
    change_users(&target, missing.iter().map(Rules::make).collect(), theirs.is_in_file).await
}

/// Removes the users that [`make_users`] made.
pub(super) async fn remove_users(link: &Link) -> Result<()> {
    let Some(made) = link.memory.get::<Vec<String>>(Matter::Users)? else { return Ok(()) };
    let session = link.session(Side::Target).await?;
    let is_in_file = users(&session).await?.is_in_file;
    let changes = made.iter().map(|user| vec!["ACL", "DELUSER", user]).collect();
    change_users(&session, changes, is_in_file).await?;
    link.memory.forget(Matter::Users)
}
