//! The migration file: its shape, its validation, its JSON Schema, and secrets as references.
//! It never reads a secret before somebody asks for that one, and never connects anywhere.

mod shape;

pub use shape::*;
