//! What was there before rehome touched a name, and what it meant to put there: one small file per name, written before each
//! change. Everything else is read from the world again.

use super::{DnsName, Entry, RecordSet};
use crate::EntryError;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const VERSION: u32 = 1;
/// A file longer than this is none of ours.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    LowerTtl,
    Point,
    Back,
    Finish,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    pub verb: Verb,
    /// What was found there.
    pub before: Entry,
    pub entry: Entry,
    pub at: Timestamp,
}

/// All authoritative servers answered this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub entry: Entry,
    pub at: Timestamp,
    /// From then on no cache that keeps to the rules has anything older.
    pub older_gone: Timestamp,
    /// How many intents there were.
    pub intents: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    version: u32,
    pub name: DnsName,
    pub zone: DnsName,
    /// Where it was changed, for people.
    pub provider: String,
    /// What was there before the first change.
    pub former: Entry,
    /// What was meant to be there, in order; each is written here before it is attempted.
    pub intended: Vec<Intent>,
    pub seen: Option<Seen>,
}

impl State {
    pub fn new(name: DnsName, zone: DnsName, provider: String, former: Entry) -> Self {
        Self { version: VERSION, name, zone, provider, former, intended: Vec::new(), seen: None }
    }

    /// Everything that may be at the name without anybody else's doing.
    fn ours(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.former).chain(self.intended.iter().map(|intent| &intent.entry))
    }

    /// `in_pieces`: the provider changes one record at a time, so a mixture of ours is ours too.
    pub fn is_ours(&self, entry: &Entry, in_pieces: bool) -> bool {
        let piece = |set: &RecordSet, value: &String| {
            self.ours().any(|ours| {
                ours.get(set.kind).is_some_and(|mine| mine.values.contains(value))
                    && self.ours().any(|ours| ours.sets().iter().any(|mine| mine.ttl == set.ttl))
            })
        };
        self.ours().any(|ours| ours == entry)
            || (in_pieces && entry.sets().iter().all(|set| set.values.iter().all(|value| piece(set, value))))
    }

    pub fn last(&self) -> Option<&Intent> {
        self.intended.last()
    }

    /// Whether the last intent was seen at every server.
    pub fn is_settled(&self) -> bool {
        self.seen.as_ref().is_some_and(|seen| seen.intents == self.intended.len())
    }

    pub fn intend(&mut self, verb: Verb, before: &Entry, entry: &Entry, now: Timestamp) {
        let is_last = self.last().is_some_and(|last| last.verb == verb && last.entry == *entry);
        // What was seen everywhere and is no longer there has to come once more.
        let was_undone = self.is_settled() && before != entry;
        if !is_last || was_undone {
            let (before, entry, at) = (before.clone(), entry.clone(), whole(now));
            self.intended.push(Intent { verb, before, entry, at });
        }
    }

    /// Every server answered `entry` at `now`. Until then each of them may have handed out anything since the last time that
    /// all were seen, and a cache may keep that for its whole time to live; `negative_ttl` counts where a kind of record is new.
    pub fn saw(&mut self, entry: &Entry, negative_ttl: u32, now: Timestamp) {
        let from = self.seen.as_ref().map_or(0, |seen| seen.intents);
        let base = self.seen.as_ref().map_or(&self.former, |seen| &seen.entry);
        let since = self.intended.iter().skip(from).flat_map(|intent| [&intent.before, &intent.entry]);
        let handed_out: Vec<&Entry> = std::iter::once(base).chain(since).collect();
        let mut longest =
            handed_out.iter().filter(|old| **old != entry).map(|old| old.longest_ttl()).max().unwrap_or(0);
        let is_new = |set: &RecordSet| handed_out.iter().any(|old| old.get(set.kind).is_none());
        if entry.sets().iter().any(is_new) {
            longest = longest.max(negative_ttl);
        }
        let gone =
            whole(now).checked_add(SignedDuration::from_secs(longest.into())).unwrap_or(Timestamp::MAX);
        let earlier = self.seen.as_ref().map(|seen| seen.older_gone);
        self.seen = Some(Seen {
            entry: entry.clone(),
            at: whole(now),
            older_gone: earlier.map_or(gone, |earlier| earlier.max(gone)),
            intents: self.intended.len(),
        });
    }

    /// When no cache has anything older than what all servers were seen to answer.
    pub fn older_gone(&self) -> Option<Timestamp> {
        self.seen.as_ref().filter(|_| self.is_settled()).map(|seen| seen.older_gone)
    }
}

