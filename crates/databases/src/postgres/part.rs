//! One PostgreSQL database as a [`Part`]: the life of a part, told in terms of streams, beats and the fence. Each method is a few lines;
//! the work is in the modules it calls.

use super::beat;
use super::connect::Session;
use super::copy::{self, COPIED};
use super::fence::{self, Probes};
use super::follow;
use super::lsn::Lsn;
use super::own::{self, Names};
use super::recent::{self, Tables};
use super::schema::Schema;
use super::sequences;
use super::sessions::Sessions;
use super::stream::{Begin, Stream};
use super::sweep;
use super::{assess, fits, tables};
use crate::address::Engine;
use crate::end::{Ends, FenceMeans};
use crate::facts::Facts;
use crate::verify::{Arrival, Options, Pair, Progress as Seen, Table, compare};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rehome_part::{
    Assessment, Capabilities, CopySummary, Drained, Error, ErrorKind, Fence, Finding, Flow, FollowReport,
    Follows, Marker, Part, Position, Progress, Result, Scope, Seal, Severity, Side, Verification,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Changes are counted for so long when a database is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// Between two looks for beat and marker while writes wait; with so many under way, enough for a quarter of a second.
const DRAIN_LOOK: Duration = Duration::from_millis(3);
const LOOKS_AT_ONCE: usize = 32;
/// For a change to arrive, while a comparison waits.
const ARRIVAL: Duration = Duration::from_secs(30);
/// Sessions that a switch wants on each side.
const WARM: usize = 4;

/// The part of one `[[databases]]` table.
#[derive(Debug)]
pub struct PostgresPart {
    name: String,
    pub(super) sessions: Sessions,
    pub(super) names: Names,
    pub(super) facts: Facts,
    pub(super) fence: FenceMeans,
    pub(super) probes: Probes,
    pub(super) tables: Tables,
    folder: PathBuf,
    tools: Option<PathBuf>,
}

impl PostgresPart {
    /// A part whose memory is in `folder`.
    ///
    /// # Errors
    /// An end is no PostgreSQL, or what the part remembers cannot be read.
    pub fn new(name: &str, ends: Ends, fence: FenceMeans, folder: &Path) -> Result<Self> {
        for side in [Side::Source, Side::Target] {
            if ends.of(side).address.engine != Engine::Postgres {
                let text = format!("{} is no PostgreSQL", ends.of(side).address);
                return Err(Error::permanent(ErrorKind::Unsupported, text).on(side));
            }
        }
        Ok(Self {
            names: Names::new(name, &ends),
            facts: Facts::open(folder.join(format!("postgres-{name}.json")))?,
            name: name.to_owned(),
            sessions: Sessions::new(ends),
            fence,
            probes: Probes::default(),
            tables: Tables::default(),
            folder: folder.to_owned(),
            tools: None,
        })
    }

    /// The folder of `pg_dump` and `pg_restore`, where they are not to be looked for.
    #[must_use]
    pub fn with_tools(mut self, folder: PathBuf) -> Self {
        self.tools = Some(folder);
        self
    }

    pub(super) fn stream(&self, flow: Flow) -> Stream<'_> {
        Stream { sessions: &self.sessions, names: &self.names, flow }
    }

    pub(super) fn schema(&self) -> Schema<'_> {
        Schema {
            sessions: &self.sessions,
            facts: &self.facts,
            tools: self.tools.as_deref(),
            folder: &self.folder,
        }
    }

    async fn guard(&self, side: Side) -> Result<()> {
        let session = self.sessions.on(side).await?;
        own::make(&session).await?;
        own::name_rows(&session, &self.facts).await?;
        own::guard_tables(&session).await?;
        own::publish(&session, &self.names).await.map(drop)
    }

    async fn clean(&self, side: Side) -> Result<()> {
        let session = match self.sessions.on(side).await {
            Ok(session) => session,
            Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        own::unname_rows(&session, &self.facts).await?;
        own::remove(&session, &self.names).await
    }

    async fn remove_streams(&self) -> Result<()> {
        for flow in [Flow::Forward, Flow::Reverse] {
            let stream = self.stream(flow);
            match stream.unsubscribe().await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                ended => ended?,
            }
            match stream.drop_slot().await {
                Err(error) if error.kind == ErrorKind::NotFound => {}
                ended => ended?,
            }
        }
        Ok(())
    }

    fn seal_fact(flow: Flow) -> String {
        format!("seal:{}", own::word(flow))
    }

    fn pair(&self) -> Pair {
        let end = |side| {
            let end = self.sessions.end(side);
            (end.address.clone(), end.password.clone())
        };
        Pair { source: end(Side::Source), target: end(Side::Target) }
    }

    async fn verify_fully(
        &self,
        flow: Flow,
        progress: &dyn Progress,
        stop: CancellationToken,
    ) -> Result<Verification> {
        let options = Options { most_named: 100, jobs: 2, ..Options::default() };
        let arrival = Beaten { part: self, flow };
        let pair = self.pair();
        let seen = Arc::<Seen>::default();
        let comparing =
            compare::<Session>(&pair, &options, &self.folder, Arc::clone(&seen), stop, Some(&arrival));
        let telling = async {
            loop {
                let (rows, expected) = seen.rows();
                progress.update(rows, 0, Some(expected), None);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let compared = tokio::select! {
            compared = Box::pin(comparing) => compared?,
            () = telling => return Err(Error::cancelled()),
        };
        Ok(recent::summed(&compared))
    }
}

#[async_trait]
impl Part for PostgresPart {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "postgres"
    }

    fn capabilities(&self) -> Capabilities {
        let has_logins = |side| !self.sessions.end(side).applications.is_empty();
        Capabilities {
            follows: Follows::Feed,
            can_fence: self.fence != FenceMeans::None,
            can_probe: has_logins(Side::Source) && has_logins(Side::Target),
            can_reverse: true,
        }
    }

    async fn assess(&self) -> Result<Assessment> {
        let source = self.sessions.on(Side::Source).await?;
        let assessed = assess(&source, WATCH).await?;
        let mut findings = assessed.findings.clone();
        let target = match self.sessions.on(Side::Target).await {
            Ok(target) => {
                // What we made ourselves, or copied, is not in the way.
                let is_ours = self.stream(Flow::Forward).state(&target).await?.is_some();
                let found = fits(&assessed, &target).await?;
                let by_us =
                    |found: &Finding| matches!(&*found.id, "target-not-empty" | "replication-origins");
                findings.extend(found.into_iter().filter(|found| !(is_ours && by_us(found))));
                Some(target)
            }
            Err(error) if error.kind == ErrorKind::NotFound => {
                findings.push(Finding {
                    id: "target-made".into(),
                    severity: Severity::Info,
                    side: Some(Side::Target),
                    text: format!("{} is not there yet; it is made", self.sessions.end(Side::Target).address),
                    remedy: None,
                });
                None
            }
            Err(error) => return Err(error),
        };
        let mut print = blake3::Hasher::new();
        print.update(format!("{} {}", assessed.version, self.names.publication).as_bytes());
        print.update(format!("{:?}", definitions(&source).await?).as_bytes());
        if let Some(target) = &target {
            print.update(super::schema::major(target).await?.to_string().as_bytes());
        }
        drop((source, target));
        let (rows, _) = copy::count(self, Side::Source).await?;
        Ok(Assessment {
            objects: rows,
            bytes: assessed.bytes,
            changes_per_second: assessed.watched.map(|watched| watched.rows_per_second),
            compressed_ratio: None,
            copy_seconds: assessed.read_seconds,
            findings,
            fingerprint: print.finalize().to_hex().to_string(),
        })
    }

    async fn prepare(&self) -> Result<()> {
        let schema = self.schema();
        schema.make_database().await?;
        schema.make_roles().await?;
        schema.make_tables().await?;
        self.guard(Side::Source).await?;
        self.guard(Side::Target).await
    }

    async fn unprepare(&self) -> Result<()> {
        self.remove_streams().await?;
        for side in [Side::Source, Side::Target] {
            self.clean(side).await?;
        }
        self.schema().take_back().await?;
        self.facts.forget(COPIED)
    }

    async fn copy(
        &self,
        flow: Flow,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<CopySummary> {
        if flow == Flow::Reverse {
            return Err(Error::permanent(ErrorKind::Unsupported, "a database is copied forward only"));
        }
        copy::copy(self, progress.as_ref(), &stop).await
    }

    async fn follow(&self, flow: Flow, report: FollowReport, stop: CancellationToken) -> Result<()> {
        follow::follow(self, flow, &report, &stop).await
    }

    async fn warm(&self, flow: Flow) -> Result<()> {
        let sides = [flow.from(), flow.to()];
        for side in sides {
            self.sessions.keep(side, WARM).await?;
            fence::warm(self, side).await?;
        }
        self.tables.read(self).await?;
        // The way back is proved to be there: its subscription is made now, switched off, and its slot.
        let back = self.stream(flow.back());
        back.make_slot().await?;
        back.subscribe(Begin::AtSlot).await
    }

    async fn head(&self, flow: Flow) -> Result<Position> {
        let from = self.sessions.on(flow.from()).await?;
        Ok(beat::end_of_log(&from).await?.position())
    }

    fn covers(&self, applied: &Position, wanted: &Position) -> bool {
        match (Lsn::of(applied), Lsn::of(wanted)) {
            (Ok(applied), Ok(wanted)) => applied >= wanted,
            _ => false,
        }
    }

    async fn fence(&self, side: Side) -> Result<()> {
        fence::close(self, side).await
    }

    async fn unfence(&self, side: Side) -> Result<()> {
        fence::open(self, side).await
    }

    async fn probe(&self, side: Side) -> Result<Fence> {
        fence::probe(self, side).await
    }

    async fn mark(&self, flow: Flow, marker: &Marker) -> Result<()> {
        let from = self.sessions.on(flow.from()).await?;
        beat::mark(&from, flow, marker).await
    }

    async fn drain(
        &self,
        flow: Flow,
        fence: &Position,
        marker: &Marker,
        stop: CancellationToken,
    ) -> Result<Drained> {
        let wanted = Lsn::of(fence)?;
        let (from, to) = tokio::try_join!(self.sessions.on(flow.from()), self.sessions.on(flow.to()))?;
        // A beat of our own, behind the fence; whoever follows beats more slowly.
        let beating = beat::write(&from, flow);
        let watching = async {
            let (began, mut looks, mut first) = (Instant::now(), FuturesUnordered::new(), None);
            let mut due = began;
            loop {
                // A look is not waited for before the next one begins: one that came too early would cost a round trip.
                if Instant::now() >= due && looks.len() < LOOKS_AT_ONCE {
                    looks.push(beat::read(&to, flow, self.names.stream(flow), Some(marker)));
                    due = Instant::now() + DRAIN_LOOK.max(began.elapsed() / 8);
                }
                tokio::select! {
                    Some(arrived) = looks.next(), if !looks.is_empty() => {
                        let arrived = arrived?;
                        first = first.or(arrived.place);
                        if let Some(place) = arrived.place.filter(|place| arrived.is_marked && *place >= wanted) {
                            return Ok::<_, Error>((place, first.unwrap_or(place)));
                        }
                    }
                    () = tokio::time::sleep_until(due), if looks.len() < LOOKS_AT_ONCE => {}
                }
            }
        };
        let drained = async { tokio::try_join!(beating, watching) };
        let (_, (place, first)) = tokio::select! {
            drained = drained => drained?,
            () = stop.cancelled() => return Err(Error::cancelled()),
        };
        let changes = place.since(first);
        Ok(Drained { applied: place.position(), marker_seen: true, changes })
    }

    async fn verify(
        &self,
        flow: Flow,
        scope: Scope,
        progress: Arc<dyn Progress>,
        stop: CancellationToken,
    ) -> Result<Verification> {
        match scope {
            Scope::Full => self.verify_fully(flow, progress.as_ref(), stop).await,
            Scope::Since(_) => recent::compare(self, flow, &stop).await,
        }
    }

    async fn seal(&self, flow: Flow) -> Result<Seal> {
        let fact = Self::seal_fact(flow);
        if let Some(sealed) = self.facts.get(&fact) {
            return Ok(Seal { reverse_start: Position(sealed) });
        }
        let (stream, back) = (self.stream(flow), self.stream(flow.back()));
        let (start, ()) = tokio::try_join!(back.slot_from_now(&stream), sequences::set(self, flow))?;
        // The seal of the switch before this one is history.
        self.facts.forget(&Self::seal_fact(flow.back()))?;
        self.facts.set(&fact, &start.to_string())?;
        Ok(Seal { reverse_start: start.position() })
    }

    async fn unseal(&self, flow: Flow) -> Result<()> {
        // Not only after a seal: what was made for the way back before it keeps the log of the other side, too.
        let back = self.stream(flow.back());
        back.unsubscribe().await?;
        back.drop_slot().await?;
        self.facts.forget(&Self::seal_fact(flow))
    }

    async fn sweep(&self, flow: Flow, since: &Position) -> Result<Vec<Finding>> {
        sweep::sweep(self, flow, Lsn::of(since)?).await
    }

    async fn retire(&self, owner: Side) -> Result<()> {
        self.remove_streams().await?;
        for side in [Side::Source, Side::Target] {
            let session = self.sessions.on(side).await?;
            own::unname_rows(&session, &self.facts).await?;
            if side == owner {
                own::remove(&session, &self.names).await?;
            } else {
                own::leave_fence(&session, &self.names).await?;
            }
        }
        for flow in [Flow::Forward, Flow::Reverse] {
            self.facts.forget(&Self::seal_fact(flow))?;
        }
        let _gone = std::fs::remove_file(self.folder.join("schema.dump"));
        Ok(())
    }
}

/// What the tables of a database are, whatever is in them.
async fn definitions(session: &Session) -> Result<Vec<(String, Vec<(String, String)>)>> {
    let all = tables::read(session).await?;
    let columns = |table: &Table| {
        table.columns.iter().map(|column| (column.name.clone(), column.kind.clone())).collect()
    };
    Ok(all.iter().map(|table| (table.shown(), columns(table))).collect())
}

/// Everything under way has arrived when a beat has.
#[derive(Debug)]
struct Beaten<'a> {
    part: &'a PostgresPart,
    flow: Flow,
}

#[async_trait]
impl Arrival for Beaten<'_> {
    async fn wait(&self) -> Result<()> {
        settle(self.part, self.flow, ARRIVAL).await
    }
}

/// Until a beat from now is seen on the taking side, for so long at most, or nobody is there to bring it.
pub(super) async fn settle(part: &PostgresPart, flow: Flow, patience: Duration) -> Result<()> {
    let (from, to) = tokio::try_join!(part.sessions.on(flow.from()), part.sessions.on(flow.to()))?;
    let sent = beat::write(&from, flow).await?;
    let until = Instant::now() + patience;
    while Instant::now() < until {
        let arrived = beat::read(&to, flow, part.names.stream(flow), None).await?;
        if arrived.place.is_some_and(|place| place >= sent) || !arrived.is_on {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
