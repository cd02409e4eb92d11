//! A part is one piece of the application that moves: a bucket, a database, a tree of files, a training job.
//! This crate owns the life every part lives (the [`Part`] trait), the words it is described with (sides, flows,
//! positions, lag), the contract suite every driver passes, and a simulated part with injectable faults.
//! It never knows what a part is made of, never prints, and opens no file and no socket.

pub mod contract;
mod error;
mod life;
pub mod measure;
pub mod meter;
pub mod sim;
pub mod traffic;
mod words;

pub use error::{Error, ErrorKind, Result, Retry};
pub use life::{FollowReport, Part, Progress};
pub use words::*;
