//! Do two databases hold the same rows? Each server hashes its own; only sums travel. Where sums differ they are looked at again,
//! since a change may still be on its way, and only then row by row, so that a difference has a name. Believes no replication's word.
//!
//! Hash: `md5` of the row's text with all settings that shape it set alike, summed in two halves of 64 bits, so that order does not
//! matter and a row twice is not a row once. It finds accidents; nobody is kept from making two rows that collide.
//!
//! What is the same for every engine is here; its statements are in its own folder, behind [`Reads`].

mod chunk;
mod marks;

use crate::address::{Address, Engine};
use async_trait::async_trait;
pub(crate) use chunk::{Chunk, Column, Differences, Digest, Hashes, Sides, Table, differences, what};
use marks::{Marks, Part};
use rehome_part::{Error, Side};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Looks at rows that differ, so far apart: what changes between two looks is under way, not wrong.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Pieces whose rows are looked at together: so many fit into memory even where every row differs.
const LOOKED_AT_TOGETHER: usize = 16;

/// How to compare.
#[derive(Debug, Clone)]
pub struct Options {
    /// `schema.table`; of MySQL the bare name, of Redis a database's number. Empty: all.
    pub tables: Vec<String>,
    /// Rows of a piece.
    pub chunk_rows: u32,
    /// Pieces under way at once, each with a session on both sides.
    pub jobs: usize,
    /// How long a change may take from one side to the other.
    pub patience: Duration,
    /// Differing rows that are named per table.
    pub most_named: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            chunk_rows: 20_000,
            jobs: 4,
            patience: Duration::from_secs(10),
            most_named: 20,
        }
    }
}

/// How far a comparison is.
#[derive(Debug, Default)]
pub struct Progress {
    pub rows: AtomicU64,
    pub rows_expected: AtomicU64,
    pub tables: AtomicU64,
    pub tables_expected: AtomicU64,
    /// Of values that had to be read; none where servers sum up their own.
    pub bytes: AtomicU64,
}

impl Progress {
    /// Rows that were compared, and all there are by the server's guess.
    pub fn rows(&self) -> (u64, u64) {
        (self.rows.load(Ordering::Relaxed), self.rows_expected.load(Ordering::Relaxed))
    }
}

/// What was found of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Found {
    Same,
    Differs,
    /// Some rows changed at every look; whether they arrive is not known.
    Unsettled,
    /// One side has no such table.
    Missing(Side),
    /// A column is on one side only, so rows cannot be compared.
    Unlike,
}

/// One row that is not the same on both sides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Row {
    /// Values of the key's columns; without a key, a hash of the row.
    pub key: Vec<String>,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    OnlyOnSource,
    OnlyOnTarget,
    Differs,
}

/// What became of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    pub table: String,
    pub found: Found,
    /// The names of the key's columns.
    pub key: Vec<String>,
    pub source_rows: u64,
    pub target_rows: u64,
    /// Pieces that had to be looked at again.
    pub looked_again: u64,
    pub differing: u64,
    pub unsettled: u64,
    /// The first of those that differ.
    pub rows: Vec<Row>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// Two ends to compare, each with its password if it wants one.
#[derive(Clone)]
pub struct Pair {
    pub source: (Address, Option<String>),
    pub target: (Address, Option<String>),
}

impl std::fmt::Debug for Pair {
    /// Without the passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair")
            .field("source", &self.source.0)
            .field("target", &self.target.0)
            .finish_non_exhaustive()
    }
}

impl Pair {
    async fn session<S: Reads>(&self, side: Side) -> Result<S, Error> {
        let (address, password) = if side == Side::Source { &self.source } else { &self.target };
        Box::pin(S::open(address, password.as_deref(), side)).await
    }
}

/// Knows when what is under way has arrived.
#[async_trait]
pub(crate) trait Arrival: std::fmt::Debug + Send + Sync {
    /// Until all that was committed before this call is on the other side, or it is plain that nothing will come.
    ///
    /// # Errors
    /// A side cannot be asked.
    async fn wait(&self) -> Result<(), Error>;
}

