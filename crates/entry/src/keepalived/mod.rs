//! Keepalived in front of a pair of gateways: its configuration, the check it asks, and a hand-over that is planned. Which node has
//! the address is never a fence and decides nothing: whichever gateway is asked proxies to the same owner, or holds.

mod check;
mod files;
mod hand_over;
mod install;
mod machine;
mod pair;
mod render;
mod words;

pub use check::{Dead, answers};
pub use hand_over::{Moved, Undecided, put_back_if_left, release};
pub use install::{Change, FileChange, Place, Setting, apply, plan_install, plan_removal};
pub use machine::{arp_settings, has_addresses};
pub use pair::{Node, Pair, SharedAddress, Wish};
pub use render::{MARK, config, hand_over_file, sysctl};
pub use words::Installed;
