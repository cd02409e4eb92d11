//! Databases: what they hold and what stands in the way of moving them (`assess`), whether two of them hold the same (`verify`), and
//! the move itself as a part, a folder per engine. Each engine's own replication does the moving; this crate never writes one, never
//! prints, and never logs a statement.

mod address;
mod end;
mod facts;
mod findings;
pub mod mysql;
mod open;
pub mod postgres;
pub mod redis;
mod trust;
pub mod verify;

pub use address::{Address, AddressError, Engine, Tls};
pub use end::{End, Ends, FenceMeans, Login};
pub use facts::Facts;
pub use open::{Secrets, doctor, part};
pub use trust::trusted_by;
