//! What both ends of an HTTP/1.1 message have in common: lines of a head, where a body ends, and writing one. Knows neither clients
//! nor upstreams, and decides nothing about a connection.

mod lines;
mod outgoing;
mod reading;
mod remaining;
mod upgraded;

pub(crate) use lines::{Field, Framing, Lines, MOST_HEADERS, Unclear};
pub(crate) use outgoing::{Ending, Outgoing, Stopped, put_line};
pub(crate) use reading::{SMALLEST_READ, poll_fill, poll_read_some};
pub(crate) use remaining::{Remaining, Taken};
pub(crate) use upgraded::Upgraded;

/// The largest head of a request or an answer.
pub(crate) const MAX_HEAD: usize = 64 << 10;