/// A session of one engine that reads for a comparison.
pub(crate) trait Reads: Send + Sync + Sized {
    fn open(
        address: &Address,
        password: Option<&str>,
        side: Side,
    ) -> impl Future<Output = Result<Self, Error>> + Send;

    /// All tables that people made, by name.
    fn tables(&self) -> impl Future<Output = Result<Vec<Table>, Error>> + Send;

    /// The key of the row with which a piece of `rows` rows at the beginning of `rest` ends; `None` when it holds fewer.
    fn boundary(
        &self,
        table: &Table,
        rest: &Chunk,
        rows: u32,
    ) -> impl Future<Output = Result<Option<Vec<String>>, Error>> + Send;

    /// Keys that cut a table into about `parts` equal ranges, by what the server knows of its values; none where it knows nothing.
    fn cuts(
        &self,
        table: &Table,
        parts: usize,
    ) -> impl Future<Output = Result<Vec<Vec<String>>, Error>> + Send;

    /// The sums of a piece; of a whole table by bucket.
    fn digests(
        &self,
        table: &Table,
        chunk: &Chunk,
    ) -> impl Future<Output = Result<Vec<Digest>, Error>> + Send;

    /// Hash and number of each row of a piece.
    fn hashes(&self, table: &Table, chunk: &Chunk) -> impl Future<Output = Result<Hashes, Error>> + Send;
}

