//! Objects: stores behind one narrow trait, and the mover that lists, compares, copies, follows, fences and verifies them.
//! The stores never retry for long and never decide; the mover never speaks a vendor's dialect.

pub mod store;
