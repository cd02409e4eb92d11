//! Where every write passes: admitted under the grant and counted in one step, so that a hold sees each write either waiting or
//! in flight. Owns the counts of writes and sessions; the waiting ones are in [`crate::hold`]. Never talks to an upstream.

use crate::clock::BootClock;
use crate::control::{Held, Mode};
use crate::grant::Grant;
use crate::hold::{Bounds, Full, Line};
use http::Method;
use http::uri::PathAndQuery;
use rehome_part::{Epoch, Side};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;

const SHARDS: usize = 16;
/// How many slow writes are named.
const NAMED: usize = 10;

/// The part of the grant that the request path looks at.
#[derive(Debug, Clone, Copy)]
struct Pass {
    epoch: Epoch,
    owner: Side,
    mode: Mode,
    lease_end: u64,
    has_intent: bool,
    /// When this grant began to count.
    since: Instant,
}

impl Pass {
    fn of(grant: &Grant) -> Self {
        Self {
            epoch: grant.saved.epoch,
            owner: grant.saved.owner,
            mode: grant.mode,
            lease_end: grant.lease_end,
            has_intent: grant.has_intent(),
            since: Instant::now(),
        }
    }

    fn admits(&self, boot: &BootClock) -> bool {
        match self.mode {
            Mode::Standing => true,
            Mode::Armed => boot.micros() < self.lease_end,
            Mode::Held => false,
        }
    }
}

/// What is known of a write that was forwarded.
#[derive(Debug, Clone)]
pub(crate) enum Label {
    Request {
        method: Method,
        path: Option<PathAndQuery>,
    },
    /// Not a request of HTTP.
    Named(Arc<str>),
    /// In flight as long as nobody holds: counts as slow only from the hold on.
    Lasting(Arc<str>),
}

impl Label {
    pub fn named(text: impl Into<Arc<str>>) -> Self {
        Self::Named(text.into())
    }

    /// `PUT /orders/17`: without the query, at most eighty characters.
    fn show(&self) -> String {
        let (method, path) = match self {
            Self::Request { method, path } => (method, path),
            Self::Named(text) | Self::Lasting(text) => return text.to_string(),
        };
        let path = path.as_ref().map_or("/", |path| path.path());
        let shown: String = path.chars().take(80).collect();
        let more = if shown.len() < path.len() { "…" } else { "" };
        format!("{method} {shown}{more}")
    }
}

type Shard = Mutex<HashMap<u64, (Instant, Label)>>;

/// The way writes and sessions take.
#[derive(Debug)]
pub(crate) struct Gate {
    pass: RwLock<(Pass, Arc<CancellationToken>)>,
    /// The owner again, for reads, which wait for nobody.
    owner: AtomicU8,
    epoch: AtomicU64,
    boot: BootClock,
    next: AtomicU64,
    in_flight: AtomicU64,
    writes: Vec<Shard>,
    sessions: AtomicU64,
    /// Rung when the last write or session ended.
    quiet: Notify,
    /// Rung when somebody joined the line or the grant changed.
    pub wake: Notify,
    /// Rung for everybody who waits for it, whenever the grant changed.
    pub changed: Notify,
    pub line: Line,
    pub connections: AtomicU64,
}

impl Gate {
    pub fn new(grant: &Grant, boot: BootClock, bounds: Bounds) -> Self {
        let pass = Pass::of(grant);
        Self {
            owner: AtomicU8::new(pass.owner as u8),
            epoch: AtomicU64::new(pass.epoch.0),
            pass: RwLock::new((pass, Arc::default())),
            boot,
            next: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            writes: (0..SHARDS).map(|_| Shard::default()).collect(),
            sessions: AtomicU64::new(0),
            quiet: Notify::new(),
            wake: Notify::new(),
            changed: Notify::new(),
            line: Line::new(bounds),
            connections: AtomicU64::new(0),
        }
    }

    /// From now on this grant counts. Admissions that saw the old one are counted already when this returns.
    pub fn publish(&self, grant: &Grant) {
        let pass = Pass::of(grant);
        self.pass.write().expect("no code panics while it holds this lock").0 = pass;
        self.owner.store(pass.owner as u8, Ordering::SeqCst);
        self.epoch.store(pass.epoch.0, Ordering::SeqCst);
        self.wake.notify_one();
        self.changed.notify_waiters();
    }

    fn pass(&self) -> Pass {
        self.pass.read().expect("no code panics while it holds this lock").0
    }

