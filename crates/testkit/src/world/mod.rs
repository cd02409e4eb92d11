//! The world a demo or a test moves: what is in it at the beginning, its processes, and the migration file for it.

mod seed;

pub use seed::{Manifest, Profile, Seeded, seed};
