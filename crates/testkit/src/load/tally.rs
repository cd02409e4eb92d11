//! What clients saw: every write one by one, and counts, times and failures of everything.

use crate::monotonic_nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Details kept of failures and violations each; all are counted.
const MOST_DETAILS: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Create,
    Update,
    Delete,
}

/// What a client knows of its write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Carried out, says the shop of `cloud`.
    Acknowledged { cloud: String },
    /// Certainly not carried out: it never reached a shop, or the shop refused the request itself.
    Refused { status: u16, why: String },
    /// Carried out once or not at all.
    Unknown { why: String },
}

/// One write of one client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    pub client: String,
    /// Counts the client's writes; sent with the write, never used twice.
    pub number: u64,
    pub operation: Operation,
    /// The order it is about; for [`Operation::Create`] known only when acknowledged.
    pub order: Option<String>,
    /// [`monotonic_nanos`] before the first byte was sent, and after the last was received.
    pub started_nanos: u64,
    pub ended_nanos: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A request that did not end as its client wished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub at_nanos: u64,
    pub started_nanos: u64,
    pub client: String,
    /// `GET /media/…`
    pub request: String,
    pub took_ms: u64,
    /// `None`: no answer.
    pub status: Option<u16>,
    pub why: String,
}

/// The state of a running load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    pub requests: u64,
    pub failed: u64,
    pub writes_acknowledged: u64,
    pub writes_refused: u64,
    pub writes_unknown: u64,
    /// Answers by the shop that gave them.
    pub by_cloud: BTreeMap<String, u64>,
    pub read_your_writes_violations: u64,
    /// The longest any client waited for a write or a read so far.
    pub longest_write_ms: f64,
    pub longest_read_ms: f64,
    /// Connections that were refused and tried again; nothing of a request had been sent.
    pub connections_refused: u64,
}

/// Times of answered requests in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The whole record of a load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadLog {
    pub counts: Counts,
    /// In the order in which they ended.
    pub writes: Vec<Write>,
    /// The first [`Failure`]s; [`Counts::failed`] counts all.
    pub failures: Vec<Failure>,
    /// The first reads that showed something older than their client had been promised, one sentence each.
    pub stale: Vec<String>,
    /// The first pictures that were not what they should be, and clients that broke.
    pub wrong: Vec<String>,
    pub write_times: Quantiles,
    pub read_times: Quantiles,
    /// The worst wait of each client that wrote, and of each that read.
    pub longest_write_ms_by_client: BTreeMap<String, f64>,
    pub longest_read_ms_by_client: BTreeMap<String, f64>,
}

/// A finished request, for the tally.
#[derive(Debug)]
pub(super) struct Seen {
    pub client: String,
    pub request: String,
    pub is_write: bool,
    pub started_nanos: u64,
    pub ended_nanos: u64,
    pub cloud: Option<String>,
    /// `Some` when it failed: status and reason.
    pub failure: Option<(Option<u16>, String)>,
}

#[derive(Debug)]
pub(super) struct Tally {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: LoadLog,
    write_ms: Vec<f32>,
    read_ms: Vec<f32>,
    file: File,
}

impl Tally {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        let inner = Inner { log: LoadLog::default(), write_ms: Vec::new(), read_ms: Vec::new(), file };
        Ok(Self { inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        self.lock().log.counts.clone()
    }

    pub(super) fn request(&self, seen: Seen) {
        let Inner { log, write_ms, read_ms, .. } = &mut *self.lock();
        let took_ms = seen.ended_nanos.saturating_sub(seen.started_nanos) as f64 / 1e6;
        let (times, longest, by_client) = if seen.is_write {
            (write_ms, &mut log.counts.longest_write_ms, &mut log.longest_write_ms_by_client)
        } else {
            (read_ms, &mut log.counts.longest_read_ms, &mut log.longest_read_ms_by_client)
        };
        times.push(took_ms as f32);
        *longest = longest.max(took_ms);
        let own = by_client.entry(seen.client.clone()).or_default();
        *own = own.max(took_ms);
        log.counts.requests += 1;
        if let Some(cloud) = seen.cloud {
            *log.counts.by_cloud.entry(cloud).or_default() += 1;
        }
        if let Some((status, why)) = seen.failure {
            log.counts.failed += 1;
            if log.failures.len() < MOST_DETAILS {
                let (at_nanos, started_nanos) = (seen.ended_nanos, seen.started_nanos);
                let took_ms = took_ms as u64;
                log.failures.push(Failure {
                    at_nanos,
                    started_nanos,
                    client: seen.client,
                    request: seen.request,
                    took_ms,
                    status,
                    why,
                });
            }
        }
    }

    pub(super) fn write(&self, write: Write) {
        let mut inner = self.lock();
        let mut line = serde_json::to_vec(&write).expect("a write is plain data");
        line.push(b'\n');
        if let Err(error) = inner.file.write_all(&line) {
            tracing::error!(%error, "cannot append to the write log");
        }
        let counts = &mut inner.log.counts;
        match write.outcome {
            Outcome::Acknowledged { .. } => counts.writes_acknowledged += 1,
            Outcome::Refused { .. } => counts.writes_refused += 1,
            Outcome::Unknown { .. } => counts.writes_unknown += 1,
        }
        inner.log.writes.push(write);
    }

    pub(super) fn refused(&self, connections: u64) {
        self.lock().log.counts.connections_refused += connections;
    }

    /// A client was shown something older than what it had been told, or something else than it should be.
    pub(super) fn violation(&self, of_own_writes: bool, text: String) {
        let log = &mut self.lock().log;
        let details = if of_own_writes {
            log.counts.read_your_writes_violations += 1;
            &mut log.stale
        } else {
            &mut log.wrong
        };
        if details.len() < MOST_DETAILS {
            details.push(text);
        }
    }

    /// A client ended by a defect: its last write is missing from the record, so nothing about it can be said.
    pub(super) fn broken(&self, why: String) {
        let log = &mut self.lock().log;
        log.counts.failed += 1;
        log.wrong.push(format!("a client of the load broke: {why}"));
        let at_nanos = monotonic_nanos();
        log.failures.push(Failure {
            at_nanos,
            started_nanos: at_nanos,
            client: String::new(),
            request: String::new(),
            took_ms: 0,
            status: None,
            why,
        });
    }

    pub(super) fn finish(&self) -> LoadLog {
        let inner = &mut *self.lock();
        let mut log = std::mem::take(&mut inner.log);
        log.write_times = quantiles(&mut inner.write_ms);
        log.read_times = quantiles(&mut inner.read_ms);
        log
    }
}

fn quantiles(times: &mut [f32]) -> Quantiles {
    times.sort_by(f32::total_cmp);
    let at = |share: f64| {
        let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
        times.get(index).copied().map_or(0.0, f64::from)
    };
    Quantiles { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_many() {
        assert_eq!(quantiles(&mut []), Quantiles::default());
        assert_eq!(quantiles(&mut [3.0]), Quantiles { p50_ms: 3.0, p99_ms: 3.0, max_ms: 3.0 });
        let mut hundred: Vec<f32> = (1..=100u8).rev().map(f32::from).collect();
        assert_eq!(quantiles(&mut hundred), Quantiles { p50_ms: 50.0, p99_ms: 99.0, max_ms: 100.0 });
    }
}
