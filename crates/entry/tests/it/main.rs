//! The drivers against the programs they drive, started by the tests themselves.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod dns;
