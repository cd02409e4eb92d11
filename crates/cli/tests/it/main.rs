//! The command line as a user meets it: stdout, stderr and exit status of the real binary, with real servers behind it.

mod bad_input;
mod crash;
mod demo;
mod documents;
mod foreign;
mod harness;
mod sabotage;