/// To the next whole second: nobody waits for less.
fn whole(time: Timestamp) -> Timestamp {
    let second = time.as_second() + i64::from(time.subsec_nanosecond() > 0);
    Timestamp::from_second(second).unwrap_or(time)
}

/// The file of one name, and the lock beside it: one process at a time works on a name.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
}

/// Held as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateFile {
    /// In the folder (made when it is first written, mode 0700).
    pub fn new(folder: &Path, name: &DnsName) -> Self {
        Self { path: folder.join(format!("{name}.json")) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self) -> impl Fn(std::io::Error) -> EntryError + '_ {
        |source| EntryError::File { path: self.path.clone(), source }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// # Errors
    /// When another process works on this name.
    pub fn lock(&self) -> Result<Lock, EntryError> {
        DirBuilder::new().recursive(true).mode(0o700).create(self.folder()).map_err(self.failed())?;
        let path = self.path.with_extension("lock");
        let no_follow = libc_no_follow();
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(&path);
        let file = opened.map_err(|source| EntryError::File { path: path.clone(), source })?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(EntryError::unfit(
                "another rehome works on this name",
                "wait until it has ended; it can be watched with `rehome entry dns show`",
            )),
            Err(TryLockError::Error(source)) => Err(EntryError::File { path, source }),
        }
    }

    /// # Errors
    /// When it is there and cannot be read or understood; it is never passed over.
    pub fn load(&self) -> Result<Option<State>, EntryError> {
        let opened = OpenOptions::new().read(true).custom_flags(libc_no_follow()).open(&self.path);
        let file = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(self.failed())?,
        };
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).map_err(self.failed())?;
        let damaged = |why: String| {
            EntryError::unfit(
                format!("{}: {why}", self.path.display()),
                "it says what was there before the first change: read it before you move it away",
            )
        };
        let state: State = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if state.version != VERSION {
            return Err(damaged(format!("it is of version {}, this rehome reads {VERSION}", state.version)));
        }
        Ok(Some(state))
    }

    /// All of it or nothing, mode 0600, on the disk before this returns. A link at its place is replaced, not followed.
    ///
    /// # Errors
    /// When it cannot be written: then nothing may be changed.
    pub fn save(&self, state: &State) -> Result<(), EntryError> {
        let text = serde_json::to_vec_pretty(state).map_err(|error| self.failed()(error.into()))?;
        (|| {
            let mut beside = tempfile::NamedTempFile::new_in(self.folder())?;
            beside.write_all(&text)?;
            beside.as_file().sync_all()?;
            beside.persist(&self.path).map_err(|error| error.error)?;
            File::open(self.folder())?.sync_all()
        })()
        .map_err(self.failed())
    }

    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self) -> Result<(), EntryError> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed()(error)),
            _ => Ok(()),
        }
    }
}

