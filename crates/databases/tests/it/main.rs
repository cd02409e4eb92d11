//! Databases against real servers of this machine.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod assess;
mod contract;
mod cut;
mod moved;
mod mysql_assess;
mod mysql_contract;
mod mysql_copy;
mod mysql_fence;
mod mysql_switch;
mod mysql_tls;
mod mysql_verify;
mod mysql_world;
mod redis_assess;
mod redis_contract;
mod redis_part;
mod redis_switch;
mod redis_world;
mod replicated;
mod support;
mod tls;
mod verify;
mod versions;
