//! A PgBouncer in front of a database, driven as part of this gateway: its clients are held by PAUSE, sent on by RESUME, and where they
//! go is a line of a file that its configuration includes. Carries no client's bytes; PgBouncer goes on alone when this process ends.
//!
//! To the gate it is one write that lasts: let in while PgBouncer runs, over when PAUSE has ended its last transaction. So lease, hold,
//! decision and release are those of every other write.

mod console;
mod file;

use crate::backend::{Backend, reaches};
use crate::control::Mode;
use crate::gate::{Gate, Label, Ticket};
use console::{Console, Entry};
use rehome_part::Side;
use rehome_part::traffic::{ServiceStatus, SideStatus};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two attempts at a console that refuses or does not answer.
const AGAIN: Duration = Duration::from_millis(100);
/// An answer of the console to anything but PAUSE.
const ANSWER: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(1);
const LOGIN_RETRY: &str = "SET server_login_retry = 1";
/// PgBouncer tells averages of a period; the slowest of its transactions may take so much longer.
const SLOWER_THAN_MEAN: f64 = 4.0;
/// A predicted pause counts what was seen within this time.
const SEEN_WITHIN: Duration = Duration::from_secs(120);

/// One PgBouncer, and the database behind it that moves.
#[derive(Clone)]
pub struct PgBouncer {
    /// The part's name.
    pub name: String,
    /// Host (a name, an address, or the folder of a socket) and port of its admin console.
    pub console: (String, u16),
    pub user: String,
    pub password: Option<String>,
    /// Included by its configuration; written by nobody else.
    pub file: PathBuf,
    /// What clients call the database.
    pub database: String,
    /// More settings of its line, as PgBouncer writes them.
    pub options: String,
    pub source: Backend,
    pub target: Backend,
}

impl fmt::Debug for PgBouncer {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgBouncer")
            .field("name", &self.name)
            .field("console", &self.console)
            .field("file", &self.file)
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl PgBouncer {
    fn backend(&self, side: Side) -> &Backend {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }
}

/// What is the matter with a console or the file; for logs, and for people who start a gateway.
#[derive(Debug, Clone, thiserror::Error)]
#[error("PgBouncer of {name}: {text}")]
pub struct BouncerError {
    name: String,
    text: String,
}

/// What can be said of a PgBouncer before it is needed: that its console lets us in, that it holds between transactions, and that the
/// file is read.
///
/// # Errors
/// The first thing that would keep a switch from working, with what to do.
pub async fn check(bouncer: &PgBouncer) -> Result<(), BouncerError> {
    let error = |text: String| BouncerError { name: bouncer.name.clone(), text };
    let console = Console::open(bouncer, ANSWER).await.map_err(error)?;
    let settings = console.settings().await.map_err(error)?;
    let mode = match console.entry(&bouncer.database).await.map_err(error)? {
        Some(Entry { pool_mode: Some(mode), .. }) => mode,
        _ => settings.get("pool_mode").cloned().unwrap_or_default(),
    };
    if !matches!(&*mode, "transaction" | "statement") {
        let text = format!(
            "pool_mode is {mode}, where PAUSE waits until every client has gone; set it to transaction"
        );
        return Err(error(text));
    }
    let wait: f64 = settings.get("query_wait_timeout").and_then(|text| text.parse().ok()).unwrap_or(0.0);
    if wait > 0.0 && wait < 30.0 {
        return Err(error(format!(
            "query_wait_timeout is {wait} s, and ends clients that wait in a switch; set it to 30 or more"
        )));
    }
    Ok(())
}

/// As it runs.
#[derive(Debug)]
pub(crate) struct Driver {
    bouncer: PgBouncer,
    gate: Arc<Gate>,
    seen: Mutex<Seen>,
}

/// What was seen last.
#[derive(Debug, Default)]
struct Seen {
    transactions: u64,
    /// With the moment it was seen.
    slowest_ms: Option<(Instant, f64)>,
    /// When clients last waited for us.
    waited: Option<Instant>,
    healthy: [Option<bool>; 2],
}

impl Driver {
    pub fn new(bouncer: PgBouncer, gate: Arc<Gate>) -> Self {
        Self { bouncer, gate, seen: Mutex::default() }
    }

