//! What stands in front of the gateways and is not ours: nginx, HAProxy, Keepalived, DNS. A folder per driver; each reads what is
//! there, proposes a change, applies it, proves it and can take it back.
//!
//! Nothing here is ever a fence or a decision: who owns the writes is the gateways' and the engine's business. A driver never
//! prints, and changes nothing that it did not show before.

pub mod error;
pub mod keepalived;
pub mod program;

pub use error::EntryError;