/// Compares all tables of two databases of one engine (of Redis: all its databases), and says of each what was found. `marks`: a
/// folder where an interrupted comparison finds how far it was; Redis keeps none.
///
/// # Errors
/// The engines are not the same, a side cannot be read, or `stop` was asked for; what was compared until then is in the marks.
pub async fn verify(
    pair: &Pair,
    options: &Options,
    marks: &Path,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<Vec<Compared>, Error> {
    let (ours, theirs) = (pair.source.0.engine, pair.target.0.engine);
    if ours != theirs {
        let text = format!(
            "the source is {} and the target {}: their rows cannot be compared",
            ours.shown(),
            theirs.shown()
        );
        return Err(Error::permanent(rehome_part::ErrorKind::Unsupported, text));
    }
    match ours {
        Engine::Postgres => {
            compare::<crate::postgres::Session>(pair, options, marks, progress, stop, None).await
        }
        Engine::Mysql => compare::<crate::mysql::Reader>(pair, options, marks, progress, stop, None).await,
        Engine::Redis => crate::redis::verify::verify(pair, options, &progress, &stop).await,
    }
}

/// The same for one engine's tables; with an `arrival`, changes get the time that they need instead of `patience`.
///
/// # Errors
/// As [`verify`].
pub(crate) async fn compare<S: Reads>(
    pair: &Pair,
    options: &Options,
    marks: &Path,
    progress: Arc<Progress>,
    stop: CancellationToken,
    arrival: Option<&dyn Arrival>,
) -> Result<Vec<Compared>, Error> {
    let (source, target) =
        tokio::try_join!(pair.session::<S>(Side::Source), pair.session::<S>(Side::Target))?;
    let (ours, theirs) = tokio::try_join!(source.tables(), target.tables())?;
    let (mut compared, tables) = plan(ours, theirs, &options.tables)?;
    let marks = Marks::open(marks, pair, options)?;
    progress.rows_expected.store(tables.iter().map(|(table, _)| table.rows).sum(), Ordering::Relaxed);
    progress.tables_expected.store(tables.len() as u64, Ordering::Relaxed);
    let mut queue = VecDeque::new();
    for (table, notes) in tables {
        if let Some(done) = marks.of(&table.shown()).done {
            progress.rows.fetch_add(done.source_rows, Ordering::Relaxed);
            progress.tables.fetch_add(1, Ordering::Relaxed);
            compared.push(done);
            continue;
        }
        let parts = cut(&source, &table, options, &marks).await?;
        let gone_through = parts.iter().map(|part| part.source_rows).sum();
        progress.rows.fetch_add(gone_through, Ordering::Relaxed);
        let left = AtomicUsize::new(parts.len());
        let under_way = Arc::new(UnderWay { table, notes, left });
        queue.extend(parts.into_iter().enumerate().map(|(number, part)| (under_way.clone(), number, part)));
    }
    let mut sessions = vec![(source, target)];
    while sessions.len() < options.jobs.min(queue.len()) {
        sessions.push(tokio::try_join!(pair.session(Side::Source), pair.session(Side::Target))?);
    }
    let queue = Mutex::new(queue);
    let workers = sessions.iter().map(|(source, target)| {
        let work = Work { source, target, options, marks: &marks, progress: &progress, stop: &stop, arrival };
        let queue = &queue;
        Box::pin(async move {
            let mut done = Vec::new();
            loop {
                let next = queue.lock().expect("no code panics while it holds this lock").pop_front();
                let Some((under_way, number, part)) = next else { return Ok::<_, Error>(done) };
                work.part(&under_way.table, number, part).await?;
                // Whoever ends the last part has the whole.
                if under_way.left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    done.push(work.whole(&under_way.table, under_way.notes.clone()).await?);
                    work.progress.tables.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for done in futures::future::try_join_all(workers).await? {
        compared.extend(done);
    }
    marks.remove();
    compared.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(compared)
}

/// A table of which parts are gone through.
struct UnderWay {
    table: Table,
    notes: Vec<String>,
    /// Parts that are not through.
    left: AtomicUsize,
}

/// The parts of a table for several workers, as they were cut before or are now. A small one is one part.
async fn cut<S: Reads>(
    source: &S,
    table: &Table,
    options: &Options,
    marks: &Marks,
) -> Result<Vec<Part>, Error> {
    let known = marks.of(&table.shown()).parts;
    if !known.is_empty() {
        return Ok(known);
    }
    let is_large = table.rows / u64::from(options.chunk_rows.max(1)) >= 2 * options.jobs as u64;
    let mut cuts = Vec::new();
    if table.has_ranges() && is_large {
        cuts = source.cuts(table, options.jobs).await?;
    }
    let (mut parts, mut after) = (Vec::new(), None);
    for cut in cuts {
        parts.push(Part { after: after.replace(cut.clone()), until: Some(cut), ..Part::default() });
    }
    parts.push(Part { after, ..Part::default() });
    marks.cut(&table.shown(), parts.clone())?;
    Ok(parts)
}

type Tables = Vec<(Table, Vec<String>)>;

/// Which tables can be compared; those that cannot are results already.
fn plan(ours: Vec<Table>, theirs: Vec<Table>, wanted: &[String]) -> Result<(Vec<Compared>, Tables), Error> {
    let is_wanted = |table: &Table| wanted.is_empty() || wanted.contains(&table.shown());
    let mut theirs: BTreeMap<String, Table> =
        theirs.into_iter().filter(is_wanted).map(|table| (table.shown(), table)).collect();
    let ours: Vec<Table> = ours.into_iter().filter(is_wanted).collect();
    for name in wanted {
        if !theirs.contains_key(name) && !ours.iter().any(|table| table.shown() == *name) {
            let text = format!("no side has a table {name}");
            let hint = "write schema.table as the catalog has it";
            return Err(Error::permanent(rehome_part::ErrorKind::NotFound, text).hint(hint));
        }
    }
    let (mut results, mut queue) = (Vec::new(), Vec::new());
    for mut table in ours {
        let Some(other) = theirs.remove(&table.shown()) else {
            results.push(Compared::of(&table, Found::Missing(Side::Target)));
            continue;
        };
        match likeness(&table, &other) {
            Ok(notes) => {
                table.forget_order_unless_as(&other);
                queue.push((table, notes));
            }
            Err(notes) => results.push(Compared { notes, ..Compared::of(&table, Found::Unlike) }),
        }
    }
    results.extend(theirs.values().map(|table| Compared::of(table, Found::Missing(Side::Source))));
    // The largest first: the last to end should not be the longest.
    queue.sort_by_key(|(table, _)| std::cmp::Reverse(table.rows));
    Ok((results, queue))
}

/// What two tables of a name have in common: notes where they can be compared all the same, or why they cannot.
fn likeness(ours: &Table, theirs: &Table) -> Result<Vec<String>, Vec<String>> {
    let missing = |from: &Table, of: &Table, side: &str| -> Vec<String> {
        let lacks = |column: &&Column| !from.columns.iter().any(|other| other.name == column.name);
        let lacking = of.columns.iter().filter(lacks);
        lacking.map(|column| format!("column {} is not on the {side}", column.name)).collect()
    };
    let mut gone = missing(theirs, ours, "target");
    gone.extend(missing(ours, theirs, "source"));
    if !gone.is_empty() {
        return Err(gone);
    }
    let mut notes = Vec::new();
    for column in &ours.columns {
        let other = theirs.columns.iter().find(|other| other.name == column.name);
        if let Some(other) = other.filter(|other| other.kind != column.kind) {
            notes.push(format!("column {} is {} here and {} there", column.name, column.kind, other.kind));
        }
    }
    if ours.key.is_empty() {
        notes.push("nothing names a row (no primary key, no unique index without nulls)".to_owned());
    }
    Ok(notes)
}

impl Compared {
    fn of(table: &Table, found: Found) -> Self {
        Self {
            table: table.shown(),
            found,
            key: table.key.iter().map(|column| column.name.clone()).collect(),
            source_rows: 0,
            target_rows: 0,
            looked_again: 0,
            differing: 0,
            unsettled: 0,
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn is_same(&self) -> bool {
        self.found == Found::Same
    }

    /// Why its rows could not be compared, if so.
    pub fn is_unlike(&self) -> Option<String> {
        match self.found {
            Found::Missing(side) => Some(format!("{} is not on the {side}", self.table)),
            Found::Unlike => Some(format!("{}: {}", self.table, self.notes.join(", "))),
            _ => None,
        }
    }
}

/// What one worker has.
struct Work<'a, S> {
    source: &'a S,
    target: &'a S,
    options: &'a Options,
    marks: &'a Marks,
    progress: &'a Progress,
    stop: &'a CancellationToken,
    arrival: Option<&'a dyn Arrival>,
}

impl<S: Reads> Work<'_, S> {
    /// Sums up one part, piece by piece.
    async fn part(&self, table: &Table, number: usize, mut part: Part) -> Result<(), Error> {
        while !part.is_through {
            self.check_stop()?;
            let (chunk, is_last) = self.next_chunk(table, &part).await?;
            let (ours, theirs) = self.digests(table, &chunk).await?;
            let rows = |digests: &[Digest]| digests.iter().map(|digest| digest.rows).sum::<u64>();
            part.source_rows += rows(&ours);
            part.target_rows += rows(&theirs);
            self.progress.rows.fetch_add(rows(&ours), Ordering::Relaxed);
            part.dirty.extend(chunk.differing(&ours, &theirs));
            part.is_through = is_last;
            if let Chunk::Range { until, .. } = chunk {
                part.after = until;
            }
            self.marks.note(&table.shown(), number, &part)?;
        }
        Ok(())
    }

    /// Looks again at what differed in any part of a table.
    async fn whole(&self, table: &Table, notes: Vec<String>) -> Result<Compared, Error> {
        let parts = self.marks.of(&table.shown()).parts;
        let dirty: Vec<Chunk> = parts.iter().flat_map(|part| part.dirty.clone()).collect();
        let mut compared = Compared {
            source_rows: parts.iter().map(|part| part.source_rows).sum(),
            target_rows: parts.iter().map(|part| part.target_rows).sum(),
            looked_again: dirty.len() as u64,
            notes,
            ..Compared::of(table, Found::Same)
        };
        for chunks in self.wait_for(table, dirty).await?.chunks(LOOKED_AT_TOGETHER) {
            self.look_at_rows(table, chunks, &mut compared).await?;
        }
        compared.found = match (compared.differing, compared.unsettled) {
            (0, 0) => Found::Same,
            (0, _) => Found::Unsettled,
            _ => Found::Differs,
        };
        self.marks.done(&compared)?;
        Ok(compared)
    }

    fn check_stop(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    async fn pause(&self, time: Duration) -> Result<(), Error> {
        tokio::select! {
            () = tokio::time::sleep(time) => Ok(()),
            () = self.stop.cancelled() => Err(Error::cancelled()),
        }
    }

    /// The next piece of a part, and whether it is the last.
    async fn next_chunk(&self, table: &Table, part: &Part) -> Result<(Chunk, bool), Error> {
        if !table.has_ranges() {
            return Ok((Chunk::Whole, true));
        }
        let rest = Chunk::Range { after: part.after.clone(), until: part.until.clone() };
        let until = self.source.boundary(table, &rest, self.options.chunk_rows).await?;
        Ok(match until.filter(|until| Some(until) != part.until.as_ref()) {
            Some(until) => (Chunk::Range { after: part.after.clone(), until: Some(until) }, false),
            None => (rest, true),
        })
    }

    async fn digests(&self, table: &Table, chunk: &Chunk) -> Result<(Vec<Digest>, Vec<Digest>), Error> {
        tokio::try_join!(self.source.digests(table, chunk), self.target.digests(table, chunk))
    }

    /// Changes may be on their way: what differs is compared again until it does not, or they had time enough.
    async fn wait_for(&self, table: &Table, mut dirty: Vec<Chunk>) -> Result<Vec<Chunk>, Error> {
        let patience = match self.arrival {
            Some(arrival) if !dirty.is_empty() => {
                arrival.wait().await?;
                Duration::ZERO
            }
            _ => self.options.patience,
        };
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(100);
        loop {
            let mut left = Vec::new();
            for chunk in dirty {
                self.check_stop()?;
                let (ours, theirs) = self.digests(table, &chunk).await?;
                if ours != theirs {
                    left.push(chunk);
                }
            }
            if left.is_empty() || Instant::now() >= until {
                return Ok(left);
            }
            dirty = left;
            self.pause(pause.min(until.saturating_duration_since(Instant::now()))).await?;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// Names the rows of some pieces that differ. What is the same in one look is the same; what stays as it is differs; what changes
    /// at every look is not settled.
    async fn look_at_rows(
        &self,
        table: &Table,
        chunks: &[Chunk],
        compared: &mut Compared,
    ) -> Result<(), Error> {
        let mut before = self.differences(table, chunks).await?;
        for look in 1..LOOKS {
            match self.arrival {
                Some(arrival) => arrival.wait().await?,
                None => self.pause(BETWEEN_LOOKS).await?,
            }
            let mut now = self.differences(table, chunks).await?;
            // Only rows that differed at every look are left.
            now.retain(|key, _| before.contains_key(key));
            let is_settled = now.iter().all(|(key, sides)| before.get(key) == Some(sides));
            if is_settled || look + 1 == LOOKS {
                self.note_rows(&before, &now, compared);
                return Ok(());
            }
            before = now;
        }
        Ok(())
    }

    async fn differences(&self, table: &Table, chunks: &[Chunk]) -> Result<Differences, Error> {
        let mut found = Differences::new();
        for chunk in chunks {
            self.check_stop()?;
            let (ours, theirs) =
                tokio::try_join!(self.source.hashes(table, chunk), self.target.hashes(table, chunk))?;
            found.extend(chunk::differences(&ours, &theirs));
        }
        Ok(found)
    }

    fn note_rows(&self, before: &Differences, now: &Differences, compared: &mut Compared) {
        let mut left: Vec<_> = now.iter().collect();
        // Numbers as people count.
        left.sort_by_key(|(key, _)| key.iter().map(|value| (value.len(), value.clone())).collect::<Vec<_>>());
        for (key, sides) in left {
            if before.get(key) != Some(sides) {
                compared.unsettled += 1;
                continue;
            }
            compared.differing += 1;
            if compared.rows.len() < self.options.most_named {
                compared.rows.push(Row { key: key.clone(), what: chunk::what(sides) });
            }
        }
    }
}
