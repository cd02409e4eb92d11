//! PostgreSQL, 12 to 18.

mod assess;
mod connect;
mod quote;
mod tables;
pub mod verify;

pub use assess::{Assessed, Watched, assess, fits};
pub use connect::{Session, connect};

/// The oldest and the newest major version this was written for.
pub const VERSIONS: std::ops::RangeInclusive<i32> = 12..=18;
