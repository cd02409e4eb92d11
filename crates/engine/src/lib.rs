//! The engine of one migration: life, states, gates, steps, reconcilers, recovery.
//! It never prints and never opens a socket: the world is behind [`rehome_part::Part`] and [`ports`].

pub mod ports;
