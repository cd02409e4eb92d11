//! Drivers against their contract: in memory, on this machine's file system, and over the wire to S3 servers that nobody
//! here wrote, started on loopback ports that the kernel chooses.

#![allow(clippy::unwrap_used, reason = "a test that fails to set up has failed")]
#![allow(clippy::print_stderr, reason = "what is not tested is said loudly")]

mod faults;
mod folder;
mod memory;
mod opendal;
mod servers;
mod vendors;
