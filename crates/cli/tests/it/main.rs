//! The command line as a user meets it: stdout, stderr and exit status of the real binary, with real servers behind it.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on ends, and says why")]

mod bad_input;
mod bouncer;
mod crash;
mod cut;
mod db;
mod demo;
mod dns;
mod documents;
mod entry;
mod foreign;
mod front;
mod front_door;
mod gateways;
mod harness;
mod keep;
mod keepalived;
mod orders;
mod sabotage;
