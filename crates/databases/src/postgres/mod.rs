//! PostgreSQL, 12 to 18.

mod assess;
mod beat;
mod connect;
mod copy;
mod dump;
mod fence;
mod follow;
mod keys;
mod lsn;
mod own;
mod part;
mod pgoutput;
mod quote;
mod recent;
mod schema;
mod sequences;
mod sessions;
mod stream;
mod sweep;
mod tables;
mod verify;

pub use assess::{Assessed, Watched, assess, fits};
pub use connect::{May, Session, connect, connect_to};
pub use part::PostgresPart;

/// The oldest and the newest major version this was written for.
pub const VERSIONS: std::ops::RangeInclusive<i32> = 12..=18;
