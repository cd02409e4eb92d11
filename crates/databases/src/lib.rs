//! Databases: what they hold and what stands in the way of moving them (`assess`), and whether two of them hold the same (`verify`).
//! Each engine's own replication does the moving; this crate never writes one, never prints, and never logs a statement.

mod address;
pub mod postgres;
mod trust;

pub use address::{Address, AddressError, Engine, Tls};
