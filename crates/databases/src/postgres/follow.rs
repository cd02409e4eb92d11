//! Following one flow: sees that its subscription is on and the other's is gone, beats, and says how far the taking side is by beats that
//! it saw there itself. Tables that came or changed meanwhile are taken up, or named.

use super::beat;
use super::lsn::Lsn;
use super::own;
use super::part::PostgresPart;
use super::schema::unlike;
use super::stream::{Begin, Stream};
use super::sweep;
use rehome_part::meter::Meter;
use rehome_part::{Error, ErrorKind, Flow, FollowReport, FollowState, Result, Side};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Between two beats.
const BEAT: Duration = Duration::from_millis(250);
/// The first look for a beat comes so soon; each later one after half as long again.
const LOOK: Duration = Duration::from_millis(2);
const LONGEST_LOOK: Duration = Duration::from_millis(50);
/// Between two comparisons of the tables of both sides.
const COMPARE: Duration = Duration::from_secs(15);
/// Between two counts of changed rows.
const COUNT: Duration = Duration::from_secs(1);
/// After a failure that may pass.
const PAUSE: Duration = Duration::from_millis(500);
/// A server that does not answer a small question in this time does not answer; how far it is, is not known any more.
const SILENCE: Duration = Duration::from_secs(5);
/// The same for what reads whole catalogs.
const LONG_SILENCE: Duration = Duration::from_secs(30);
/// Trouble that lasts so long is told to people.
const TOLD: Duration = Duration::from_secs(10);
/// Beats on their way that are remembered; beyond that only the oldest counts.
const REMEMBERED: usize = 4096;

pub(super) async fn follow(
    part: &PostgresPart,
    flow: Flow,
    report: &FollowReport,
    stop: &CancellationToken,
) -> Result<()> {
    let mut follower = Follower {
        part,
        stream: part.stream(flow),
        flow,
        report,
        sent: VecDeque::new(),
        meter: Meter::default(),
        seen: None,
        bytes: 0,
        rows: Counted::default(),
    };
    let mut well = Instant::now();
    loop {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            ended = follower.run() => ended,
        };
        // What was known is not known any more.
        report.send_replace(FollowState::default());
        let Err(error) = ended else { continue };
        well = follower.seen.map_or(well, |(_, seen)| well.max(seen));
        if !error.is_temporary() || well.elapsed() > TOLD {
            return Err(error);
        }
        tracing::warn!(%error, flow = %flow, "following was interrupted");
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    // The server's own worker goes on: nothing piles up while nobody looks. It is switched off by the seal of a switch.
    Ok(())
}

/// Without a limit a network that swallows everything would leave the last good figures standing.
async fn answered<T>(side: Side, within: Duration, asking: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(within, asking).await.unwrap_or_else(|_| {
        let text = format!("the {side}'s server does not answer; nothing came within {} s", within.as_secs());
        let hint = "see that it runs and that the network to it is whole; following goes on by itself";
        Err(Error::temporary(ErrorKind::Network, text).on(side).hint(hint))
    })
}

struct Follower<'a> {
    part: &'a PostgresPart,
    stream: Stream<'a>,
    flow: Flow,
    report: &'a FollowReport,
    /// Beats on their way, the oldest first.
    sent: VecDeque<(Lsn, Instant)>,
    meter: Meter,
    /// The newest place that was seen on the taking side, and when.
    seen: Option<(Lsn, Instant)>,
    /// Bytes of the log that were applied since this began, and changed rows.
    bytes: u64,
    rows: Counted,
}

/// Changed rows as the taking server counts them: at the beginning, and now.
#[derive(Debug, Default)]
struct Counted {
    first: Option<u64>,
    now: u64,
    at: Option<Instant>,
}

