//! Keeps the replication of one flow going and the other's away, and measures it by heartbeats of its own: how late the newest one is
//! that has not arrived yet, by this machine's clock alone.

use super::connect::{Session, Sessions};
use super::gtid::{Gtids, since};
use super::{channel, own};
use crate::end::End;
use crate::facts::Facts;
use rehome_part::{Error, ErrorKind, Flow, FollowReport, FollowState, Position, Result};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BEAT: Duration = Duration::from_millis(250);
const LOOK: Duration = Duration::from_millis(25);
/// How often it is seen to that the server still does what it was told.
const CHECK: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(500);
/// Without an answer for so long a server is taken for gone.
const ANSWER: Duration = Duration::from_secs(10);

/// From where a flow is to begin, until it does.
pub(super) fn start_fact(flow: Flow) -> String {
    format!("start:{}", own::word(flow))
}

/// The flow whose replication is set up.
pub(super) const INSTALLED: &str = "installed";

/// One flow.
pub(super) struct Follower<'a> {
    pub part: &'a str,
    pub schema: &'a str,
    pub flow: Flow,
    pub from: &'a Sessions,
    pub from_end: &'a End,
    pub to: &'a Sessions,
    pub facts: &'a Facts,
}

/// Heartbeats that were written and have not been seen to arrive, and the owner's position when the last was.
#[derive(Debug, Default)]
struct Beats {
    under_way: VecDeque<(u64, Instant)>,
    head: Option<Position>,
    written: Option<Instant>,
}

