//! A share of the safe reads is asked of the other side, too, once the client has its answer; the two answers are compared. What also
//! differs between two looks at the owner is noise; what is only not there yet is waited for. Costs the client nothing, keeps no
//! value, and counts whatever it missed.

mod compare;
mod endpoint;
mod look;
mod ranking;

pub(crate) use compare::Ignored;

use crate::control::ShadowStatus;
use crate::histogram::Recent;
use crate::service::Service;
use crate::upstream::Head;
use bytes::{Bytes, BytesMut};
use compare::Answer;
use http::{HeaderValue, Method, header, response};
use ranking::Ranking;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pairs under way at once, from the owner's answer to the verdict; with [`compare::LARGEST`] that bounds the memory.
const AT_ONCE: usize = 32;

/// Why a chosen read was not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    /// Too many pairs were under way.
    Busy,
    /// The answer is too large.
    Large,
    /// The client left, or the owner broke off.
    Cut,
    /// The owner gave no second answer to tell noise by.
    Unsure,
    /// It differed, and whether the other side has everything is not known.
    Stale,
}

impl Missed {
    const ALL: [Self; 5] = [Self::Busy, Self::Large, Self::Cut, Self::Unsure, Self::Stale];

    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Large => "large",
            Self::Cut => "cut",
            Self::Unsure => "unsure",
            Self::Stale => "stale",
        }
    }
}

/// The shadow of one service.
#[derive(Debug)]
pub(crate) struct Shadow {
    share: u8,
    least: u32,
    /// Share of the compared that may differ.
    allowed: f64,
    ignored: Ignored,
    on: AtomicBool,
    turn: AtomicU64,
    seen: AtomicU64,
    missed: [AtomicU64; Missed::ALL.len()],
    places: Arc<Semaphore>,
    /// To the head of the answer, of the same requests.
    owner_times: Recent,
    other_times: Recent,
    ranking: Mutex<Ranking>,
}

impl Shadow {
    pub fn new(plan: &rehome_spec::Shadow) -> Self {
        Self {
            share: plan.share,
            least: plan.least,
            allowed: f64::from(plan.allowed_per_thousand) / 1e3,
            ignored: Ignored::of(&plan.ignore),
            on: AtomicBool::new(false),
            turn: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            missed: Default::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
            owner_times: Recent::default(),
            other_times: Recent::default(),
            ranking: Mutex::default(),
        }
    }

    /// Begins anew, or ends. What was counted stays to be read until the next beginning.
    pub fn set(&self, on: bool) {
        let was = self.on.swap(on, Ordering::Relaxed);
        if on && !was {
            self.seen.store(0, Ordering::Relaxed);
            self.missed.iter().for_each(|count| count.store(0, Ordering::Relaxed));
            self.owner_times.clear();
            self.other_times.clear();
            *self.ranking() = Ranking::default();
        }
    }

    pub fn is_on(&self) -> bool {
        self.share > 0 && self.on.load(Ordering::Relaxed)
    }

    fn ranking(&self) -> MutexGuard<'_, Ranking> {
        self.ranking.lock().expect("no code panics while it holds this lock")
    }

    fn miss(&self, why: Missed) {
        self.missed[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Chooses a share of the reads that are safe to ask twice. `None` for the others, at the price of one load.
    pub fn choose(&self, head: &Head, has_body: bool) -> Option<Box<Tap>> {
        let parts = &head.parts;
        if !self.is_on() || has_body || !matches!(parts.method, Method::GET | Method::HEAD) {
            return None;
        }
        self.seen.fetch_add(1, Ordering::Relaxed);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        if turn.wrapping_mul(u64::from(self.share)) % 100 >= u64::from(self.share) {
            return None;
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            self.miss(Missed::Busy);
            return None;
        };
        // A part of an answer cannot be compared by structure, and "not modified" hides it.
        let conditional = [header::RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
        if conditional.iter().any(|name| parts.headers.contains_key(name)) {
            return None;
        }
        let mut head = Head { parts: parts.clone(), added: head.added.clone() };
        head.parts.headers.insert(look::MARK, HeaderValue::from_static("1"));
        Some(Box::new(Tap {
            head,
            answer: None,
            took: Duration::ZERO,
            body: BytesMut::new(),
            large: false,
            place,
        }))
    }

    pub fn status(&self) -> ShadowStatus {
        let ranking = self.ranking();
        let missed = Missed::ALL
            .iter()
            .map(|why| (why.name().to_owned(), self.missed[*why as usize].load(Ordering::Relaxed)));
        ShadowStatus {
            on: self.is_on(),
            share: self.share,
            least: self.least,
            allowed: self.allowed,
            seen: self.seen.load(Ordering::Relaxed),
            compared: ranking.compared,
            different: ranking.different,
            noisy: ranking.noisy,
            missed: missed.filter(|(_, count)| *count > 0).collect(),
            owner_times: self.owner_times.all(),
            other_times: self.other_times.all(),
            endpoints: ranking.worst(),
        }
    }
}

/// Takes a copy of one answer on its way to the client.
#[derive(Debug)]
pub(crate) struct Tap {
    head: Head,
    answer: Option<Answer>,
    took: Duration,
    body: BytesMut,
    large: bool,
    place: OwnedSemaphorePermit,
}

impl Tap {
    /// How long the owner took to the head of its answer.
    pub fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// The head as the client gets it.
    pub fn head(&mut self, answer: &response::Parts) {
        self.answer = Some(compare::answer_of(answer));
    }

    pub fn piece(&mut self, piece: &Bytes) {
        if self.large || self.body.len() + piece.len() > compare::LARGEST {
            (self.large, self.body) = (true, BytesMut::new());
        } else {
            self.body.extend_from_slice(piece);
        }
    }

    /// The client has all of it: now the other side is asked.
    pub fn whole(self, service: &Arc<Service>, id: &HeaderValue) {
        let Self { head, answer, took, body, large, place } = self;
        let shadow = &service.shadow;
        let Some(answer) = answer.filter(|_| !large) else {
            return shadow.miss(if large { Missed::Large } else { Missed::Cut });
        };
        if tokio::runtime::Handle::try_current().is_err() {
            return shadow.miss(Missed::Cut);
        }
        let pair = look::Pair {
            head,
            first: Answer { body: body.freeze(), ..answer },
            took,
            id: String::from_utf8_lossy(id.as_bytes()).into_owned(),
        };
        let service = service.clone();
        service.tasks.clone().spawn(async move {
            let kill = service.kill.clone();
            tokio::select! {
                () = look::compare(&service, pair) => {}
                () = kill.cancelled() => {}
            }
            drop(place);
        });
    }

    /// The answer did not come to its end.
    pub fn cut(self, service: &Service) {
        service.shadow.miss(Missed::Cut);
    }
}
