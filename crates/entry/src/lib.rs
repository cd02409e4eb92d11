//! What stands in front of the gateways and is not ours: nginx, HAProxy, Keepalived, DNS. A folder per driver; each reads what is
//! there, proposes a change, applies it, proves it and can take it back.
//!
//! Nothing here is ever a fence or a decision: who owns the writes is the gateways' and the engine's business. A driver never
//! prints, and changes nothing that it did not show before.

pub mod address;
pub mod change;
pub mod diff;
pub mod dns;
mod edit;
pub mod error;
pub mod files;
pub mod finding;
pub mod haproxy;
pub mod keepalived;
pub mod nginx;
mod probe;
mod process;
pub mod program;
pub mod quiet;
pub mod record;
pub mod service;

pub use error::EntryError;
