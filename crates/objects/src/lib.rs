//! Objects: stores behind one narrow trait, and the mover that lists, compares, copies, follows, fences and verifies them.
//! The stores never retry for long and never decide; the mover never speaks a vendor's dialect.

mod assess;
mod copy;
mod doctor;
mod fence;
mod follow;
pub(crate) mod http;
mod listing;
mod mover;
mod open;
mod part;
pub mod store;
mod sweep;
mod verify;

pub use copy::{CopyOptions, CopySummary, copy};
pub use doctor::doctor;
pub use fence::{FenceHook, FenceMeans};
pub use follow::{Change, Feed, HookFeed, Page};
pub use mover::{RetryPolicy, Settings};
pub use open::{Secrets, part, part_with};
pub use part::{ObjectsPart, Stores};
