//! The engine against a simulated world: whole lives, the four saga loops over every step, takeovers, and late engines.

mod lives;
mod rig;
mod sagas;
mod takeover;
