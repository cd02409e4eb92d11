//! The one place where the grant changes: computes the next state, makes it durable, publishes it to the gate, in the order that
//! is safe for each. Knows no sockets; the control server and the asker call it.

use crate::clock::{BootClock, ProcessClock};
use crate::control::{Held, Mode, Refusal, Status};
use crate::gate::Gate;
use crate::grant::{Grant, Lease, Refused, Saved};
use crate::pgbouncer::Driver;
use crate::postgres::Door;
use crate::service::Service;
use crate::shed::Shed;
use crate::state_file::StateFile;
use rehome_part::{Epoch, Side, Token};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Notify};

#[derive(Debug)]
pub(crate) struct Core {
    pub name: String,
    pub clock: ProcessClock,
    pub boot: BootClock,
    pub gate: Arc<Gate>,
    /// With the address each one really listens on.
    pub services: Vec<(Arc<Service>, String)>,
    pub bouncers: Vec<Arc<Driver>>,
    pub doors: Vec<Arc<Door>>,
    /// Connections to the other side will be needed at once.
    pub warm: Notify,
    pub shed: Arc<Shed>,
    file: Arc<StateFile>,
    kept: Mutex<Kept>,
}

/// What this gateway lets clients through to.
#[derive(Debug)]
pub(crate) struct Behind {
    /// With the address each one really listens on.
    pub services: Vec<(Arc<Service>, String)>,
    pub bouncers: Vec<Arc<Driver>>,
    pub doors: Vec<Arc<Door>>,
}

#[derive(Debug)]
struct Kept {
    grant: Grant,
    /// What the file says; behind the grant only after a failed write.
    on_disk: Saved,
}

impl Core {
    pub fn new(
        name: String,
        (clock, boot): (ProcessClock, BootClock),
        gate: Arc<Gate>,
        Behind { services, bouncers, doors }: Behind,
        shed: Arc<Shed>,
        file: StateFile,
        grant: Grant,
    ) -> Self {
        let kept = Mutex::new(Kept { on_disk: grant.saved.clone(), grant });
        Self {
            name,
            clock,
            boot,
            gate,
            services,
            bouncers,
            doors,
            warm: Notify::new(),
            shed,
            file: Arc::new(file),
            kept,
        }
    }

    /// A lease that begins now.
    pub fn lease(&self, millis: u64) -> Lease {
        Lease { now: self.boot.micros(), millis }
    }

    /// Changes the grant. Holding acts at once; everything else acts after it is durable.
    ///
    /// # Errors
    /// What the change refuses, or [`Refusal::Failed`] when the epoch file cannot be written.
    pub async fn change(&self, step: impl FnOnce(&Grant) -> Result<Grant, Refused>) -> Result<(), Refused> {
        let mut kept = self.kept.lock().await;
        let next = step(&kept.grant)?;
        if next.mode == Mode::Held {
            self.gate.publish(&next);
            kept.grant = next.clone();
        }
        if next.saved != kept.on_disk {
            let (file, saved) = (self.file.clone(), next.saved.clone());
            let written = tokio::task::spawn_blocking(move || file.write(&saved)).await;
            let written = written.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            written.map_err(|error| {
                tracing::error!(%error, "cannot write the epoch file");
                (Refusal::Failed, format!("cannot write the epoch file: {error}"))
            })?;
            kept.on_disk = next.saved.clone();
        }
        if next.mode != Mode::Held {
            self.gate.publish(&next);
            kept.grant = next;
        }
        Ok(())
    }

    /// Makes the intent to write under the present epoch durable. True when it is and writes may go.
    pub async fn intend(&self) -> bool {
        let now = self.boot.micros();
        let intended = self.change(|grant| match grant.admits(now) {
            true => Ok(grant.intend()),
            false => Err((Refusal::NotArmed, "the grant ended".into())),
        });
        intended.await.is_ok()
    }

    pub async fn settle(&self, epoch: Epoch, owner: Side, token: Token) -> Result<(), Refused> {
        let settled = self.change(|grant| {
            let next = grant.settle(epoch, owner, token)?;
            if next.saved.epoch == grant.saved.epoch {
                return Ok(next);
            }
            for (service, _) in &self.services {
                service.settle();
            }
            // Writes that wait go at once, so their intent is recorded with the same stroke.
            Ok(if self.gate.line.has_waiting() { next.intend() } else { next })
        });
        settled.await?;
        tracing::info!(%epoch, %owner, "settled");
        Ok(())
    }

    /// Holds, then waits until nothing is in flight.
    pub async fn hold(
        &self,
        epoch: Epoch,
        patience: Duration,
        sessions: crate::control::SessionRule,
        token: Token,
    ) -> Result<Held, Refused> {
        use crate::control::SessionRule;
        let mut before = None;
        self.change(|grant| {
            before = Some(grant.clone());
            grant.hold(epoch, token)
        })
        .await?;
        match sessions {
            SessionRule::Wait => {}
            SessionRule::Close => self.gate.end_sessions(),
            SessionRule::Refuse if self.gate.sessions() == 0 => {}
            SessionRule::Refuse => {
                let undo = |grant: &Grant| match &before {
                    Some(before) if grant.saved.epoch == epoch && grant.saved.armed.is_some() => {
                        Ok(grant.unhold(before))
                    }
                    _ => Ok(grant.clone()),
                };
                self.change(undo).await?;
                let text = format!("{} sessions are open; writes go on", self.gate.sessions());
                return Err((Refusal::Sessions, text));
            }
        }
        if self.gate.quiet(patience).await {
            return Ok(self.gate.held());
        }
        let held = self.gate.held();
        if held.in_flight == 0 {
            return Err((Refusal::Sessions, format!("{} sessions did not end in time", held.sessions)));
        }
        let text = format!(
            "{} writes still in flight, the slowest for {} ms: {}",
            held.in_flight,
            held.slowest_ms,
            held.slow.join(", ")
        );
        Err((Refusal::InFlight, text))
    }

    /// Whom to ask what, if the decision must be asked for now.
    pub async fn question(&self) -> Option<Asking> {
        let kept = self.kept.lock().await;
        let grant = &kept.grant;
        if !grant.must_ask(self.boot.micros()) {
            return None;
        }
        Some(Asking {
            run: grant.saved.run.clone()?,
            epoch: grant.saved.epoch.next(),
            sockets: grant.saved.ask.clone(),
            secret: grant.saved.ask_secret.clone(),
        })
    }

    pub async fn status(&self) -> Status {
        let saved = self.kept.lock().await.grant.saved.clone();
        let services = self.services.iter().map(|(service, listen)| service.status(listen.clone()));
        let services = services.chain(self.bouncers.iter().map(|bouncer| bouncer.status()));
        let services = services.chain(self.doors.iter().map(|door| door.status()));
        Status {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            now: self.clock.now(),
            run: saved.run,
            epoch: saved.epoch,
            owner: saved.owner,
            mode: self.gate.mode(),
            highest_token: saved.highest_token,
            intent: saved.intent,
            held: self.gate.held(),
            services: services.collect(),
        }
    }
}

/// A question to those who may know the decision.
#[derive(Debug)]
pub(crate) struct Asking {
    pub run: String,
    pub epoch: Epoch,
    pub sockets: Vec<PathBuf>,
    pub secret: String,
}
