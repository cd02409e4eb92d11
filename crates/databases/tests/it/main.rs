//! Databases against real servers of this machine.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod assess;
mod contract;
mod replicated;
mod support;
mod tls;
mod verify;
