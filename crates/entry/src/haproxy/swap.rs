//! Other addresses for running servers, without a reload, without a failed request and without a connection that still leads to
//! the former place. HAProxy closes idle connections when an address changes, but one that is under a request in that moment is
//! used again afterwards; so the servers are emptied first, while a server of our own takes their requests.

use super::runtime::Runtime;
use crate::EntryError;
use crate::process;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) const SPARE: &str = "rehome-spare";
/// How long requests under way may take to finish where they began.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(super) struct Move {
    pub server: String,
    /// Where it leads now, if that is known.
    pub from: Option<SocketAddr>,
    pub to: SocketAddr,
}

/// Gives these servers of a backend their new addresses; what to know of it comes back as sentences. Killed in between it can be
/// called again: the spare server is found and used.
pub(super) async fn swap(
    runtime: &Runtime,
    backend: &str,
    moves: &[Move],
) -> Result<Vec<String>, EntryError> {
    let Some(first) = moves.first() else { return Ok(Vec::new()) };
    let mut notes = Vec::new();
    spare_at(runtime, backend, first.to).await?;
    for one in moves {
        runtime.set_state(backend, &one.server, "drain").await?;
    }
    let left = drained(runtime, backend, moves).await?;
    if left > 0 {
        notes.push(format!("{left} requests of {backend} were still under way after {DRAIN_PATIENCE:?}"));
    }
    for one in moves {
        runtime.move_server(backend, &one.server, one.to).await?;
        runtime.set_state(backend, &one.server, "ready").await?;
    }
    if !retired(runtime, backend).await? {
        notes.push(format!("{backend}/{SPARE} is left over in maintenance; it goes at the next reload"));
    }
    let names: Vec<&str> = moves.iter().map(|one| one.server.as_str()).collect();
    notes.push(format!(
        "{} of {backend} got a new address at runtime: no reload, no connection of a client was closed",
        names.join(", ")
    ));
    notes.extend(left_behind(runtime, moves).await?);
    Ok(notes)
}

/// A server of ours at the new address, ready.
async fn spare_at(runtime: &Runtime, backend: &str, at: SocketAddr) -> Result<(), EntryError> {
    let place = format!("{backend}/{SPARE}");
    if !runtime.of(backend).await?.iter().any(|one| one.server == SPARE) {
        let answer = runtime.command(&["add", "server", &place, &at.to_string(), "weight", "100"]).await?;
        if !runtime.of(backend).await?.iter().any(|one| one.server == SPARE) {
            return Err(EntryError::unfit(
                format!("haproxy takes no further server for {backend}: {answer}"),
                "use `--by reload` (a static balance algorithm takes no servers at runtime)",
            ));
        }
    } else {
        runtime.move_server(backend, SPARE, at).await?;
    }
    runtime.set_state(backend, SPARE, "ready").await
}

/// Waits until nothing is under way at these servers; what is left after that.
async fn drained(runtime: &Runtime, backend: &str, moves: &[Move]) -> Result<u64, EntryError> {
    let begun = Instant::now();
    loop {
        let running = runtime.of(backend).await?;
        let is_moved = |name: &str| moves.iter().any(|one| one.server == name);
        let left =
            running.iter().filter(|one| is_moved(&one.server)).map(|one| one.current + one.queued).sum();
        if left == 0 || begun.elapsed() > DRAIN_PATIENCE {
            return Ok(left);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Takes the spare server out again, once it has nothing to do. Whether it is gone.
async fn retired(runtime: &Runtime, backend: &str) -> Result<bool, EntryError> {
    let spare = Move { server: SPARE.into(), from: None, to: SocketAddr::from(([0, 0, 0, 0], 0)) };
    runtime.set_state(backend, SPARE, "drain").await?;
    drained(runtime, backend, std::slice::from_ref(&spare)).await?;
    runtime.set_state(backend, SPARE, "maint").await?;
    let begun = Instant::now();
    while begun.elapsed() < CLOSE_PATIENCE {
        runtime.command(&["del", "server", &format!("{backend}/{SPARE}")]).await?;
        if !runtime.of(backend).await?.iter().any(|one| one.server == SPARE) {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(false)
}

/// Connections that still lead to the former addresses, as the system sees them.
async fn left_behind(runtime: &Runtime, moves: &[Move]) -> Result<Vec<String>, EntryError> {
    let Some(pid) = runtime.info().await?.pid else { return Ok(Vec::new()) };
    let mut former: Vec<SocketAddr> = moves.iter().filter_map(|one| one.from).collect();
    former.sort();
    former.dedup();
    let begun = Instant::now();
    loop {
        let counts: Vec<Option<u64>> =
            former.iter().map(|address| process::connections_to(&[pid], *address)).collect();
        let left: u64 = counts.iter().flatten().sum();
        if counts.iter().any(Option::is_none) {
            let text = "whether connections to the former address are left could not be seen (/proc of HAProxy's process)";
            return Ok(vec![text.into()]);
        }
        if left == 0 {
            return Ok(Vec::new());
        }
        if begun.elapsed() > CLOSE_PATIENCE {
            return Ok(vec![format!(
                "{left} connections still lead to the former address and may carry requests there (persistence, WebSockets): \
                 arm no switch before they are gone, or use `--by reload`"
            )]);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
