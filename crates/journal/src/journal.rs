//! Journal of one migration run. Append-only; the only writer is [`Journal`], and every append of it checks the pure
//! transition and the lease in one transaction. Calls block for about one fsync: run them off the async threads.

use crate::copy::{Copier, CopyHealth};
use crate::event::{Actor, Event, PartInfo, Record};
use crate::lease::{self, GuardBeat, Lease};
use crate::state::State;
use crate::{Error, Now, Result, database};
use rehome_part::Token;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The journal's file in a run's folder.
pub const JOURNAL_FILE: &str = "journal.db";
/// The register's file in a run's folder.
pub const DECISION_FILE: &str = "decision.db";

/// What a journal begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRun {
    /// `run_…`, unique.
    pub run: String,
    /// The migration's name.
    pub name: String,
    pub parts: Vec<PartInfo>,
    pub services: Vec<String>,
    /// The version of the program that writes.
    pub tool_version: String,
    /// Who asked for it.
    pub actor: String,
    /// Milliseconds since 1970.
    pub at_ms: i64,
    /// The first engine's token is higher than this: 0, or for a run that is recovered more than any that was ever given.
    pub token_floor: Token,
}

/// How a journal is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// A second folder that both files are copied to after every change of state.
    pub copy_to: Option<PathBuf>,
}

/// The writer of one run's record. Shared by reference; one connection behind a lock.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    inner: Mutex<Inner>,
    copier: Option<Copier>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    state: State,
    seq: u64,
    run: String,
    name: String,
}

impl Journal {
    /// Begins a run in `folder` (made 0700, files 0600). Fails with [`Error::Exists`] when one is there.
    pub fn create(folder: &Path, new: NewRun, options: Options) -> Result<Self> {
        let path = folder.join(JOURNAL_FILE);
        database::make_private(&path)?;
        let mut connection = database::connect(&path)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let tables: i64 =
            transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 {
            return Err(Error::Exists(path));
        }
        database::create_tables(&transaction, &new.tool_version)?;
        database::set_meta(&transaction, "created_ms", &new.at_ms.to_string())?;
        database::set_meta(&transaction, "run", &new.run)?;
        database::set_meta(&transaction, "name", &new.name)?;
        database::set_meta(&transaction, "boot_id", crate::boot_id())?;
        let event =
            Event::RunCreated { run: new.run, name: new.name, parts: new.parts, services: new.services };
        State::default().next(&event)?;
        lease::begin(&transaction, new.token_floor)?;
        let actor = Actor { name: new.actor, token: Token(0) };
        insert(&transaction, 1, new.at_ms, &actor, &event)?;
        transaction.commit()?;
        drop(connection);
        Self::open(folder, options)
    }

    /// Opens a run: checks the format, brings an older one up to date, and replays the whole history through
    /// [`State::next`]; one that cannot have happened is refused with its sequence number.
    pub fn open(folder: &Path, options: Options) -> Result<Self> {
        let path = folder.join(JOURNAL_FILE);
        if !path.exists() {
            return Err(Error::NotFound(path));
        }
        let mut connection = database::connect(&path)?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            return Err(Error::NotFound(path)); // killed before the first commit
        }
        if database::check_format(&connection)? < database::FORMAT_MAJOR {
            database::migrate(&mut connection, database::MIGRATIONS, database::FORMAT_MAJOR)?;
        }
        let (state, seq) = replay(&connection, State::default(), 0)?;
        let run = database::meta(&connection, "run")?.unwrap_or_default();
        let name = database::meta(&connection, "name")?.unwrap_or_default();
        let copier = match options.copy_to {
            Some(place) => Some(Copier::start(folder.to_path_buf(), place)?),
            None => None,
        };
        let inner = Mutex::new(Inner { connection, state, seq, run, name });
        Ok(Self { folder: folder.to_path_buf(), inner, copier })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // a panic between begin and commit leaves nothing: the transaction is rolled back when it is dropped
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run's id and the migration's name.
    pub fn identity(&self) -> (String, String) {
        let inner = self.lock();
        (inner.run.clone(), inner.name.clone())
    }

    /// The state as this writer knows it.
    pub fn state(&self) -> State {
        self.lock().state.clone()
    }

    /// The number of the last event.
    pub fn seq(&self) -> u64 {
        self.lock().seq
    }

    /// Reads what others wrote since (only an engine whose lease is over needs this).
    pub fn catch_up(&self) -> Result<State> {
        let mut inner = self.lock();
        let (state, seq) = replay(&inner.connection, inner.state.clone(), inner.seq)?;
        (inner.state, inner.seq) = (state.clone(), seq);
        Ok(state)
    }

