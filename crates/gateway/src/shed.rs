//! Asks clients to come again before a planned hand-over: answers end their connections, later idle connections end too. New
//! connections are taken all the while. Changes nothing about who owns what, and is forgotten with the process.

use crate::control::Shedding;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Shed {
    /// Answers say `Connection: close`.
    answers: AtomicBool,
    /// The end of the gateway: every generation ends with it.
    closing: CancellationToken,
    /// Ends with the next [`Shedding::Idle`].
    generation: Mutex<CancellationToken>,
}

impl Shed {
    pub fn new(closing: &CancellationToken) -> Self {
        let generation = Mutex::new(closing.child_token());
        Self { answers: AtomicBool::new(false), closing: closing.clone(), generation }
    }

    pub fn set(&self, shedding: Shedding) {
        self.answers.store(shedding != Shedding::Off, Ordering::Relaxed);
        if shedding == Shedding::Idle {
            let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
            let before = std::mem::replace(&mut *generation, self.closing.child_token());
            before.cancel();
        }
    }

    /// Does a connection end with its next answer?
    pub fn ends_with_answer(&self) -> bool {
        self.answers.load(Ordering::Relaxed)
    }

    /// Waits until a connection is to end as soon as nothing is under way on it. One that was not `used` yet is passed over until
    /// the gateway itself ends: its first request may be on the way, and the answer to that ends it.
    pub async fn asked_to_leave(&self, used: impl Fn() -> bool) {
        loop {
            let generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner).clone();
            generation.cancelled().await;
            if self.closing.is_cancelled() || used() {
                return;
            }
        }
    }
}
