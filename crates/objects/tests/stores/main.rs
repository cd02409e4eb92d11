//! Drivers against their contract: in memory, on this machine's file system, and over the wire to S3 servers that nobody
//! here wrote, started on loopback ports that the kernel chooses.

mod faults;
mod folder;
mod memory;
mod opendal;
mod servers;
mod vendors;