    /// Writes events, all or none. Fails without writing when one is illegal, or when `actor`'s token is not the newest.
    /// Answers the state after them.
    pub fn append(&self, actor: &Actor, at_ms: i64, events: &[Event]) -> Result<State> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let transaction = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        lease::check(&transaction, actor.token)?;
        let (mut state, mut seq) = replay(&transaction, inner.state.clone(), inner.seq)?;
        for event in events {
            state = state.next(event)?;
            seq += 1;
            insert(&transaction, seq, at_ms, actor, event)?;
        }
        transaction.commit()?;
        (inner.state, inner.seq) = (state.clone(), seq);
        drop(guard);
        if let Some(copier) = self.copier.as_ref().filter(|_| !events.iter().all(Event::is_sample)) {
            copier.ask();
        }
        Ok(state)
    }

    /// Asks for a fresh copy now, e.g. after a write to the register.
    pub fn copy_now(&self) {
        if let Some(copier) = &self.copier {
            copier.ask();
        }
    }

    /// How the copy is doing; `None` when none is kept.
    pub fn copy_health(&self) -> Option<CopyHealth> {
        self.copier.as_ref().map(Copier::health)
    }

    /// Waits for the copy to hold everything written so far, or for `at_most`.
    pub fn settle_copy(&self, at_most: Duration) -> Option<CopyHealth> {
        self.copier.as_ref().map(|copier| copier.settle(at_most))
    }

    /// Becomes the engine if nobody alive is: [`Error::Held`] otherwise. Reads what the last engine wrote.
    pub fn acquire(&self, holder: &str, now: &Now, length: Duration) -> Result<Lease> {
        let lease = self.in_transaction(|transaction| lease::acquire(transaction, holder, now, length))?;
        self.catch_up()?;
        Ok(lease)
    }

    /// Prolongs the lease; [`Error::LeaseLost`] when somebody took it over.
    pub fn renew(&self, token: Token, now: &Now, length: Duration) -> Result<Lease> {
        self.in_transaction(|transaction| lease::renew(transaction, token, now, length))
    }

    /// Ends the lease, so that the next engine need not wait for it.
    pub fn release(&self, token: Token) -> Result<()> {
        self.in_transaction(|transaction| lease::release(transaction, token))
    }

    pub fn lease(&self) -> Result<Option<Lease>> {
        lease::read(&self.lock().connection)
    }

    /// A guard's sign of life.
    pub fn beat_guard(&self, holder: &str, now: &Now) -> Result<()> {
        self.in_transaction(|transaction| lease::beat(transaction, holder, now))
    }

    pub fn guard(&self) -> Result<Option<GuardBeat>> {
        lease::guard(&self.lock().connection)
    }

    /// What the last intent of a step said, and what came of it.
    pub fn step(&self, name: &str, attempt: u64) -> Result<Option<(Value, Value)>> {
        let inner = self.lock();
        let mut statement = inner
            .connection
            .prepare_cached("SELECT input, output FROM step WHERE name = ?1 AND attempt = ?2")?;
        let mut rows = statement.query(params![name, attempt as i64])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let parse = |text: Option<String>| {
            text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or(Value::Null)
        };
        Ok(Some((parse(row.get(0)?), parse(row.get(1)?))))
    }

    /// Events after `seq`, at most `limit`.
    pub fn events_since(&self, seq: u64, limit: usize) -> Result<Vec<Record>> {
        read_events(&self.lock().connection, seq, limit)
    }

    fn in_transaction<T>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let transaction = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let answer = work(&transaction)?;
        transaction.commit()?;
        Ok(answer)
    }
}

fn insert(transaction: &Transaction<'_>, seq: u64, at_ms: i64, actor: &Actor, event: &Event) -> Result<()> {
    let body = serde_json::to_string(event).expect("events are plain data with text keys");
    let step = event.step().map(|(name, _)| name.to_owned());
    transaction
        .prepare_cached("INSERT INTO event (seq, at_ms, kind, step, actor, token, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![seq as i64, at_ms, event.kind(), step, actor.name, actor.token.0 as i64, body])?;
    let (state, input, output) = match event {
        Event::StepIntended { input, .. } => ("intended", Some(input.to_string()), None),
        Event::StepDone { output, .. } => ("done", None, Some(output.to_string())),
        Event::StepFailed { .. } => ("failed", None, None),
        Event::UndoIntended { .. } | Event::UndoFailed { .. } => ("undo_intended", None, None),
        Event::UndoDone { .. } => ("undone", None, None),
        _ => return Ok(()),
    };
    let (name, attempt) = event.step().expect("the match above lists step events only");
    transaction
        .prepare_cached(
            "INSERT INTO step (name, attempt, state, input, output, updated_seq) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (name, attempt) DO UPDATE SET state = ?3, input = coalesce(?4, input),
                 output = coalesce(?5, output), updated_seq = ?6",
        )?
        .execute(params![name, attempt as i64, state, input, output, seq as i64])?;
    Ok(())
}

/// Reads at most `limit` events after `seq`, in order; a line that cannot be read is an impossible history.
pub(crate) fn read_events(connection: &Connection, seq: u64, limit: usize) -> Result<Vec<Record>> {
    let mut statement = connection.prepare_cached(
        "SELECT seq, at_ms, actor, token, body FROM event WHERE seq > ?1 ORDER BY seq LIMIT ?2",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut rows = statement.query(params![seq as i64, limit])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        let seq = row.get::<_, i64>(0)?.unsigned_abs();
        let body: String = row.get(4)?;
        let event = serde_json::from_str(&body)
            .map_err(|error| Error::Impossible { seq, why: format!("it cannot be read: {error}") })?;
        records.push(Record {
            seq,
            at_ms: row.get(1)?,
            actor: row.get(2)?,
            token: Token(row.get::<_, i64>(3)?.unsigned_abs()),
            event,
        });
    }
    Ok(records)
}

/// Goes through what follows `seq`, event by event.
pub(crate) fn replay(connection: &Connection, mut state: State, mut seq: u64) -> Result<(State, u64)> {
    loop {
        let records = read_events(connection, seq, 1_000)?;
        if records.is_empty() {
            return Ok((state, seq));
        }
        for record in records {
            if record.seq != seq + 1 {
                return Err(Error::Impossible { seq: seq + 1, why: "it is missing".into() });
            }
            state = state
                .next(&record.event)
                .map_err(|illegal| Error::Impossible { seq: record.seq, why: illegal.to_string() })?;
            seq = record.seq;
        }
    }
}
