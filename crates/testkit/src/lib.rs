//! Everything a move is tried and shown on: embedded clouds (an S3 server with policies and a change feed, and the sample
//! shop on it), a shim that adds distance, live traffic, and a checker that trusts none of the movers.
//! Nothing here takes part in a real migration, and nothing here uses the code it is meant to check.

pub mod cloud;
pub mod delay;
mod listen;
pub mod load;
mod moment;
pub mod oracle;
pub mod s3;
pub mod shop;
mod wire;
pub mod world;

pub use moment::monotonic_nanos;
