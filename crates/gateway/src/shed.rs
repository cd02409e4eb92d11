//! Asks clients to come again before a planned hand-over: answers end their connections, then idle connections end, and at the very
//! end new ones wait outside. Changes nothing about who owns what, and is forgotten with the process.

use crate::control::Shedding;
use socket2::{SockFilter, SockRef};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Every order ends by itself: whoever gave it may have died.
const LONGEST: Duration = Duration::from_secs(2 * 3_600);
const LONGEST_SHUT: Duration = Duration::from_secs(5);

/// Drops first packets (SYN without ACK, in the byte of flags) and lets all others through, so that connections that began
/// get to their end. What is dropped is sent again by its client after a second.
const NO_NEWCOMERS: [SockFilter; 5] = [
    SockFilter::new(0x30, 0, 0, 13),       // load the byte of flags
    SockFilter::new(0x54, 0, 0, 0x12),     // SYN and ACK of it
    SockFilter::new(0x15, 0, 1, 0x02),     // only SYN?
    SockFilter::new(0x06, 0, 0, 0),        // drop
    SockFilter::new(0x06, 0, 0, u32::MAX), // take
];

#[derive(Debug)]
pub(crate) struct Shed {
    /// Answers say `Connection: close`.
    answers: AtomicBool,
    /// The end of the gateway: every generation ends with it.
    closing: CancellationToken,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Ends with the next [`Shedding::Idle`].
    generation: CancellationToken,
    /// The listening sockets; they close with those who accept on them.
    doors: Vec<Weak<TcpListener>>,
    /// Counts the orders, so that an old one does not open what a later one shut.
    orders: u64,
    shut: bool,
}

impl Shed {
    pub fn new(closing: &CancellationToken) -> Self {
        let state = State { generation: closing.child_token(), doors: Vec::new(), orders: 0, shut: false };
        Self { answers: AtomicBool::new(false), closing: closing.clone(), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn watch(&self, door: &Arc<TcpListener>) {
        self.state().doors.push(Arc::downgrade(door));
    }

    /// # Errors
    /// The kernel takes no filter, or does not let one go.
    pub fn set(self: &Arc<Self>, shedding: Shedding) -> io::Result<()> {
        let mut state = self.state();
        state.orders += 1;
        self.answers.store(shedding != Shedding::Off, Ordering::Relaxed);
        if shedding == Shedding::Idle {
            let next = self.closing.child_token();
            std::mem::replace(&mut state.generation, next).cancel();
        }
        let lasts = match shedding {
            Shedding::Off => return state.open(),
            Shedding::Shut => LONGEST_SHUT,
            _ => LONGEST,
        };
        let (shed, order) = (self.clone(), state.orders);
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            let expired = shed.state().orders == order;
            if expired && let Err(error) = shed.set(Shedding::Off) {
                tracing::error!(%error, "newcomers still wait outside");
            }
        });
        if shedding == Shedding::Shut { state.shut() } else { state.open() }
    }

    /// Does a connection end with its next answer?
    pub fn ends_with_answer(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// An ear for a connection that begins now.
    pub fn leaving(self: &Arc<Self>) -> Leaving {
        let generation = self.state().generation.clone();
        let asked = Box::pin(generation.clone().cancelled_owned());
        Leaving { shed: self.clone(), generation, asked }
    }
}

/// Hears when a connection is to end as soon as nothing is under way on it.
#[derive(Debug)]
pub(crate) struct Leaving {
    shed: Arc<Shed>,
    generation: CancellationToken,
    asked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Leaving {
    /// Is the connection to end? One that was not `used` yet is passed over until the gateway itself ends: its first request may be
    /// on the way, and the answer to that ends it.
    pub fn poll(&mut self, used: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.asked.as_mut().poll(cx));
            if used || self.shed.closing.is_cancelled() {
                return Poll::Ready(());
            }
            self.generation = self.shed.state().generation.clone();
            self.asked = Box::pin(self.generation.clone().cancelled_owned());
        }
    }

    /// The same without waiting, for a connection in use.
    pub fn is_asked(&self) -> bool {
        self.generation.is_cancelled()
    }
}

impl State {
    fn shut(&mut self) -> io::Result<()> {
        self.shut = true;
        self.doors().try_for_each(|door| SockRef::from(&*door).attach_filter(&NO_NEWCOMERS))
    }

    fn open(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.shut) {
            return Ok(());
        }
        // Every one is tried; one that never got its filter says so, and that is no trouble.
        let mut ended = Ok(());
        for door in self.doors() {
            match SockRef::from(&*door).detach_filter() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => ended = Err(error),
                _ => {}
            }
        }
        ended
    }

    fn doors(&self) -> impl Iterator<Item = Arc<TcpListener>> {
        self.doors.iter().filter_map(Weak::upgrade)
    }
}
