//! The record of one migration run: `journal.db` (events, steps, the engine's lease) and `decision.db` (the register
//! that says who owns each epoch). Append-only; the only writer is whoever holds the lease with the newest token.
//! It has no effects outside its two files and their copy, takes no decision, and never prints.
//!
//! - [`Journal`]: the writer. Every append runs the pure [`State::next`] and checks the lease in the same transaction.
//! - [`Register`]: one compare-and-set row per epoch, the only point of no return.
//! - [`Reader`] and [`RunView`]: what `status`, `report` and the JSON stream show, without an engine.

mod boot;
mod copy;
mod database;
mod error;
mod event;
mod journal;
mod lease;
mod register;
mod state;
mod view;

pub use boot::{Now, boot_id, boot_millis, wall_millis};
pub use copy::CopyHealth;
pub use database::{FORMAT_MAJOR, FORMAT_MINOR};
pub use error::{Error, Result};
pub use event::{
    Actor, Baseline, Event, GateRecord, PartInfo, Prediction, Record, ServiceTraffic, ShadowReport,
    StateTime, SwitchOutcome, SwitchReport, Trouble, Verdict,
};
pub use journal::{DECISION_FILE, JOURNAL_FILE, Journal, NewRun, Options};
pub use lease::{GuardBeat, Lease};
pub use register::{Decision, Register};
pub use state::{Attempt, Ending, Goal, IllegalEvent, Phase, Stage, State, StepState, step_key};
pub use view::{PartView, PhaseTime, Reader, RunView, ServiceView};
