//! The gateway: an HTTP reverse proxy that splits reads, sends writes to the owner, and can hold writes for a switch.
//! It never decides who the owner is, never opens the journal, and keeps serving when the engine is dead.

mod access_log;
mod alarm;
mod asking;
mod body;
pub mod client;
mod clock;
mod commands;
mod config;
pub mod control;
mod conversation;
mod core;
mod descriptors;
mod exchange;
mod forward;
mod framing;
mod freshness;
mod gate;
mod grant;
mod headers;
mod health;
mod histogram;
mod hold;
mod limits;
mod listener;
mod metrics;
mod origin;
mod proxy_protocol;
mod remote;
mod route;
mod sabotage;
mod server;
mod service;
mod session;
mod shadow;
mod shed;
mod split;
mod state_file;
mod tls;
mod upstream;

pub use config::{Config, GatewayError, Sabotage};
pub use conversation::converse;
pub use health::{Probed, probe};
pub use limits::Patience;
pub use remote::RemoteGateway;
pub use server::{Drained, Running, start};
