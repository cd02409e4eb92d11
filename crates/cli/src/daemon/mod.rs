//! The run's background process: carries an engine (or the guard), owns its unix socket, and implements the engine's ports.
//! It decides nothing: every command that arrives is handed to the engine.

pub mod client;
pub mod faults;
pub mod gateways;
pub mod launch;
pub mod log;
pub mod ports;
pub mod process;
pub mod recover;
pub mod socket;
pub mod wire;
pub mod world;
