//! Following a change feed. One loop owns the order of changes; tasks carry keys. The applied position is written down
//! together with what was applied before it, and only moves when everything before it is done.

use super::audit::Audit;
use super::feed::{Feed, PAGE_CHANGES, Page};
use super::window::{Slot, Window};
use super::{Place, REPORT_EVERY, Trouble, carry_at_last, may_pass};
use crate::listing::is_reserved;
use crate::mover::state::wall_millis;
use crate::mover::{Carried, Mover};
use futures::future::BoxFuture;
use rehome_part::meter::Meter;
use rehome_part::{Error, ErrorKind, Flow, FollowReport, FollowState, Result};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Changes received and not applied, at most; then the feed waits.
const CHANGES_AHEAD: usize = 10_000;
/// Keys of an audit waiting beside them.
const ASKED_AHEAD: usize = 1_024;
/// A feed that answers at once although nothing is new is asked again after this long.
const POLL_REST: Duration = Duration::from_millis(50);
/// A question that is not answered this long after it should have been: what we know is old.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);

struct Answer {
    page: Result<Option<Page>>,
    took: Duration,
}

struct Running {
    audit: Audit,
    /// Held until the audit and what it asked for are done.
    slot: Option<Slot>,
    /// All keys were listed.
    is_listed: bool,
}

/// A follower of one flow. See the module.
pub(crate) struct ByFeed<'a> {
    mover: &'a Arc<Mover>,
    flow: Flow,
    feed: Arc<dyn Feed>,
    report: &'a FollowReport,
    stop: &'a CancellationToken,
    /// The note is the moment from which a change may have waited.
    window: Window<Instant>,
    tasks: JoinSet<(String, Duration, Result<Carried>)>,
    /// The newest position asked for, and the newest there is.
    received: u64,
    head: u64,
    /// When we last had everything, as far as we know.
    current: Instant,
    /// The feed was asked, and when.
    question: Option<(BoxFuture<'static, Answer>, Instant)>,
    failures: u32,
    quickest_answer: Duration,
    trouble: Trouble,
    audit: Option<Running>,
    next_audit: Instant,
    meter: Meter,
    measured: Instant,
    applied_since: u64,
    /// What was written down as applied; `None` before the audit of a follower without a start has ended.
    written: Option<u64>,
    has_start: bool,
    beaten: Option<Instant>,
    state: FollowState,
    sabotage: Option<Sabotage>,
}

/// The test instrument `drop-delta`: forgets the changes of the first key it sees and of about one in a hundred others.
struct Sabotage {
    first: Option<String>,
    hasher: RandomState,
}

impl Sabotage {
    fn drops(&mut self, key: &str) -> bool {
        !is_reserved(key)
            && (self.first.get_or_insert_with(|| key.to_owned()) == key
                || self.hasher.hash_one(key).is_multiple_of(100))
    }
}

impl<'a> ByFeed<'a> {
    /// Begins where the last follower of this flow stopped; without any start, at the feed's head with an audit before it.
    pub async fn new(
        mover: &'a Arc<Mover>,
        flow: Flow,
        feed: Arc<dyn Feed>,
        report: &'a FollowReport,
        stop: &'a CancellationToken,
    ) -> Result<Self> {
        let stored = mover.state.applied(flow)?;
        let start = stored.as_ref().and_then(|applied| match Place::parse(&applied.position) {
            Some(Place::Feed(number)) => Some(number),
            _ => None,
        });
        let now = Instant::now();
        let age =
            stored.as_ref().map_or(0, |applied| wall_millis().saturating_sub(applied.current_at)).max(0);
        let age = Duration::from_millis(age.unsigned_abs());
        let drops = mover.settings.sabotage.iter().any(|name| name == "drop-delta");
        let mut this = Self {
            mover,
            flow,
            feed,
            report,
            stop,
            window: Window::new(start.unwrap_or(0)),
            tasks: JoinSet::new(),
            received: start.unwrap_or(0),
            head: start.unwrap_or(0),
            current: now.checked_sub(age).unwrap_or(now),
            question: None,
            failures: 0,
            quickest_answer: Duration::MAX,
            trouble: Trouble::default(),
            audit: None,
            next_audit: now + mover.settings.relist_every,
            meter: Meter::default(),
            measured: now,
            applied_since: 0,
            written: start,
            has_start: start.is_some(),
            beaten: None,
            state: FollowState {
                applied: start.map(|n| Place::Feed(n).position()),
                ..FollowState::default()
            },
            sabotage: drops.then(|| Sabotage { first: None, hasher: RandomState::new() }),
        };
        this.measure_distance().await;
        if start.is_none() {
            this.start_over().await?;
        }
        Ok(this)
    }

