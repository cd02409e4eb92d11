//! The engine against a simulated world: whole lives, the four saga loops over every step, takeovers, and late engines.

#![allow(clippy::unwrap_used)] // helpers of tests are tests; clippy exempts only the test functions themselves

mod comparing;
mod lives;
mod rig;
mod sagas;
mod takeover;
