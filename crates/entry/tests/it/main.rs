//! The drivers against the real programs, started by the tests on ports of their own.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on ends, and says why")]

mod dns;
mod haproxy;
mod nginx;
mod support;