    /// One look at each side: what a single change costs at least, before any was applied.
    async fn measure_distance(&mut self) {
        let begun = Instant::now();
        for side in [self.flow.from(), self.flow.to()] {
            if self.mover.store(side).head(".rehome/distance").await.is_err() {
                return;
            }
        }
        self.meter.one(begun.elapsed());
    }

    /// Follows until `stop` fires; what is under way then is finished.
    pub async fn run(mut self) -> Result<()> {
        let ended = self.work().await;
        // Not torn off: a write that lands after we said "stopped" could undo a later one.
        while let Some(done) = self.tasks.join_next().await {
            if let Ok((key, took, Ok(carried))) = done {
                self.carried(&key, took, carried);
            }
        }
        self.advance()?;
        self.mover.state.settle()?;
        self.tell()?;
        self.mover.state.end_beat(self.flow)?;
        if self.stop.is_cancelled() { Ok(()) } else { ended }
    }

    async fn work(&mut self) -> Result<()> {
        let mut tick = tokio::time::interval(REPORT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.start_tasks();
            self.ask_feed();
            let audit_room = self.window.asked() < ASKED_AHEAD;
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    self.task_ended(done)?;
                    // One position for all that ended meanwhile.
                    while let Some(done) = self.tasks.try_join_next() {
                        self.task_ended(done)?;
                    }
                }
                answer = answered(&mut self.question), if self.question.is_some() => self.take_answer(answer).await?,
                key = next_key(&mut self.audit), if audit_room && listing(&self.audit) => self.audited(key).await?,
                _ = tick.tick() => self.tick().await?,
            }
            self.end_audit();
            if self.advance()? {
                self.tell()?;
            }
        }
    }

    async fn tick(&mut self) -> Result<()> {
        if self.audit.is_none() && Instant::now() >= self.next_audit {
            tracing::info!(flow = %self.flow, "listing both sides as an audit");
            self.audit =
                Some(Running { audit: Audit::begin(self.mover, self.flow), slot: None, is_listed: false });
        }
        self.mover.state.settle()?;
        self.tell()
    }

    fn start_tasks(&mut self) {
        while self.tasks.len() < self.mover.settings.concurrency.max(1)
            && let Some(key) = self.window.start()
        {
            let (mover, flow) = (Arc::clone(self.mover), self.flow);
            let (trouble, stop) = (self.trouble.clone(), self.stop.clone());
            self.tasks.spawn(async move {
                let begun = Instant::now();
                let carried = carry_at_last(&mover, flow, &key, &trouble, &stop).await;
                (key, begun.elapsed(), carried)
            });
        }
    }

    fn task_ended(
        &mut self,
        done: Result<(String, Duration, Result<Carried>), tokio::task::JoinError>,
    ) -> Result<()> {
        let (key, took, carried) =
            done.map_err(|e| Error::temporary(ErrorKind::Other, format!("a follower's task died: {e}")))?;
        let carried = carried?;
        self.carried(&key, took, carried);
        Ok(())
    }

    fn carried(&mut self, key: &str, took: Duration, carried: Carried) {
        self.meter.one(took);
        let changes = self.window.finish(key);
        self.applied_since += changes;
        self.state.changes_applied += changes;
        if let Carried::Copied(bytes) = carried {
            self.state.bytes_applied += bytes;
        }
    }

    // ---- the feed

    fn ask_feed(&mut self) {
        if self.question.is_some() || self.window.len() >= CHANGES_AHEAD {
            return;
        }
        let wait = self.mover.settings.feed_wait;
        let rest = match self.failures {
            0 => Duration::ZERO,
            failures => self.mover.settings.retry.wait(failures),
        };
        let (feed, after) = (Arc::clone(&self.feed), self.received);
        let question = async move {
            tokio::time::sleep(rest).await;
            let begun = Instant::now();
            let page = feed.changes(after, PAGE_CHANGES, wait).await;
            let took = begun.elapsed();
            // A feed that cannot wait must not be asked in a tight loop.
            if matches!(&page, Ok(Some(page)) if page.changes.is_empty() && page.position == after)
                && took < wait / 2
            {
                tokio::time::sleep(POLL_REST).await;
            }
            Answer { page, took }
        };
        self.question = Some((Box::pin(question), Instant::now() + rest));
    }

    async fn take_answer(&mut self, answer: Answer) -> Result<()> {
        self.question = None;
        match answer.page {
            Ok(Some(page)) => {
                self.failures = 0;
                self.take_page(page, answer.took);
                Ok(())
            }
            Ok(None) => {
                tracing::warn!(flow = %self.flow, after = self.received, "the feed forgot our position");
                self.start_over().await
            }
            Err(error) if may_pass(&error) && error.kind != ErrorKind::Corrupt => {
                self.failures += 1;
                tracing::warn!(%error, "the change feed does not answer");
                self.tell()
            }
            Err(error) => Err(error.on(self.flow.from())),
        }
    }

    fn take_page(&mut self, page: Page, took: Duration) {
        let now = Instant::now();
        self.quickest_answer = self.quickest_answer.min(took);
        let was_current = self.received >= self.head;
        // When we had everything before this question, a change can be no older than the question; where the feed waited
        // for it, it is as old as the answer's way to us.
        let way =
            if took >= POLL_REST { took.min(self.quickest_answer.max(POLL_REST)) } else { took + POLL_REST };
        let born = if was_current {
            now.checked_sub(way).map_or(self.current, |t| t.max(self.current))
        } else {
            self.current
        };
        let before = self.received;
        self.mover.writers(self.flow).note(&page.changes, now);
        for change in page.changes {
            let dropped = self.sabotage.as_mut().is_some_and(|sabotage| sabotage.drops(&change.key));
            if dropped || (is_reserved(&change.key) && !crate::mover::is_marker(&change.key)) {
                self.window.pass_over(change.position, born);
            } else {
                self.window.receive(change.position, &change.key, born);
            }
            self.received = change.position;
        }
        if page.position > self.received {
            self.window.pass_over(page.position, born);
        }
        self.received = self.received.max(page.position);
        self.head = page.head.max(self.received);
        debug_assert!(self.received >= before, "positions only grow");
        if self.received >= self.head {
            self.current = now;
        }
    }

    /// Changes may have been missed: go on from the head, and hold the position until everything was listed.
    async fn start_over(&mut self) -> Result<()> {
        let head = loop {
            match self.feed.head().await {
                Ok(head) => break head,
                Err(error) if may_pass(&error) => {
                    self.failures += 1;
                    tracing::warn!(%error, "the change feed does not answer");
                    self.tell()?;
                    tokio::select! {
                        () = tokio::time::sleep(self.mover.settings.retry.wait(self.failures)) => {}
                        () = self.stop.cancelled() => return Ok(()),
                    }
                }
                Err(error) => return Err(error.on(self.flow.from())),
            }
        };
        self.failures = 0;
        let slot = self.window.block(head.max(self.received), self.current);
        self.received = self.received.max(head);
        self.head = self.received;
        let audit = Audit::begin(self.mover, self.flow);
        // An audit that was under way began before the gap; the position it holds falls with the new one.
        if let Some(slot) = self.audit.take().and_then(|running| running.slot) {
            self.window.release(slot);
        }
        self.audit = Some(Running { audit, slot: Some(slot), is_listed: false });
        Ok(())
    }

    // ---- audits

    async fn audited(&mut self, key: Option<String>) -> Result<()> {
        let Some(running) = &mut self.audit else { return Ok(()) };
        if let Some(key) = key {
            self.window.ask(&key);
            return Ok(());
        }
        match running.audit.outcome().await {
            Ok(()) => running.is_listed = true,
            Err(error) if may_pass(&error) => {
                tracing::warn!(%error, "the audit's listing failed; beginning it again");
                let _in_trouble = self.trouble.enter();
                self.tell()?;
                tokio::time::sleep(self.mover.settings.retry.wait(4)).await;
                if let Some(running) = &mut self.audit {
                    running.audit = Audit::begin(self.mover, self.flow);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn end_audit(&mut self) {
        if self.audit.as_ref().is_some_and(|running| running.is_listed) && self.window.asked() == 0 {
            if let Some(slot) = self.audit.take().and_then(|running| running.slot) {
                self.window.release(slot);
                self.has_start = true;
            }
            self.next_audit = Instant::now() + self.mover.settings.relist_every;
        }
    }

    // ---- what is known

    /// Writes the applied position down when it moved.
    fn advance(&mut self) -> Result<bool> {
        self.measure();
        let applied = self.window.applied();
        if !self.has_start || self.written == Some(applied) {
            return Ok(false);
        }
        let position = Place::Feed(applied).position();
        let age = if self.is_current() { Duration::ZERO } else { self.current.elapsed() };
        let age = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        self.mover.state.set_applied(self.flow, &position, wall_millis().saturating_sub(age))?;
        self.written = Some(applied);
        self.state.applied = Some(position);
        Ok(true)
    }

    /// Everything that was told is applied.
    fn is_current(&self) -> bool {
        self.window.len() == 0 && self.received >= self.head
    }

    fn measure(&mut self) {
        let now = Instant::now();
        let busy = now - self.measured;
        if self.applied_since > 0 || !self.is_current() {
            self.meter.add(busy, self.applied_since);
        }
        self.applied_since = 0;
        self.measured = now;
    }

    fn tell(&mut self) -> Result<()> {
        if self.beaten.is_none_or(|beaten| beaten.elapsed() >= REPORT_EVERY) {
            self.mover.state.beat(self.flow)?;
            self.beaten = Some(Instant::now());
        }
        self.window.applied();
        let silent = self
            .question
            .as_ref()
            .is_some_and(|(_, asked)| asked.elapsed() > self.mover.settings.feed_wait + SILENCE_LIMIT);
        let mut state = self.state.clone();
        state.apply_per_second = self.meter.per_second();
        if self.failures == 0 && !silent && !self.trouble.is_any() {
            let backlog = self.window.backlog() + (self.head - self.received);
            state.backlog = Some(backlog);
            state.drain_seconds = self.meter.drain_seconds(backlog);
            state.lag_seconds = Some(if self.is_current() {
                0.0
            } else {
                self.window.oldest().unwrap_or(&self.current).elapsed().as_secs_f64()
            });
        }
        self.report.send_replace(state);
        Ok(())
    }
}

fn listing(audit: &Option<Running>) -> bool {
    audit.as_ref().is_some_and(|running| !running.is_listed)
}

/// Cancel-safe, as receiving from a channel is.
async fn next_key(audit: &mut Option<Running>) -> Option<String> {
    match audit {
        Some(running) => running.audit.keys.recv().await,
        None => None,
    }
}

/// Cancel-safe: the question stays where it is until it is answered.
async fn answered(question: &mut Option<(BoxFuture<'static, Answer>, Instant)>) -> Answer {
    match question {
        Some((question, _)) => question.await,
        None => std::future::pending().await,
    }
}