    pub fn owner(&self) -> Side {
        if self.owner.load(Ordering::Relaxed) == Side::Source as u8 { Side::Source } else { Side::Target }
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Relaxed))
    }

    /// The mode as it acts: an expired lease holds.
    pub fn mode(&self) -> Mode {
        let pass = self.pass();
        if pass.admits(&self.boot) { pass.mode } else { Mode::Held }
    }

    /// Milliseconds left of the lease; `None` while standing.
    pub fn lease_left_ms(&self) -> Option<u64> {
        let pass = self.pass();
        (pass.mode != Mode::Standing).then(|| pass.lease_end.saturating_sub(self.boot.micros()) / 1_000)
    }

    /// Is the grant open, whether or not its intent is recorded?
    pub fn is_open(&self) -> Option<NeedsIntent> {
        let pass = self.pass();
        pass.admits(&self.boot).then_some(NeedsIntent(!pass.has_intent))
    }

    /// Lets a write through, or puts it into the line and waits for its turn.
    ///
    /// # Errors
    /// The line is full, or the write waited as long as it may. Nothing was sent.
    pub async fn enter(self: &Arc<Self>, label: Label, bytes: u64) -> Result<Ticket, Full> {
        if self.line.is_empty()
            && let Some(ticket) = self.admit(&label)
        {
            return Ok(ticket);
        }
        let place = self.line.join(bytes)?;
        self.wake.notify_one();
        let (turn, waited) = place.turn().await?;
        // The grant can end between the turn and here only by a message that then waits for this write.
        let mut ticket = turn.ticket;
        ticket.relabel(label);
        ticket.held = Some(waited);
        ticket.slot = turn.slot;
        Ok(ticket)
    }

    /// A session that is open already, and counts from now on.
    pub fn session(self: &Arc<Self>) -> Session {
        let guard = self.pass.read().expect("no code panics while it holds this lock");
        self.sessions.fetch_add(1, Ordering::SeqCst);
        Session { gate: self.clone(), end: guard.1.clone() }
    }

    /// The one place where a write becomes "in flight".
    fn admit(self: &Arc<Self>, label: &Label) -> Option<Ticket> {
        let guard = self.pass.read().expect("no code panics while it holds this lock");
        let (pass, session_end) = (guard.0, &guard.1);
        if !pass.has_intent || !pass.admits(&self.boot) {
            return None;
        }
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let session_end = session_end.clone();
        drop(guard);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        self.shard(id).insert(id, (started, label.clone()));
        Some(Ticket {
            gate: self.clone(),
            id,
            epoch: pass.epoch,
            owner: pass.owner,
            leased: pass.mode != Mode::Standing,
            session_end,
            started,
            held: None,
            slot: None,
        })
    }

    /// A ticket for the first in the line; its label comes with [`Ticket::relabel`].
    pub fn admit_waiting(self: &Arc<Self>) -> Option<Ticket> {
        self.admit(&Label::named(""))
    }

    fn shard(&self, id: u64) -> std::sync::MutexGuard<'_, HashMap<u64, (Instant, Label)>> {
        self.writes[id as usize % SHARDS].lock().expect("no code panics while it holds this lock")
    }

    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::SeqCst)
    }

    /// Ends every session that was admitted before now, also one that is just being opened.
    pub fn end_sessions(&self) {
        let mut guard = self.pass.write().expect("no code panics while it holds this lock");
        let ended = std::mem::take(&mut guard.1);
        drop(guard);
        ended.cancel();
    }

    /// Waits until no write and no session is left; false when `patience` ends first.
    pub async fn quiet(&self, patience: Duration) -> bool {
        let all_done = async {
            loop {
                let rung = self.quiet.notified();
                tokio::pin!(rung);
                rung.as_mut().enable();
                if self.in_flight() == 0 && self.sessions() == 0 {
                    return;
                }
                rung.await;
            }
        };
        tokio::time::timeout(patience, all_done).await.is_ok()
    }

    fn ended(&self, count: &AtomicU64) {
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.quiet.notify_waiters();
        }
    }

    /// Everything that counts for a hold, now.
    pub fn held(&self) -> Held {
        let mut slow: Vec<(Instant, String)> = Vec::new();
        let (holds, since) = (self.mode() == Mode::Held, self.pass().since);
        for shard in &self.writes {
            let shard = shard.lock().expect("no code panics while it holds this lock");
            slow.extend(shard.values().filter_map(|(started, label)| match label {
                Label::Lasting(_) if !holds => None,
                Label::Lasting(_) => Some((since, label.show())),
                _ => Some((*started, label.show())),
            }));
            slow.sort_by_key(|(started, _)| *started);
            slow.truncate(NAMED);
        }
        let slowest_ms = slow.first().map_or(0, |(started, _)| started.elapsed().as_millis() as u64);
        let connections = self.connections.load(Ordering::Relaxed);
        let line = self.line.state(connections);
        Held {
            in_flight: self.in_flight(),
            slowest_ms,
            slow: slow.into_iter().map(|(_, label)| label).collect(),
            sessions: self.sessions(),
            waiting: line.waiting,
            waiting_bytes: line.bytes,
            oldest_ms: line.oldest.as_millis() as u64,
            connections,
            fullness: line.fullness,
        }
    }
}

