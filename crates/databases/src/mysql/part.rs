//! One schema of a MariaDB server as a [`Part`]: the life of a part, told in terms of the server's own replication. Each method is a
//! few lines; the work is in the modules it calls.

use super::assess;
use super::changes::{self, Wanted, look};
use super::connect::{Flavour, Session, Sessions, connect};
use super::copy::{Copier, Done};
use super::fence::Gate;
use super::follow::{Follower, start_fact};
use super::schema::{self, Maker};
use super::sweep::sweep;
use super::verify::Reader;
use super::{channel, gtid, own, quote, tables};
use crate::end::{End, Ends, FenceMeans};
use crate::facts::Facts;
use crate::verify::{Compared, Found, Options, Pair, Progress as Seen, What, compare, differences, what};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rehome_part::{
    Assessment, Capabilities, CopySummary, Drained, Error, ErrorKind, Fence, Finding, Flow, FollowReport,
    Follows, Marker, Part, Position, Progress, Result, Scope, Seal, Severity, Side, Verification,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The time between two looks of a drain, and how many are under way at once.
const LOOK: Duration = Duration::from_millis(2);
const LOOKS_AT_ONCE: usize = 4;
/// What the short comparison reads at most.
const SHORT_KEYS: usize = 2_000;
const SHORT_TIME: Duration = Duration::from_millis(200);
/// Looks at rows that differ in the short comparison.
const SHORT_LOOKS: u32 = 3;
/// How long a change may be on its way when all is compared.
const PATIENCE: Duration = Duration::from_secs(2);
const DIFFERENCES_TOLD: usize = 100;

/// The part of one schema.
#[derive(Debug)]
pub struct MysqlPart {
    name: String,
    ends: Ends,
    means: FenceMeans,
    /// What `prepare` made, what the fences changed, and where the flows are: each in a file of its own, for each is written at times
    /// when another may be.
    made: Facts,
    fences: Facts,
    flows: Facts,
    folder: PathBuf,
    source: Sessions,
    target: Sessions,
}

impl MysqlPart {
    /// A part over two ends, whose schema has one name. Its memory is `mysql-NAME-….json` in `state_dir`. Opens no connection.
    ///
    /// # Errors
    /// The names differ or cannot be replicated, an authority's file or the memory cannot be read.
    pub fn new(name: &str, ends: Ends, means: FenceMeans, state_dir: &Path) -> Result<Self> {
        let schema = &ends.source.address.database;
        let refused = |text: String| Err(Error::permanent(ErrorKind::Unsupported, text));
        if *schema != ends.target.address.database {
            return refused(format!(
                "the schema is {schema} on the source and {} on the target: replication keeps names",
                ends.target.address.database
            ));
        }
        let not_ours = ["mysql", "information_schema", "performance_schema", "sys", own::SCHEMA];
        if not_ours.contains(&&**schema) || schema.contains(',') {
            return refused(format!("the schema {schema} cannot be moved"));
        }
        let sessions = |side: Side| {
            let end = ends.of(side);
            Sessions::new(&end.address, end.password.as_deref(), side)
        };
        let facts = |what: &str| Facts::open(state_dir.join(format!("mysql-{name}-{what}.json")));
        Ok(Self {
            name: name.to_owned(),
            means,
            made: facts("made")?,
            fences: facts("fences")?,
            flows: facts("flows")?,
            folder: state_dir.to_owned(),
            source: sessions(Side::Source)?,
            target: sessions(Side::Target)?,
            ends,
        })
    }

    fn schema(&self) -> &str {
        &self.ends.source.address.database
    }

    fn sessions(&self, side: Side) -> &Sessions {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    fn end(&self, side: Side) -> &End {
        self.ends.of(side)
    }

    /// A session of its own: what it is set to does not matter to others.
    async fn alone(&self, side: Side) -> Result<Session> {
        let end = self.end(side);
        connect(&end.address, end.password.as_deref(), side).await
    }

    fn gate(&self, side: Side) -> Gate<'_> {
        Gate { sessions: self.sessions(side), end: self.end(side), means: self.means, facts: &self.fences }
    }

    async fn maker(&self, flow: Flow) -> Result<Maker<'_>> {
        let (source, target) = tokio::try_join!(self.alone(flow.from()), self.alone(flow.to()))?;
        Ok(Maker { source, target, schema: self.schema(), facts: &self.made })
    }

    /// What differs in all of the schema.
    async fn compare_all(
        &self,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Vec<Compared>> {
        let of = |side: Side| (self.end(side).address.clone(), self.end(side).password.clone());
        let pair = Pair { source: of(Side::Source), target: of(Side::Target) };
        let options = Options { patience: PATIENCE, ..Options::default() };
        let state = Arc::<Seen>::default();
        let marks = self.folder.join(format!("mysql-{}-verify", self.name));
        std::fs::create_dir_all(&marks)
            .map_err(|error| Error::permanent(ErrorKind::Other, format!("{}: {error}", marks.display())))?;
        let comparing = compare::<Reader>(&pair, &options, &marks, Arc::clone(&state), stop, None);
        tokio::pin!(comparing);
        loop {
            tokio::select! {
                compared = &mut comparing => return compared,
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    let expected = state.rows_expected.load(Ordering::Relaxed);
                    progress.update(state.rows.load(Ordering::Relaxed), 0, Some(expected), None);
                }
            }
        }
    }

    /// Compares the rows that changed since a position, as far as they can be read in a moment.
    async fn compare_since(
        &self,
        flow: Flow,
        since: &Position,
        stop: &CancellationToken,
    ) -> Result<Verification> {
        let mut from = self.sessions(flow.from()).take().await?;
        let mut to = self.sessions(flow.to()).take().await?;
        let tables = tables::read(&mut from, self.schema()).await?;
        let wanted = Wanted {
            schema: self.schema(),
            tables: &tables,
            since,
            own_only: false,
            most_keys: SHORT_KEYS,
            most_time: SHORT_TIME,
        };
        let changed = changes::read(self.end(flow.from()), flow.from(), &wanted).await?;
        let mut result = Verification { compared: changed.count(), ..Verification::default() };
        for (name, keys) in &changed.keys {
            let Some(table) = tables.iter().find(|table| table.name == *name) else { continue };
            let mut found = crate::verify::Differences::new();
            for attempt in 1..=SHORT_LOOKS {
                if stop.is_cancelled() {
                    return Err(Error::cancelled());
                }
                let (here, there) = tokio::try_join!(
                    look(&mut from, self.schema(), table, keys),
                    look(&mut to, self.schema(), table, keys)
                )?;
                found = differences(&here, &there);
                if found.is_empty() || attempt == SHORT_LOOKS {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            for (key, sides) in &found {
                result.differences_total += 1;
                if result.differences.len() < DIFFERENCES_TOLD {
                    // The first side here is the flow's owner.
                    let what = match (what(sides), flow) {
                        (What::OnlyOnSource, Flow::Reverse) => What::OnlyOnTarget,
                        (What::OnlyOnTarget, Flow::Reverse) => What::OnlyOnSource,
                        (what, _) => what,
                    };
                    result.differences.push(difference(name, key, what));
                }
            }
        }
        Ok(result)
    }

    async fn is_applied(&self, session: &mut Session, marker: &Marker) -> Result<(Position, bool)> {
        let statement = "SELECT @@GLOBAL.gtid_slave_pos,
            EXISTS (SELECT 1 FROM rehome.marker WHERE part = ? AND epoch = ? AND nonce = ?)";
        let (position, is_there): (String, bool) = session
            .row("look for the marker", statement, (&*self.name, marker.epoch.0, &*marker.nonce))
            .await?;
        Ok((Position(position), is_there))
    }

    /// Numbers that rows will be given must not begin behind those that the old owner gave away.
    async fn carry_counters(&self, flow: Flow) -> Result<()> {
        let mut from = self.sessions(flow.from()).take().await?;
        let mut to = self.sessions(flow.to()).take().await?;
        let (ours, theirs) =
            tokio::try_join!(counters(&mut from, self.schema()), counters(&mut to, self.schema()))?;
        for (table, next) in ours {
            let there = theirs.iter().find(|(name, _)| *name == table).map(|(_, next)| *next);
            if there.is_some_and(|there| there < next) {
                let named = format!("{}.{}", quote::name(self.schema()), quote::name(&table));
                to.off_the_record().await?;
                to.say("set AUTO_INCREMENT", &format!("ALTER TABLE {named} AUTO_INCREMENT = {next}")).await?;
            }
        }
        Ok(())
    }

    /// Events act on the new owner once its scheduler is on again: those that act on the old one.
    async fn set_events(&self, flow: Flow, is_owner: bool) -> Result<()> {
        let statement = "SELECT EVENT_NAME, STATUS FROM information_schema.EVENTS WHERE EVENT_SCHEMA = ?";
        let mut from = self.sessions(flow.from()).take().await?;
        let mut to = self.sessions(flow.to()).take().await?;
        let doing = "read the events";
        let ours: Vec<(String, String)> = from.rows(doing, statement, (self.schema(),)).await?;
        if ours.is_empty() {
            return Ok(());
        }
        let theirs: Vec<(String, String)> = to.rows(doing, statement, (self.schema(),)).await?;
        to.off_the_record().await?;
        let (before, after) =
            if is_owner { ("SLAVESIDE_DISABLED", "ENABLE") } else { ("ENABLED", "DISABLE ON SLAVE") };
        for (event, _) in ours.iter().filter(|(_, status)| status == "ENABLED") {
            if theirs.iter().any(|(other, status)| other == event && status == before) {
                let named = format!("{}.{}", quote::name(self.schema()), quote::name(event));
                to.say("set events", &format!("ALTER EVENT {named} {after}")).await?;
            }
        }
        Ok(())
    }
}

async fn counters(session: &mut Session, schema: &str) -> Result<Vec<(String, u64)>> {
    let statement = "SELECT TABLE_NAME, AUTO_INCREMENT FROM information_schema.TABLES
        WHERE TABLE_SCHEMA = ? AND AUTO_INCREMENT IS NOT NULL";
    session.rows("read AUTO_INCREMENT", statement, (schema,)).await
}

fn difference(table: &str, key: &[String], what: What) -> Finding {
    let (side, said) = match what {
        What::OnlyOnSource => (Side::Target, "is missing on the target"),
        What::OnlyOnTarget => (Side::Target, "is on the target only"),
        What::Differs => (Side::Target, "differs"),
    };
    Finding {
        id: "row-differs".into(),
        severity: Severity::Warning,
        side: Some(side),
        text: format!("{table} ({}) {said}", key.join(", ")),
        remedy: Some("Find out who wrote there, then copy anew.".into()),
    }
}

fn verification(compared: &[Compared]) -> Verification {
    let mut result = Verification::default();
    for one in compared {
        result.compared += one.source_rows;
        result.in_motion += one.unsettled;
        match &one.found {
            Found::Same | Found::Unsettled => {}
            Found::Differs => {
                result.differences_total += one.differing;
                let rows = one.rows.iter().map(|row| difference(&one.table, &row.key, row.what));
                result.differences.extend(rows);
            }
            Found::Missing(side) => {
                result.differences_total += 1;
                result.differences.push(unlike(&one.table, *side, "has no such table".to_owned()));
            }
            Found::Unlike => {
                result.differences_total += 1;
                result.differences.push(unlike(&one.table, Side::Target, one.notes.join("; ")));
            }
        }
    }
    result.differences.truncate(DIFFERENCES_TOLD);
    result
}

fn unlike(table: &str, side: Side, why: String) -> Finding {
    Finding {
        id: "table-differs".into(),
        severity: Severity::Warning,
        side: Some(side),
        text: format!("{table}: the {side} {why}"),
        remedy: Some("Make the tables alike, then copy anew.".into()),
    }
}

fn seal_fact(flow: Flow) -> String {
    format!("seal:{}", own::word(flow))
}

fn copied_fact(flow: Flow) -> String {
    format!("copied:{}", own::word(flow))
}

/// This part speaks MariaDB's replication.
async fn must_be_mariadb(session: &mut Session) -> Result<()> {
    let (version, flavour) = session.version().await?;
    if flavour == Flavour::MariaDb {
        return Ok(());
    }
    let text = format!("MySQL {version} cannot be moved by replication here yet, only MariaDB");
    Err(Error::permanent(ErrorKind::Unsupported, text).on(session.side()))
}

#[async_trait]
impl Part for MysqlPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "mysql"
    }

    fn capabilities(&self) -> Capabilities {
        let has_logins = |side: Side| !self.end(side).applications.is_empty();
        Capabilities {
            follows: Follows::Feed,
            can_fence: self.means != FenceMeans::None,
            can_probe: self.means != FenceMeans::None && has_logins(Side::Source) && has_logins(Side::Target),
            can_reverse: true,
        }
    }

    async fn assess(&self) -> Result<Assessment> {
        let (mut source, mut target) = tokio::try_join!(self.source.take(), self.target.take())?;
        assess::part(&mut source, &mut target).await
    }

    async fn prepare(&self) -> Result<()> {
        let mut maker = self.maker(Flow::Forward).await?;
        must_be_mariadb(&mut maker.source).await?;
        must_be_mariadb(&mut maker.target).await?;
        let logins = &self.end(Side::Source).applications;
        let applications: Vec<String> = logins.iter().map(|login| login.user.clone()).collect();
        maker.make(&self.end(Side::Source).address.user, &applications).await?;
        own::make(&mut self.source.take().await?).await?;
        own::make(&mut self.target.take().await?).await
    }

    async fn unprepare(&self) -> Result<()> {
        for side in [Side::Target, Side::Source] {
            let mut session = self.sessions(side).take().await?;
            channel::remove(&mut session).await?;
            own::remove(&mut session, &self.name).await?;
        }
        schema::unmake(&mut self.alone(Side::Target).await?, self.schema(), &self.made).await?;
        self.forget_flows()
    }

    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary> {
        let done = match self.flows.get(&copied_fact(flow)) {
            Some(text) => {
                let done: Done = serde_json::from_str(&text)
                    .map_err(|error| Error::permanent(ErrorKind::Corrupt, error.to_string()))?;
                Done { rows: 0, bytes: 0, kept: done.rows + done.kept }
            }
            None => {
                let (from, to, writer) =
                    tokio::try_join!(self.alone(flow.from()), self.alone(flow.to()), self.alone(flow.to()))?;
                let schema = self.schema().to_owned();
                let mut copier = Copier { from, to, writer, schema, progress, stop, done: Done::default() };
                let start = copier.run().await?;
                let text = serde_json::to_string(&copier.done)
                    .map_err(|error| Error::permanent(ErrorKind::Other, error.to_string()))?;
                // The start first: a copy without one would never be followed.
                self.flows.set(&start_fact(flow), &start.0)?;
                self.flows.set(&copied_fact(flow), &text)?;
                copier.done
            }
        };
        self.maker(flow).await?.finish().await?;
        Ok(CopySummary { objects: done.rows, bytes: done.bytes, kept: done.kept, losses: Vec::new() })
    }

    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()> {
        let follower = Follower {
            part: &self.name,
            schema: self.schema(),
            flow,
            from: self.sessions(flow.from()),
            from_end: self.end(flow.from()),
            to: self.sessions(flow.to()),
            facts: &self.flows,
        };
        follower.run(&report, &stop).await
    }

    async fn warm(&self, flow: Flow) -> Result<()> {
        // Enough for the fence, the marker and the looks of a drain; they go back to the pool when they are dropped.
        for side in [flow.from(), flow.to()] {
            let takes = (0..LOOKS_AT_ONCE + 2).map(|_| self.sessions(side).take());
            let mut taken = futures::future::try_join_all(takes).await?;
            if let Some(session) = taken.first_mut() {
                channel::head(session).await?;
            }
        }
        Ok(())
    }

    async fn head(&self, flow: Flow) -> Result<Position> {
        channel::head(&mut self.sessions(flow.from()).take().await?).await
    }

    fn covers(&self, applied: &Position, wanted: &Position) -> bool {
        gtid::covers(applied, wanted)
    }

    async fn fence(&self, side: Side) -> Result<()> {
        self.gate(side).close().await
    }

    async fn unfence(&self, side: Side) -> Result<()> {
        self.gate(side).open().await
    }

    async fn probe(&self, side: Side) -> Result<Fence> {
        self.gate(side).probe(self.schema()).await
    }

    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()> {
        own::mark(&mut self.sessions(flow.from()).take().await?, &self.name, marker).await
    }

    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained> {
        let sessions = self.sessions(flow.to());
        let first = Box::pin(async {
            let mut session = sessions.take().await?;
            let answer = self.is_applied(&mut session, marker).await?;
            Ok::<_, Error>((session, answer))
        });
        let (session, (before, _)) = tokio::select! {
            () = stop.cancelled() => return Err(Error::cancelled()),
            first = first => first?,
        };
        let mut free = vec![session];
        let mut looks = FuturesUnordered::new();
        let mut looked: Option<Instant> = None;
        loop {
            // A look is not waited for before the next begins: far away, that would cost a round trip.
            if looked.is_none_or(|at| at.elapsed() >= LOOK) && looks.len() < LOOKS_AT_ONCE {
                let session = free.pop();
                looks.push(Box::pin(async move {
                    let mut session = match session {
                        Some(session) => session,
                        None => sessions.take().await?,
                    };
                    let answer = self.is_applied(&mut session, marker).await?;
                    Ok::<_, Error>((session, answer))
                }));
                looked = Some(Instant::now());
            }
            tokio::select! {
                () = stop.cancelled() => return Err(Error::cancelled()),
                Some(looked) = looks.next(), if !looks.is_empty() => {
                    let (session, (applied, marker_seen)) = looked?;
                    if marker_seen && gtid::covers(&applied, fence) {
                        let changes = gtid::since(&applied, Some(&before));
                        return Ok(Drained { applied, marker_seen, changes });
                    }
                    free.push(session);
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn verify(
        &self,
        flow: Flow,
        scope: Scope,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Verification> {
        match scope {
            Scope::Full => Ok(verification(&self.compare_all(progress, stop).await?)),
            Scope::Since(position) => self.compare_since(flow, &position, &stop).await,
        }
    }

    async fn seal(&self, flow: Flow) -> Result<Seal> {
        if let Some(sealed) = self.flows.get(&seal_fact(flow)) {
            return Ok(Seal { reverse_start: Position(sealed) });
        }
        let mut to = self.sessions(flow.to()).take().await?;
        channel::stop(&mut to).await?;
        tokio::try_join!(self.carry_counters(flow), self.set_events(flow, true))?;
        let start = channel::head(&mut to).await?;
        self.flows.set(&start_fact(flow.back()), &start.0)?;
        // The seal of the switch before this one is history.
        self.flows.forget(&seal_fact(flow.back()))?;
        self.flows.set(&seal_fact(flow), &start.0)?;
        Ok(Seal { reverse_start: start })
    }

    async fn unseal(&self, flow: Flow) -> Result<()> {
        if self.flows.get(&seal_fact(flow)).is_some() {
            self.set_events(flow, false).await?;
            self.flows.forget(&start_fact(flow.back()))?;
            self.flows.forget(&seal_fact(flow))?;
        }
        Ok(())
    }

    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>> {
        let sealed = self.flows.get(&seal_fact(flow)).map(Position);
        sweep(&self.ends, self.schema(), flow, since, sealed.as_ref()).await
    }

    async fn retire(&self, _owner: Side) -> Result<()> {
        // Both stop receiving before anything is removed: nobody is to be sent the removal.
        for side in [Side::Source, Side::Target] {
            channel::remove(&mut self.sessions(side).take().await?).await?;
        }
        for side in [Side::Source, Side::Target] {
            own::remove(&mut self.sessions(side).take().await?, &self.name).await?;
        }
        self.forget_flows()
    }
}

impl MysqlPart {
    fn forget_flows(&self) -> Result<()> {
        for flow in [Flow::Forward, Flow::Reverse] {
            for fact in [start_fact(flow), seal_fact(flow), copied_fact(flow)] {
                self.flows.forget(&fact)?;
            }
        }
        self.flows.forget(super::follow::INSTALLED)
    }
}
