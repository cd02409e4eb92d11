//! The migration file: its shape, its validation, its JSON Schema, and secrets as references.
//! It never reads a secret before somebody asks for that one, never shows one, and never connects anywhere.

mod check;
mod load;
mod network;
mod problem;
mod schema;
mod secret;
mod shape;
mod template;
mod tree;

pub use load::{Loaded, MAX_FILE_BYTES};
pub use network::Network;
pub use problem::{Level, Problem, SpecError};
pub use schema::schema_json;
pub use secret::{SecretCheck, SecretError, SecretText};
pub use shape::*;
pub use template::{TEMPLATE, template};
