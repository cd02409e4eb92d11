//! Faults on purpose: which call of which method fails, hangs or is slow; and the list of calls that were made.
//! It knows method names and nothing of what they do.

use crate::{Error, Result};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// One call of a method of the part. `argument` is its side or flow as text (`source`, `forward`), or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub method: &'static str,
    pub argument: &'static str,
    /// `None` while it runs, and for ever when it was dropped.
    pub succeeded: Option<bool>,
}

impl Call {
    fn is(&self, pattern: &str) -> bool {
        pattern == self.method || pattern == self.to_string()
    }
}

/// `fence(source)`, `assess`.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.argument {
            "" => f.write_str(self.method),
            argument => write!(f, "{}({argument})", self.method),
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Fail(Error),
    Hang(Hang),
    Slow(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    BeforeEffect,
    AfterEffect,
}

#[derive(Debug, Clone)]
struct Rule {
    pattern: String,
    /// Matching calls to let pass before it strikes; `None`: strikes every time.
    to_go: Option<u32>,
    when: When,
    action: Action,
}

#[derive(Debug, Default)]
struct Inner {
    rules: Vec<Rule>,
    calls: Vec<Call>,
}

/// The switchboard of faults of one world. Patterns are a method's name (`fence`) or a name with its argument
/// (`fence(source)`, `follow(reverse)`). `nth` counts matching calls from 1, beginning when the fault is set; a numbered
/// fault strikes once.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    inner: Arc<Mutex<Inner>>,
}

/// A call that hangs until it is released; dropping this handle does not release it.
#[derive(Debug, Clone)]
pub struct Hang {
    state: Arc<watch::Sender<(u32, bool)>>,
}

impl Hang {
    fn new() -> Self {
        Self { state: Arc::new(watch::Sender::new((0, false))) }
    }

    /// Waits until a call hangs here.
    pub async fn reached(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = state.wait_for(|(reached, _)| *reached > 0).await;
    }

    pub fn release(&self) {
        self.state.send_modify(|(_, released)| *released = true);
    }

    async fn wait(&self) {
        self.state.send_modify(|(reached, _)| *reached += 1);
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|(_, released)| *released).await;
    }
}

impl Faults {
    /// The `nth` call fails and nothing is done.
    pub fn fail(&self, pattern: &str, nth: u32, error: Error) {
        self.set(pattern, Some(nth), When::BeforeEffect, Action::Fail(error));
    }

    /// Every call fails and nothing is done, until [`Faults::clear`].
    pub fn fail_always(&self, pattern: &str, error: Error) {
        self.set(pattern, None, When::BeforeEffect, Action::Fail(error));
    }

    /// The `nth` call does its work, and the answer is lost.
    pub fn fail_after_effect(&self, pattern: &str, nth: u32, error: Error) {
        self.set(pattern, Some(nth), When::AfterEffect, Action::Fail(error));
    }

    /// The next call hangs before it does anything.
    pub fn hang(&self, pattern: &str) -> Hang {
        self.hang_nth(pattern, 1)
    }

    pub fn hang_nth(&self, pattern: &str, nth: u32) -> Hang {
        let hang = Hang::new();
        self.set(pattern, Some(nth), When::BeforeEffect, Action::Hang(hang.clone()));
        hang
    }

    /// The `nth` call does its work and then does not come back.
    pub fn hang_after_effect(&self, pattern: &str, nth: u32) -> Hang {
        let hang = Hang::new();
        self.set(pattern, Some(nth), When::AfterEffect, Action::Hang(hang.clone()));
        hang
    }

    /// Every call takes so much longer, before its effect.
    pub fn slow(&self, pattern: &str, time: Duration) {
        self.set(pattern, None, When::BeforeEffect, Action::Slow(time));
    }

    /// Forgets the faults of a pattern; calls that hang go on hanging.
    pub fn clear(&self, pattern: &str) {
        self.lock().rules.retain(|rule| rule.pattern != pattern);
    }

    pub fn clear_all(&self) {
        self.lock().rules.clear();
    }

    /// Faults that were set with a number and have not struck: a test that expects a fault can see that it never came.
    pub fn not_struck(&self) -> Vec<String> {
        let inner = self.lock();
        inner.rules.iter().filter(|rule| rule.to_go.is_some()).map(|rule| rule.pattern.clone()).collect()
    }

    /// All calls, in the order they began.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub fn count(&self, pattern: &str) -> usize {
        self.lock().calls.iter().filter(|call| call.is(pattern)).count()
    }

    fn set(&self, pattern: &str, nth: Option<u32>, when: When, action: Action) {
        let to_go = nth.map(|nth| nth.saturating_sub(1));
        self.lock().rules.push(Rule { pattern: pattern.into(), to_go, when, action });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one call of a method with whatever faults are due for it.
    pub(super) async fn around<T>(
        &self,
        method: &'static str,
        argument: &'static str,
        body: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let (index, due) = self.begin(Call { method, argument, succeeded: None });
        let result = Self::with_faults(&due, body).await;
        self.lock().calls[index].succeeded = Some(result.is_ok());
        result
    }

    async fn with_faults<T>(due: &[Rule], body: impl Future<Output = Result<T>> + Send) -> Result<T> {
        Self::strike(due, When::BeforeEffect).await?;
        let result = body.await?;
        Self::strike(due, When::AfterEffect).await?;
        Ok(result)
    }

    async fn strike(due: &[Rule], when: When) -> Result<()> {
        for rule in due.iter().filter(|rule| rule.when == when) {
            match &rule.action {
                Action::Fail(error) => return Err(error.clone()),
                Action::Hang(hang) => hang.wait().await,
                Action::Slow(time) => tokio::time::sleep(*time).await,
            }
        }
        Ok(())
    }

    /// Notes the call and takes out the faults that are due.
    fn begin(&self, call: Call) -> (usize, Vec<Rule>) {
        let mut inner = self.lock();
        let mut due = Vec::new();
        inner.rules.retain_mut(|rule| {
            if !call.is(&rule.pattern) {
                return true;
            }
            match &mut rule.to_go {
                None => due.push(rule.clone()),
                Some(0) => {
                    due.push(rule.clone());
                    return false;
                }
                Some(to_go) => *to_go -= 1,
            }
            true
        });
        inner.calls.push(call);
        (inner.calls.len() - 1, due)
    }
}
