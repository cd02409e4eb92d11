//! The gateway: an HTTP reverse proxy that splits reads, sends writes to the owner, and can hold writes for a switch.
//! It never decides who the owner is, never opens the journal, and keeps serving when the engine is dead.

pub mod client;
mod config;
pub mod control;
mod split;

pub use config::{Config, GatewayError, Sabotage};
