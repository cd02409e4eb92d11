//! MySQL and MariaDB.

mod connect;
mod quote;
mod tables;
pub mod verify;

pub use connect::{Flavour, Session, connect};