impl Follower<'_> {
    async fn run(&mut self) -> Result<()> {
        self.begin().await?;
        let (mut compare_at, mut woken) = (Instant::now(), Instant::now());
        loop {
            if Instant::now() >= compare_at {
                self.compare().await?;
                compare_at = Instant::now() + COMPARE;
            }
            let round = Instant::now();
            let (from, to) = (self.flow.from(), self.flow.to());
            answered(from, SILENCE, self.beat()).await?;
            answered(to, SILENCE, self.look(round + BEAT)).await?;
            answered(from, SILENCE, self.find_slot()).await?;
            answered(to, SILENCE, self.count_rows()).await?;
            if self.sent.front().is_some_and(|(_, sent)| sent.elapsed() > SILENCE)
                && woken.elapsed() > SILENCE
            {
                answered(from, SILENCE, self.stream.wake(SILENCE)).await?;
                woken = Instant::now();
            }
            tokio::time::sleep_until(round + BEAT).await;
        }
    }

    /// The other flow's subscription goes before this one's is switched on: two would send each other's rows round and round.
    async fn begin(&mut self) -> Result<()> {
        self.sent.clear();
        self.seen = None;
        let back = self.part.stream(self.flow.back());
        answered(self.flow.from(), LONG_SILENCE, back.unsubscribe()).await?;
        sweep::forget(self.part, self.flow)?;
        let state = answered(self.flow.to(), SILENCE, async {
            let to = self.part.sessions.on(self.flow.to()).await?;
            self.stream.state(&to).await
        });
        let state = state.await?;
        let (is_there, is_on) = (state.is_some(), state == Some(true));
        if !is_there {
            self.find_slot().await?;
            self.stream.subscribe(Begin::AtSlot).await?;
        }
        if !is_on {
            self.stream.enable().await?;
        }
        Ok(())
    }

    async fn find_slot(&self) -> Result<()> {
        let from = self.part.sessions.on(self.flow.from()).await?;
        match self.stream.slot(&from).await? {
            Some(slot) if !slot.is_lost => Ok(()),
            _ => Err(self.slot_is_gone()),
        }
    }

    fn slot_is_gone(&self) -> Error {
        let text = format!(
            "the replication slot {} is gone: what was written meanwhile cannot be followed",
            self.part.names.stream(self.flow)
        );
        let hint = match self.flow {
            Flow::Forward => {
                "begin the copy anew: rehome cancel, empty the target, rehome apply; see max_slot_wal_keep_size"
            }
            Flow::Reverse => {
                "there is no way back for the data any more; see max_slot_wal_keep_size on the new owner"
            }
        };
        Error::permanent(ErrorKind::NotFound, text).on(self.flow.from()).hint(hint)
    }

    /// Only for people to see; far from every round.
    async fn count_rows(&mut self) -> Result<()> {
        if self.rows.at.is_some_and(|at| at.elapsed() < COUNT) {
            return Ok(());
        }
        let to = self.part.sessions.on(self.flow.to()).await?;
        let statement =
            "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::int8 FROM pg_stat_user_tables
                         WHERE schemaname <> 'rehome'";
        let row = to.row("count changed rows", statement, &[]).await?;
        self.rows.now = row.get::<_, i64>(0).unsigned_abs();
        self.rows.first.get_or_insert(self.rows.now);
        self.rows.at = Some(Instant::now());
        Ok(())
    }

    /// Tables that were made since are taken up; what is not alike is said, and until it is, how far the other side is, is not known.
    async fn compare(&self) -> Result<()> {
        let schema = self.part.schema();
        let differences = answered(self.flow.to(), LONG_SILENCE, schema.compare()).await?;
        if let Some(first) = differences.first() {
            return Err(unlike(first, differences.len()));
        }
        for side in [self.flow.from(), self.flow.to()] {
            let naming = async {
                let session = self.part.sessions.on(side).await?;
                own::name_rows(&session, &self.part.facts).await
            };
            answered(side, LONG_SILENCE, naming).await?;
        }
        let publishing = async {
            let from = self.part.sessions.on(self.flow.from()).await?;
            own::publish(&from, &self.part.names).await
        };
        if answered(self.flow.from(), LONG_SILENCE, publishing).await? {
            self.stream.take_up_new_tables().await?;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<()> {
        let from = self.part.sessions.on(self.flow.from()).await?;
        let sent = Instant::now();
        let place = beat::write(&from, self.flow).await?;
        if self.sent.len() < REMEMBERED {
            self.sent.push_back((place, sent));
        }
        Ok(())
    }

    /// Looks for the newest beat until it is seen, or until the next is due.
    async fn look(&mut self, until: Instant) -> Result<()> {
        let to = self.part.sessions.on(self.flow.to()).await?;
        let mut pause = LOOK;
        loop {
            let arrived = beat::read(&to, self.flow, self.part.names.stream(self.flow), None).await?;
            if let Some(place) = arrived.place {
                self.note(place);
            }
            self.tell(arrived.copying == 0 && (arrived.is_applied || self.sent.is_empty()));
            if self.sent.is_empty() || Instant::now() + pause > until {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LONGEST_LOOK);
        }
    }

    /// Everything up to `place` is there.
    fn note(&mut self, place: Lsn) {
        let now = Instant::now();
        let mut last = None;
        while let Some((sent, at)) = self.sent.front().copied().filter(|(sent, _)| *sent <= place) {
            last = Some((sent, at));
            self.sent.pop_front();
        }
        let Some((_, at)) = last else { return };
        if let Some((before, when)) = self.seen {
            // A rate only means something while there was more than could be done at once.
            let busy = if self.sent.is_empty() { now - at.max(when) } else { now - when };
            self.meter.add(busy, place.since(before));
            self.bytes += place.since(before);
        }
        if self.sent.is_empty() {
            self.meter.one(now - at);
        }
        self.seen = Some((place, now));
    }

    fn tell(&self, is_running: bool) {
        let known = self.seen.filter(|_| is_running);
        let newest = self.sent.back().map(|(place, _)| *place);
        let oldest = self.sent.front().map(|(_, at)| at.elapsed().as_secs_f64());
        let Some((applied, _)) = known else {
            self.report.send_replace(FollowState::default());
            return;
        };
        let backlog = newest.map_or(0, |place| place.since(applied));
        self.report.send_replace(FollowState {
            applied: Some(applied.position()),
            backlog: Some(backlog),
            lag_seconds: Some(oldest.unwrap_or_default()),
            apply_per_second: self.meter.per_second(),
            drain_seconds: self.meter.drain_seconds(backlog),
            changes_applied: self.rows.now.saturating_sub(self.rows.first.unwrap_or(self.rows.now)),
            bytes_applied: self.bytes,
        });
    }
}
