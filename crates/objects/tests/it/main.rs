//! The mover against stores in memory that can be bent: copies, followers, the part's whole life.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod contract;
mod copying;
mod fencing;
mod following;
mod histories;
mod hook;
mod support;
mod whole;
