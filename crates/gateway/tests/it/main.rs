//! The gateway against real sockets: upstreams in process, raw TCP clients, hyper clients, and `curl` where it is installed.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod control;
mod entrance;
mod http;
mod process;
mod reads;
mod support;
mod switch;
mod tls;
mod writes;
