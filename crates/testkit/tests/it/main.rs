//! The test kit tried against itself, and against clients that no one here wrote.

// Helpers of tests are tests: clippy's exemption reaches only functions that are marked.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod cloud;
mod common;
mod distance;
mod foreign;
mod namespaces;
mod traffic;
mod worlds;
