//! The gateway against real sockets: upstreams in process, raw TCP clients, hyper clients, and clients nobody here wrote.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

mod abuse;
mod control;
mod entrance;
mod foreign;
mod frames;
mod front_door;
mod handover;
mod http;
mod process;
mod reads;
mod remote;
mod shadow;
mod smuggling;
mod strict;
mod support;
mod switch;
mod tls;
mod upstreams;
mod wire;
mod writes;