impl Follower<'_> {
    pub async fn run(&self, report: &FollowReport, stop: &CancellationToken) -> Result<()> {
        loop {
            let ended = tokio::select! {
                ended = self.hold(report) => ended,
                () = stop.cancelled() => return self.end().await,
            };
            report.send_modify(|state| {
                state.lag_seconds = None;
                state.drain_seconds = None;
                state.backlog = None;
            });
            match ended {
                Err(error) if error.is_temporary() => {
                    tracing::debug!(part = self.part, %error, "replication is looked at again");
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => return self.end().await,
            }
        }
    }

    async fn end(&self) -> Result<()> {
        let stopping = async { channel::stop(&mut self.to.take().await?).await };
        match answered(stopping).await {
            // A server that is gone applies nothing; what it does when it comes back is for the next follower.
            Err(error) if error.is_temporary() => {
                tracing::warn!(part = self.part, %error, "replication could not be stopped");
                Ok(())
            }
            done => done,
        }
    }

    /// Until something goes wrong.
    async fn hold(&self, report: &FollowReport) -> Result<()> {
        answered(self.install()).await?;
        let beats = Mutex::new(Beats::default());
        tokio::try_join!(self.beat(&beats), self.look(&beats, report)).map(drop)
    }

    /// The other flow's replication goes, ours is set up where it is not, and runs.
    async fn install(&self) -> Result<()> {
        channel::remove(&mut self.from.take().await?).await?;
        let mut to = self.to.take().await?;
        let (now, others) = channel::status(&mut to).await?;
        if !others.is_empty() {
            let text = format!("this server already receives from {} other(s)", others.len());
            let error = Error::permanent(ErrorKind::Unsupported, text).on(self.to.side);
            return Err(error.hint("stop that replication first: they would share one position"));
        }
        let start = self.facts.get(&start_fact(self.flow));
        let at = self.from_end.as_seen_by_other();
        let is_ours = now.as_ref().is_some_and(|now| now.host == at.host && now.port == at.port.to_string());
        let is_installed = self.facts.get(INSTALLED).as_deref() == Some(own::word(self.flow));
        if start.is_some() || !is_ours || !is_installed {
            // Where it was set up before, the server itself knows how far it is.
            let position = match (start, is_installed) {
                (Some(start), _) => Position(start),
                (None, true) => channel::applied(&mut to).await?,
                (None, false) => {
                    let text = "nothing is copied yet, so there is nothing to go on from";
                    return Err(Error::permanent(ErrorKind::NotFound, text).on(self.to.side));
                }
            };
            let password = own::new_replica_password(&mut self.from.take().await?).await?;
            channel::install(&mut to, at, &password, &position).await?;
            self.facts.set(INSTALLED, own::word(self.flow))?;
            // Not before it is set up, and before it runs: from here on the server's own position counts.
            self.facts.forget(&start_fact(self.flow))?;
        }
        self.keep_running(&mut to).await
    }

    async fn keep_running(&self, to: &mut Session) -> Result<()> {
        channel::filter(to, self.schema).await?;
        let (Some(now), _) = channel::status(to).await? else {
            return Err(
                Error::temporary(ErrorKind::Other, "somebody removed the replication").on(self.to.side)
            );
        };
        if let Some(error) = now.is_lost() {
            return Err(error.on(self.to.side));
        }
        if now.receives == "No" || !now.applies {
            channel::start(to).await?;
        }
        Ok(())
    }

    /// Writes heartbeats.
    async fn beat(&self, beats: &Mutex<Beats>) -> Result<()> {
        let mut session = self.from.take().await?;
        let mut every = tokio::time::interval(BEAT);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            // Grows from one follower to the next, too.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let beat = u64::try_from(now.as_millis()).unwrap_or_default();
            let begun = Instant::now();
            answered(own::beat(&mut session, self.part, self.flow, beat)).await?;
            let head = answered(channel::head(&mut session)).await?;
            let mut beats = beats.lock().expect("no code panics while it holds this lock");
            beats.under_way.push_back((beat, begun));
            beats.head = Some(head);
            beats.written = Some(begun);
        }
    }

    /// Looks at what has arrived.
    async fn look(&self, beats: &Mutex<Beats>, report: &FollowReport) -> Result<()> {
        let mut session = self.to.take().await?;
        let mut checker = self.to.take().await?;
        let mut checked = Instant::now();
        let mut is_well = answered(channel::status(&mut checker)).await?.0.is_some_and(|now| now.is_well());
        let mut rate = Rate::default();
        let statement = "SELECT @@GLOBAL.gtid_slave_pos,
            COALESCE((SELECT beat FROM rehome.heartbeat WHERE part = ? AND flow = ?), 0)";
        loop {
            let asked = session.row("look for heartbeats", statement, (self.part, own::word(self.flow)));
            let (applied, seen): (String, u64) = match answered(asked).await {
                // The other side's copy of our schema is not there yet.
                Err(error) if error.kind == ErrorKind::NotFound => {
                    (channel::applied(&mut checker).await?.0, 0)
                }
                answer => answer?,
            };
            if checked.elapsed() >= CHECK || !is_well {
                answered(self.keep_running(&mut checker)).await?;
                is_well = answered(channel::status(&mut checker)).await?.0.is_some_and(|now| now.is_well());
                checked = Instant::now();
            }
            let (lag, head) = {
                let mut beats = beats.lock().expect("no code panics while it holds this lock");
                beats.under_way.retain(|(beat, _)| *beat > seen);
                let late = beats.under_way.front().map_or(0.0, |(_, at)| at.elapsed().as_secs_f64());
                // A heart that stopped tells nothing.
                let is_beating = beats.written.is_some_and(|at| at.elapsed() < BEAT * 8);
                ((is_well && is_beating).then_some(late), beats.head.clone())
            };
            let applied = Position(applied);
            rate.note(&applied);
            let backlog = head.map(|head| since(&head, Some(&applied)));
            report.send_modify(|state| rate.tell(state, applied, backlog, lag));
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Changes applied over time.
#[derive(Debug, Default)]
struct Rate {
    first: Option<Position>,
    last: Option<(Position, Instant)>,
    per_second: Option<f64>,
    applied: u64,
}

impl Rate {
    fn note(&mut self, applied: &Position) {
        let now = Instant::now();
        self.first.get_or_insert_with(|| applied.clone());
        let Some((before, at)) = self.last.as_ref() else {
            self.last = Some((applied.clone(), now));
            return;
        };
        let seconds = (now - *at).as_secs_f64();
        if seconds < 0.5 {
            return;
        }
        let changes = since(applied, Some(before));
        self.per_second = (changes > 0).then_some(changes as f64 / seconds).or(self.per_second);
        self.last = Some((applied.clone(), now));
        self.applied = since(applied, self.first.as_ref());
    }

    fn tell(&self, state: &mut FollowState, applied: Position, backlog: Option<u64>, lag: Option<f64>) {
        let is_back = Gtids::parse(&applied.0)
            .zip(state.applied.as_ref().and_then(|known| Gtids::parse(&known.0)))
            .is_some_and(|(now, known)| !now.covers(&known));
        if !is_back {
            state.applied = Some(applied);
        }
        state.backlog = lag.and(backlog);
        state.lag_seconds = lag;
        state.apply_per_second = self.per_second;
        state.drain_seconds = lag.map(|lag| match (backlog, self.per_second) {
            (Some(backlog), Some(rate)) if rate > 0.0 => (backlog as f64 / rate).min(lag.max(0.001) * 4.0),
            _ => lag,
        });
        state.changes_applied = self.applied;
    }
}

/// A server that does not answer is temporary trouble, not a reason to wait for ever.
async fn answered<T>(asking: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ANSWER, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::temporary(ErrorKind::Network, "a server does not answer")),
    }
}
