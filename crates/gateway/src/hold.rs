//! The line in which held writes wait, first come first served, bounded by count, bytes and age. It holds no request: a waiting
//! task keeps its own, body unread. Never decides when the line moves; [`release`] does, when the gate is open.

use crate::gate::{Gate, NeedsIntent, Ticket};
use rehome_spec::Hold;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Released writes on their way at once, to begin with.
const RELEASED_AT_ONCE: usize = 64;
/// As long as somebody waits, so many more may go after each step: slow writes, or more of them than the first bound
/// lets through, must not keep the line for ever.
const MORE: usize = 64;
const STEP: Duration = Duration::from_millis(50);

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub requests: u64,
    pub bytes: u64,
    pub age: Duration,
    pub connections: u64,
}

impl From<&Hold> for Bounds {
    fn from(hold: &Hold) -> Self {
        Self {
            requests: u64::from(hold.requests),
            bytes: hold.bytes.0,
            age: hold.age.0,
            connections: u64::from(hold.connections),
        }
    }
}

/// Why a write could not wait (any longer). Nothing of it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("too many writes are waiting")]
    Requests,
    #[error("the waiting writes take too much memory")]
    Bytes,
    #[error("the write waited as long as it may")]
    Age,
    #[error("the gateway is closing")]
    Closing,
}

/// A turn: the right to go, and the slot it takes among the released.
#[derive(Debug)]
pub(crate) struct Turn {
    pub ticket: Ticket,
    pub slot: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Waiter {
    since: Instant,
    turn: oneshot::Sender<Turn>,
}

#[derive(Debug, Default)]
struct Counts {
    waiting: AtomicU64,
    bytes: AtomicU64,
}

/// How full the line is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineState {
    pub waiting: u64,
    pub bytes: u64,
    pub oldest: Duration,
    pub fullness: f64,
}

#[derive(Debug)]
pub(crate) struct Line {
    bounds: Bounds,
    queue: Mutex<VecDeque<Waiter>>,
    /// Length of the queue, those who left it included.
    queued: AtomicUsize,
    counts: Arc<Counts>,
}

impl Line {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, queue: Mutex::default(), queued: AtomicUsize::new(0), counts: Arc::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.queued.load(Ordering::SeqCst) == 0
    }

    /// Does anybody wait who did not leave?
    pub fn has_waiting(&self) -> bool {
        self.counts.waiting.load(Ordering::SeqCst) > 0
    }

    /// Takes a place at the end.
    pub fn join(&self, bytes: u64) -> Result<Place, Full> {
        let mut queue = self.queue.lock().expect("no code panics while it holds this lock");
        if self.counts.waiting.load(Ordering::SeqCst) >= self.bounds.requests {
            return Err(Full::Requests);
        }
        if self.counts.bytes.load(Ordering::SeqCst) + bytes > self.bounds.bytes {
            return Err(Full::Bytes);
        }
        if queue.len() as u64 >= 2 * self.bounds.requests {
            // Clients that gave up left their places; there are at least as many as who waits.
            queue.retain(|waiter| !waiter.turn.is_closed());
        }
        let (turn, receiver) = oneshot::channel();
        let since = Instant::now();
        queue.push_back(Waiter { since, turn });
        self.queued.store(queue.len(), Ordering::SeqCst);
        self.counts.waiting.fetch_add(1, Ordering::SeqCst);
        self.counts.bytes.fetch_add(bytes, Ordering::SeqCst);
        let seat = Seat { counts: self.counts.clone(), bytes };
        Ok(Place { receiver, seat, since, age: self.bounds.age })
    }

    /// Gives the turn to the first who still waits, if anybody does.
    fn call(&self, mut turn: Turn) {
        let mut queue = self.queue.lock().expect("no code panics while it holds this lock");
        while let Some(waiter) = queue.pop_front() {
            self.queued.store(queue.len(), Ordering::SeqCst);
            match waiter.turn.send(turn) {
                Ok(()) => return,
                Err(back) => turn = back,
            }
        }
    }

    /// Sends everybody away; used when the process ends.
    pub fn dismiss(&self) {
        let mut queue = self.queue.lock().expect("no code panics while it holds this lock");
        queue.clear();
        self.queued.store(0, Ordering::SeqCst);
    }

    pub fn state(&self, connections: u64) -> LineState {
        let queue = self.queue.lock().expect("no code panics while it holds this lock");
        let oldest =
            queue.iter().find(|waiter| !waiter.turn.is_closed()).map(|waiter| waiter.since.elapsed());
        drop(queue);
        let waiting = self.counts.waiting.load(Ordering::SeqCst);
        let bytes = self.counts.bytes.load(Ordering::SeqCst);
        let oldest = oldest.unwrap_or_default();
        let share = |now: f64, bound: f64| if bound > 0.0 { now / bound } else { 1.0 };
        let fullness = [
            share(waiting as f64, self.bounds.requests as f64),
            share(bytes as f64, self.bounds.bytes as f64),
            share(oldest.as_secs_f64(), self.bounds.age.as_secs_f64()),
            share(connections as f64, self.bounds.connections as f64),
        ];
        LineState { waiting, bytes, oldest, fullness: fullness.into_iter().fold(0.0, f64::max).min(1.0) }
    }
}

