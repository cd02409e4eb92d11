//! The drivers against the programs they drive, started by the tests themselves.

mod dns;
