//! The simulated part against the contract suite, and both against faults: a suite that cannot fail proves nothing.

mod contract;
mod sim;