    /// Runs for the life of the gateway.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.drive(), self.look());
    }

    async fn drive(&self) {
        loop {
            let label = Label::Lasting(format!("PgBouncer {}", self.bouncer.database).into());
            let Ok(ticket) = self.gate.enter(label, 0).await else {
                sleep(AGAIN).await;
                continue;
            };
            if !self.open(&ticket).await {
                // The grant ended before it was open. What may have been resumed is paused again.
                self.pause().await;
                continue;
            }
            self.note_wait(|waited| waited.is_some());
            self.while_open().await;
            self.note_wait(|_| true);
            self.pause().await;
        }
    }

    fn note_wait(&self, is_one: impl Fn(Option<Instant>) -> bool) {
        let mut seen = self.seen.lock().expect("no code panics while it holds this lock");
        if is_one(seen.waited) {
            seen.waited = Some(Instant::now());
        }
    }

    /// Sends clients to the ticket's owner, however long PgBouncer takes to be there; false when the grant ended.
    async fn open(&self, ticket: &Ticket) -> bool {
        loop {
            match self.point(ticket.owner).await {
                Ok(()) => {
                    tracing::info!(database = self.bouncer.name, owner = %ticket.owner, "PgBouncer is open");
                    return true;
                }
                Err(why) => {
                    tracing::warn!(database = self.bouncer.name, owner = %ticket.owner, why, "PgBouncer is not open yet");
                }
            }
            sleep(AGAIN).await;
            if ticket.is_stale() || self.gate.mode() == Mode::Held {
                return false;
            }
        }
    }

    /// Where clients go, and that they may.
    async fn point(&self, owner: Side) -> Result<(), String> {
        let bouncer = &self.bouncer;
        let console = Console::open(bouncer, ANSWER).await?;
        let entry = console.entry(&bouncer.database).await?;
        let backend = bouncer.backend(owner);
        if entry.as_ref().is_none_or(|entry| !entry.is_at(backend)) {
            let wanted = file::text(bouncer, backend);
            let path = bouncer.file.clone();
            let written = tokio::task::spawn_blocking(move || file::write(&path, &wanted)).await;
            written.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            // Nobody may be sent on while some go here and some go there.
            if entry.as_ref().is_some_and(|entry| !entry.paused) {
                console.pause(&bouncer.database).await?;
            }
            console.say("RELOAD").await?;
            let entry = console.entry(&bouncer.database).await?;
            if entry.is_none_or(|entry| !entry.is_at(backend)) {
                return Err(format!(
                    "it does not read {}: put `%include {0}` at the end of its configuration",
                    bouncer.file.display()
                ));
            }
            console.say(&format!("RECONNECT {}", console::name(&bouncer.database))).await?;
        }
        if console.entry(&bouncer.database).await?.is_some_and(|entry| entry.paused) {
            // One login that fails now would keep all clients waiting for as long as this says: 15 s where nobody changed it. It is
            // PgBouncer's own again with the next RELOAD.
            console.say(LOGIN_RETRY).await?;
            console.say(&format!("RESUME {}", console::name(&bouncer.database))).await?;
        }
        Ok(())
    }

    /// Until the grant says hold, or its lease ends.
    async fn while_open(&self) {
        loop {
            let changed = self.gate.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.gate.mode() == Mode::Held {
                return;
            }
            match self.gate.lease_left_ms() {
                None => changed.await,
                Some(left) => {
                    let _renewed = tokio::time::timeout(Duration::from_millis(left + 1), changed).await;
                }
            }
        }
    }