fn libc_no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn entry(targets: &[&str], ttl: u32) -> Entry {
        Entry::to(&targets.iter().map(|&text| text.to_owned()).collect::<Vec<_>>(), ttl).unwrap()
    }

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn state(former: Entry) -> State {
        State::new(name("shop.example.com"), name("example.com"), "test".into(), former)
    }

    #[test]
    fn the_old_answer_lives_its_old_time_to_live_from_when_the_last_server_gave_it_up() {
        let (old, low, new) =
            (entry(&["192.0.2.1"], 3600), entry(&["192.0.2.1"], 60), entry(&["192.0.2.9"], 60));
        let mut state = state(old.clone());
        state.intend(Verb::LowerTtl, &old, &low, at(0));
        assert_eq!(state.older_gone(), None);
        state.saw(&low, 900, at(100));
        assert_eq!(state.older_gone(), Some(at(3700)));
        // Pointed too early: some caches still have the answer of an hour.
        state.intend(Verb::Point, &low, &new, at(200));
        assert_eq!(state.older_gone(), None, "not seen everywhere");
        state.saw(&new, 900, at(210));
        assert_eq!(state.older_gone(), Some(at(3700)));
        // And back again, in time.
        state.intend(Verb::LowerTtl, &new, &low, at(5000));
        state.saw(&low, 900, at(5001));
        assert_eq!(state.older_gone(), Some(at(5061)));
    }

    #[test]
    fn what_was_never_seen_everywhere_counts_in_full() {
        let (old, low, new) =
            (entry(&["192.0.2.1"], 3600), entry(&["192.0.2.1"], 60), entry(&["192.0.2.9"], 60));
        let mut state = state(old.clone());
        state.intend(Verb::LowerTtl, &old, &low, at(0));
        state.intend(Verb::Point, &low, &new, at(4000));
        state.saw(&new, 900, at(4001));
        assert_eq!(state.older_gone(), Some(at(7601)));
    }

    #[test]
    fn what_was_undone_and_is_done_again_counts_again() {
        let (old, new) = (entry(&["192.0.2.1"], 300), entry(&["192.0.2.9"], 300));
        let mut state = state(old.clone());
        state.intend(Verb::Point, &old, &new, at(0));
        state.saw(&new, 900, at(1));
        state.intend(Verb::Point, &new, &new, at(50));
        assert_eq!((state.intended.len(), state.older_gone()), (1, Some(at(301))));
        // Somebody put the former records back by hand, and it is pointed once more.
        state.intend(Verb::Point, &old, &new, at(1000));
        assert_eq!(state.older_gone(), None);
        state.saw(&new, 900, at(1001));
        assert_eq!(state.older_gone(), Some(at(1301)));
    }

    #[test]
    fn that_something_was_not_there_is_kept_too() {
        let (old, new) = (entry(&["192.0.2.1"], 60), entry(&["192.0.2.9", "2001:db8::9"], 60));
        let mut state = state(old.clone());
        state.intend(Verb::Point, &old, &new, at(0));
        state.saw(&new, 900, at(10));
        assert_eq!(state.older_gone(), Some(at(910)));
    }

    #[test]
    fn nothing_of_ours_is_mistaken_for_somebody_else_s() {
        let (old, new) = (entry(&["192.0.2.1", "192.0.2.2"], 300), entry(&["192.0.2.9"], 60));
        let mut state = state(old.clone());
        state.intend(Verb::Point, &old, &new, at(0));
        let mixed = entry(&["192.0.2.2", "192.0.2.9"], 300);
        assert!(state.is_ours(&old, false) && state.is_ours(&new, false));
        assert!(!state.is_ours(&mixed, false) && state.is_ours(&mixed, true));
        assert!(!state.is_ours(&entry(&["192.0.2.7"], 60), true));
        assert!(!state.is_ours(&old.with_ttl(120), true), "somebody changed the time to live");
    }

    #[test]
    fn the_file_is_private_whole_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("dns");
        let file = StateFile::new(&folder, &name("shop.example.com"));
        let lock = file.lock().unwrap();
        assert!(matches!(file.lock(), Err(EntryError::Unfit { .. })), "one at a time");
        assert_eq!(file.load().unwrap(), None);
        let mut state = state(entry(&["192.0.2.1"], 300));
        state.intend(Verb::Point, &entry(&["192.0.2.1"], 300), &entry(&["192.0.2.9"], 60), at(1));
        state.saw(&entry(&["192.0.2.9"], 60), 5, at(2));
        file.save(&state).unwrap();
        assert_eq!(file.load().unwrap(), Some(state.clone()));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(file.path())), (0o700, 0o600));
        // Somebody put a link there: its target stays as it is, and is not read.
        let other = folder.join("other");
        std::fs::write(&other, "precious").unwrap();
        std::fs::remove_file(file.path()).unwrap();
        std::os::unix::fs::symlink(&other, file.path()).unwrap();
        assert!(file.load().is_err());
        file.save(&state).unwrap();
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
        assert_eq!(file.load().unwrap(), Some(state));
        std::fs::write(file.path(), "{\"version\":1").unwrap();
        assert!(matches!(file.load(), Err(EntryError::Unfit { .. })), "damage is never passed over");
        drop(lock);
        assert!(file.lock().is_ok());
    }
}
