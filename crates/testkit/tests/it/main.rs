//! The test kit tried against itself, and against clients that no one here wrote.

mod cloud;
mod common;
mod distance;
mod foreign;
mod traffic;
mod worlds;