    /// Until no transaction is under way and none begins, or the grant is open again. Whoever waits meanwhile waits in PgBouncer.
    async fn pause(&self) {
        loop {
            let pausing = async {
                let console = Console::open(&self.bouncer, ANSWER).await?;
                match console.entry(&self.bouncer.database).await? {
                    // Paused already, by an attempt that was given up: that says nothing of who is inside.
                    Some(entry) if entry.paused && entry.servers == 0 => Ok(()),
                    Some(entry) if entry.paused => {
                        console.say(&format!("RESUME {}", console::name(&self.bouncer.database))).await?;
                        console.pause(&self.bouncer.database).await
                    }
                    _ => console.pause(&self.bouncer.database).await,
                }
            };
            let opened = async {
                loop {
                    let changed = self.gate.changed.notified();
                    tokio::pin!(changed);
                    changed.as_mut().enable();
                    if self.gate.mode() != Mode::Held {
                        return;
                    }
                    changed.await;
                }
            };
            let paused: Result<(), String> = tokio::select! {
                paused = pausing => paused,
                () = opened => return,
            };
            match paused {
                Ok(()) => return,
                Err(why) => tracing::warn!(database = self.bouncer.name, why, "PgBouncer does not pause"),
            }
            sleep(AGAIN).await;
        }
    }

    /// Counts and health, once a second.
    async fn look(&self) {
        let mut before = Some(String::new());
        loop {
            let looked = match check(&self.bouncer).await {
                Ok(()) => self.look_once().await,
                Err(why) => Err(why.text),
            };
            let said = looked.as_ref().err().cloned();
            if said != before {
                match &said {
                    Some(why) => tracing::warn!(database = self.bouncer.name, why, "PgBouncer is not well"),
                    None => tracing::info!(database = self.bouncer.name, "PgBouncer is well"),
                }
                before = said;
            }
            let sides = tokio::join!(reaches(&self.bouncer.source), reaches(&self.bouncer.target));
            self.seen.lock().expect("no code panics while it holds this lock").healthy =
                [sides.0, sides.1].map(|is_reached| Some(is_reached && looked.is_ok()));
            sleep(LOOK).await;
        }
    }

    async fn look_once(&self) -> Result<(), String> {
        let console = Console::open(&self.bouncer, ANSWER).await?;
        let stats = console.stats(&self.bouncer.database).await?;
        let settings = console.settings().await?;
        let period = settings.get("stats_period").and_then(|text| text.parse().ok()).unwrap_or(60);
        let period = Duration::from_secs(period);
        let mut seen = self.seen.lock().expect("no code panics while it holds this lock");
        seen.transactions = stats.transactions;
        let now = Instant::now();
        // PgBouncer counts the time in its queue, too. What waited for us in an attempt that was given up must not keep the next one away:
        // the period it ended in, and the one before, do not count.
        if self.gate.mode() == Mode::Held || seen.waited.is_some_and(|waited| waited + period * 2 > now) {
            return Ok(());
        }
        let slowest = stats.mean_micros / 1e3 * SLOWER_THAN_MEAN;
        let stands = seen.slowest_ms.is_some_and(|(at, known)| known > slowest && at + SEEN_WITHIN > now);
        if !stands && stats.transactions > 0 {
            seen.slowest_ms = Some((now, slowest));
        }
        Ok(())
    }

    pub fn status(&self) -> ServiceStatus {
        let seen = self.seen.lock().expect("no code panics while it holds this lock");
        let side = |healthy| SideStatus { healthy, ..SideStatus::default() };
        ServiceStatus {
            name: self.bouncer.name.clone(),
            listen: format!("PgBouncer {}", self.bouncer.database),
            source: side(seen.healthy[0]),
            target: side(seen.healthy[1]),
            writes_total: seen.transactions,
            write_p999_ms: seen.slowest_ms.map(|(_, slowest)| slowest),
            ..ServiceStatus::default()
        }
    }
}
