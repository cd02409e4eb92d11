//! The engine of one migration: life, states, gates, steps, reconcilers, recovery, and the guard.
//! It never prints and never opens a socket: the world is behind [`rehome_part::Part`] and [`ports`]. What it knows is in
//! the journal (`rehome_journal`); `status`, `report` and the JSON stream are views of that, not of this crate.
//!
//! ```ignore
//! let engine = Engine::create(setup, "run_1", "shop", world).await?; // or Engine::open(setup, world)
//! let end = engine.run(commands, stop).await?;                        // until final, stopped, or the lease is lost
//! ```
//!
//! The way through a run, a line each:
//! - [`engine`](Engine) is the dispatcher: it owns the state, asks the pure `decide` what is next, and acts.
//! - `steps` are finite: `apply`, `undo`, `observe`; `saga` journals an intent before each and proves it after.
//! - `switch` strings them together; `recovery` goes on after a death; [`guard`] does the same from a second process.
//! - `units` work and report: copy, follow, verify, freshness. They never write the journal.

mod command;
mod core;
mod decide;
mod decision;
mod ending;
mod engine;
mod error;
mod figures;
mod gates;
pub mod guard;
mod keeper;
pub mod ports;
mod preparation;
mod reads;
mod recent;
mod reconcile;
mod recovery;
mod saga;
mod settings;
mod shadow;
mod soak;
mod steps;
mod switch;
mod task;
mod units;

pub use command::{ACCEPTABLE, Command, CommandError, CommandMessage, CommandOutcome};
pub use decision::{DecisionAnswer, decision};
pub use engine::Engine;
pub use error::{EngineError, RunEnd};
pub use ports::{Clock, EntryPort, Faults, Gateways, GuardPort, NoEntry, NoFaults, SystemClock, Workers};
pub use rehome_journal::Goal;
pub use settings::{ServiceInfo, SessionRule, Settings, Setup, World};
