//! The journal and the register on a real disk: random histories with torn tails, edited files, races, versions, copies.

#![allow(clippy::unwrap_used)] // helpers of tests are tests; clippy exempts only the test functions themselves

mod histories;
mod keeping;
mod races;
mod walk;
