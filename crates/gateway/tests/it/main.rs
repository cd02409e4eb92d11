//! The gateway against real sockets: upstreams in process, raw TCP clients, hyper clients, and `curl` where it is installed.

mod control;
mod http;
mod reads;
mod support;
mod switch;
mod writes;