/// Counted as waiting until dropped.
#[derive(Debug)]
struct Seat {
    counts: Arc<Counts>,
    bytes: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.counts.waiting.fetch_sub(1, Ordering::SeqCst);
        self.counts.bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

/// A place in the line.
#[derive(Debug)]
pub(crate) struct Place {
    receiver: oneshot::Receiver<Turn>,
    seat: Seat,
    since: Instant,
    age: Duration,
}

impl Place {
    /// Waits for the turn; says how long that took.
    pub async fn turn(self) -> Result<(Turn, Duration), Full> {
        let Self { receiver, seat, since, age } = self;
        let result = tokio::time::timeout(age, receiver).await;
        drop(seat);
        match result {
            Ok(Ok(turn)) => Ok((turn, since.elapsed())),
            Ok(Err(_)) => Err(Full::Closing),
            Err(_) => Err(Full::Age),
        }
    }
}

/// Lets the line out, in order and not all at once, whenever the gate is open. `intend` makes the intent durable; it says
/// whether it is. Runs for the life of the gateway.
pub(crate) async fn release<F, I>(gate: Arc<Gate>, intend: F)
where
    F: Fn() -> I,
    I: Future<Output = bool>,
{
    loop {
        gate.wake.notified().await;
        let slots = Arc::new(Semaphore::new(RELEASED_AT_ONCE));
        let mut widened = Instant::now();
        while !gate.line.is_empty() {
            match gate.is_open() {
                None => break,
                Some(NeedsIntent(true)) if !intend().await => {
                    // The disk may recover; nobody is released before.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Some(_) => {}
            }
            if widened.elapsed() >= STEP {
                slots.add_permits(MORE);
                widened = Instant::now();
            }
            let Ok(slot) = tokio::time::timeout(STEP, slots.clone().acquire_owned()).await else { continue };
            let slot = Some(slot.expect("this semaphore is never closed"));
            let Some(ticket) = gate.admit_waiting() else { continue };
            gate.line.call(Turn { ticket, slot });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(requests: u64, bytes: u64) -> Line {
        Line::new(Bounds { requests, bytes, age: Duration::from_secs(10), connections: 100 })
    }

    #[test]
    fn count_and_bytes_are_bounded_and_leaving_makes_room() {
        let line = line(3, 100);
        let first = line.join(10).unwrap();
        assert_eq!(line.join(91).unwrap_err(), Full::Bytes);
        let _second = line.join(90).unwrap();
        let _third = line.join(0).unwrap();
        assert_eq!(line.join(0).unwrap_err(), Full::Requests);
        assert!((line.state(0).fullness - 1.0).abs() < 1e-9);
        drop(first);
        assert_eq!(line.state(0).waiting, 2);
        assert_eq!(line.state(0).bytes, 90);
        line.join(10).unwrap();
    }

    #[test]
    fn places_of_those_who_left_do_not_pile_up() {
        let line = line(4, 100);
        let stays = line.join(1).unwrap();
        for _ in 0..1000 {
            drop(line.join(1).unwrap());
        }
        assert!(line.queue.lock().unwrap().len() <= 9);
        assert_eq!(line.state(0).waiting, 1);
        drop(stays);
    }

    #[test]
    fn the_fullest_bound_counts() {
        let line = line(10, 1000);
        assert!(line.state(0).fullness < 1e-9);
        assert!((line.state(70).fullness - 0.7).abs() < 1e-9);
        let _places: Vec<_> = (0..8).map(|_| line.join(1).unwrap()).collect();
        assert!((line.state(70).fullness - 0.8).abs() < 1e-9);
    }
}