/// Must the intent be recorded before a write goes?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NeedsIntent(pub bool);

/// One admitted write. In flight until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    id: u64,
    pub epoch: Epoch,
    pub owner: Side,
    leased: bool,
    session_end: Arc<CancellationToken>,
    pub started: Instant,
    /// How long it waited in the line, if it did.
    pub held: Option<Duration>,
    /// Dropped with the ticket: lets the next one out of the line.
    slot: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    fn relabel(&mut self, label: Label) {
        self.started = Instant::now();
        self.gate.shard(self.id).insert(self.id, (self.started, label));
    }

    /// Asked right before the first byte leaves: did the lease end while a connection was made?
    pub fn is_stale(&self) -> bool {
        let pass = self.gate.pass();
        self.leased && (pass.epoch != self.epoch || self.gate.boot.micros() >= pass.lease_end)
    }

    /// The write turned out to be a session.
    pub fn into_session(self) -> Session {
        self.gate.sessions.fetch_add(1, Ordering::SeqCst);
        Session { gate: self.gate.clone(), end: self.session_end.clone() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.shard(self.id).remove(&self.id);
        drop(self.slot.take());
        self.gate.ended(&self.gate.in_flight);
    }
}

/// One open session, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    gate: Arc<Gate>,
    /// Cancelled when the session must end.
    pub end: Arc<CancellationToken>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.gate.ended(&self.gate.sessions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::{Lease, Saved};
    use rehome_part::Token;

    fn bounds() -> Bounds {
        Bounds { requests: 10, bytes: 1_000, age: Duration::from_secs(10), connections: 10 }
    }

    fn label() -> Label {
        Label::Request { method: Method::PUT, path: None }
    }

    /// Armed with a lease of 2 ms that began at 1,000 µs of a clock that stands still.
    fn leased() -> (Arc<Gate>, Grant, Arc<AtomicU64>) {
        let (boot, hand) = BootClock::held_at(1_000);
        let grant = Grant::wake(Saved::first()).enroll("run", Token(1)).unwrap().intend();
        let grant = grant.arm(Epoch(1), Lease { now: 1_000, millis: 2 }, &[], "", Token(1)).unwrap();
        (Arc::new(Gate::new(&grant, boot, bounds())), grant, hand)
    }

    #[tokio::test]
    async fn the_lease_is_looked_at_for_every_single_write() {
        let (gate, _, hand) = leased();
        hand.store(2_999, Ordering::SeqCst);
        let ticket = gate.enter(label(), 1).await.unwrap();
        assert_eq!((gate.in_flight(), ticket.is_stale(), gate.mode()), (1, false, Mode::Armed));
        hand.store(3_000, Ordering::SeqCst);
        assert!(ticket.is_stale(), "admitted in time, and too late to send");
        assert_eq!(gate.mode(), Mode::Held);
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(label(), 1).await }
        });
        while !gate.line.has_waiting() {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.in_flight(), 1);
        waiting.abort();
    }

    #[tokio::test]
    async fn a_write_without_a_recorded_intent_waits_for_it() {
        let (boot, _) = BootClock::held_at(0);
        let grant = Grant::wake(Saved::first());
        let gate = Arc::new(Gate::new(&grant, boot, bounds()));
        let intender = (gate.clone(), grant.clone());
        let release = tokio::spawn(crate::hold::release(gate.clone(), move || {
            let (gate, grant) = intender.clone();
            async move {
                assert_eq!(gate.in_flight(), 0, "nothing goes before the intent");
                gate.publish(&grant.intend());
                true
            }
        }));
        let first = gate.enter(label(), 1).await.unwrap();
        assert_eq!(gate.is_open(), Some(NeedsIntent(false)));
        drop(first);
        assert_eq!(gate.in_flight(), 0);
        release.abort();
    }

    #[tokio::test]
    async fn quiet_means_no_write_and_no_session() {
        let (gate, _, _hand) = leased();
        let ticket = gate.enter(label(), 1).await.unwrap();
        assert!(!gate.quiet(Duration::ZERO).await);
        let session = ticket.into_session();
        assert_eq!((gate.in_flight(), gate.sessions()), (0, 1));
        assert!(!gate.quiet(Duration::ZERO).await);
        gate.end_sessions();
        assert!(session.end.is_cancelled());
        drop(session);
        assert!(gate.quiet(Duration::ZERO).await);
    }

    #[test]
    fn a_label_has_no_query_and_an_end() {
        let path = format!("/orders/{}?token=1", "x".repeat(200));
        let shown = Label::Request { method: Method::PUT, path: Some(path.parse().unwrap()) }.show();
        assert!(
            shown.starts_with("PUT /orders/xx") && shown.ends_with("x…") && shown.chars().count() < 90,
            "{shown}"
        );
    }
}
