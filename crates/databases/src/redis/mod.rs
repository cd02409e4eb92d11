//! Redis, 6.0 to 7.4, one server with all its databases: its own replication moves it, and goes the other way after the switch.

mod assess;
mod connect;
mod fence;
mod follow;
mod info;
mod link;
mod memory;
mod part;
mod place;
mod rules;
mod sweep;
mod tap;
pub(crate) mod verify;
mod wire;

pub use assess::{Assessed, Watched, assess, fits};
pub use connect::{Session, connect};
pub use part::RedisPart;

/// The oldest and the newest version this was written for. Users came with 6.0: without them nobody can be kept out.
pub const VERSIONS: std::ops::RangeInclusive<(u32, u32)> = (6, 0)..=(7, 4);

/// Our own keys begin with this; an application has none such.
const RESERVED: &str = "rehome:";
