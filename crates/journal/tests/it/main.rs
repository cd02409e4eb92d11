//! The journal and the register on a real disk: random histories with torn tails, edited files, races, versions, copies.

mod histories;
mod keeping;
mod races;
mod walk;
