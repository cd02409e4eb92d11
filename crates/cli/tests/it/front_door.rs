//! The same for clients that come by the gateway's own door: in one connection from before the move until after it was taken back.

use crate::bouncer::{Way, whole};
use crate::demo::times;

#[test]
fn there_and_back_under_pgbench() {
    for _ in 0..times() {
        whole("writes", Way::Front, "simple");
    }
}

/// Statements that were prepared before the move are run after it.
#[test]
fn there_and_back_with_prepared_statements() {
    for _ in 0..times() {
        whole("writes", Way::Front, "prepared");
    }
}

#[test]
fn there_and_back_with_logins_shut_out() {
    for _ in 0..times() {
        whole("logins", Way::Front, "prepared");
    }
}
