//! Listings as streams in byte order of the keys, whatever order the store gives them in, and two of them side by side.
//! Memory is constant at any count: a bounded channel for ordered stores, a spill-sort on disk for the others.

mod merge;
mod sort;

pub(crate) use merge::{Merge, Pair};

use crate::mover::RetryPolicy;
use crate::mover::state::State;
use crate::store::{Entry, Store};
use futures::StreamExt;
use rehome_part::{Error, ErrorKind, Result};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Keys of our own; they are not part of the application's data.
pub(crate) const RESERVED: &str = ".rehome/";
const ENTRIES_AHEAD: usize = 4_096;

pub(crate) fn is_reserved(key: &str) -> bool {
    key.starts_with(RESERVED)
}

/// How to list one side.
#[derive(Debug, Clone)]
pub(crate) struct Lister {
    pub store: Arc<dyn Store>,
    /// Set when a store that promised an ordered listing broke the promise; from then on its listings are sorted here.
    pub disordered: Arc<AtomicBool>,
    pub retry: RetryPolicy,
    /// Where runs are spilled.
    pub folder: PathBuf,
    /// Bytes of entries held before a run is spilled.
    pub sort_memory: usize,
    /// A bucket that does not exist lists as an empty one.
    pub missing_is_empty: bool,
    /// Where names that the store cannot give us are written down as losses.
    pub state: Arc<State>,
}

/// Entries in byte order of their keys, each key once.
#[derive(Debug)]
pub(crate) struct Sorted {
    entries: mpsc::Receiver<Result<Entry>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Sorted {
    pub async fn next(&mut self) -> Option<Result<Entry>> {
        self.entries.recv().await
    }
}

impl Drop for Sorted {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Lister {
    fn is_ordered(&self) -> bool {
        self.store.capabilities().sorted_listing && !self.disordered.load(Ordering::Relaxed)
    }

    /// Lists everything anew.
    pub fn list(&self) -> Sorted {
        let (sender, entries) = mpsc::channel(ENTRIES_AHEAD);
        let this = self.clone();
        if self.is_ordered() {
            let task = tokio::spawn(async move { this.read(&sender, true).await });
            return Sorted { entries, tasks: vec![task] };
        }
        let (raw, unsorted) = mpsc::channel(ENTRIES_AHEAD);
        let (folder, memory) = (self.folder.clone(), self.sort_memory);
        let sorting = tokio::task::spawn_blocking(move || sort::sort(unsorted, &sender, &folder, memory));
        let reading = tokio::spawn(async move { this.read(&raw, false).await });
        Sorted { entries, tasks: vec![reading, sorting] }
    }

    /// Sends entries as the store gives them. A listing that breaks off goes on after the last key (ordered stores) or from
    /// the start (others; the sorter drops what comes twice).
    async fn read(&self, sender: &mpsc::Sender<Result<Entry>>, ordered: bool) {
        let mut last: Option<String> = None;
        let mut failures = 0;
        'again: loop {
            let mut stream = self.store.list("", if ordered { last.as_deref() } else { None });
            while let Some(item) = stream.next().await {
                match item {
                    Ok(entry) => {
                        failures = 0;
                        if ordered {
                            match last.as_ref().map(|last| entry.key.cmp(last)) {
                                Some(std::cmp::Ordering::Equal) => continue,
                                Some(std::cmp::Ordering::Less) => {
                                    self.disordered.store(true, Ordering::Relaxed);
                                    let _ = sender.send(Err(self.out_of_order())).await;
                                    return;
                                }
                                _ => last = Some(entry.key.clone()),
                            }
                        }
                        if sender.send(Ok(entry)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) if error.is_temporary() && failures + 1 < self.retry.attempts => {
                        failures += 1;
                        tracing::debug!(%error, failures, "listing again");
                        tokio::time::sleep(self.retry.wait(failures)).await;
                        continue 'again;
                    }
                    Err(error) if error.kind == ErrorKind::NotFound && self.missing_is_empty => return,
                    // One name that cannot be carried; the listing goes on.
                    Err(error) if error.kind == ErrorKind::Unsupported => {
                        if let Err(error) = self.state.loss(&error.text, "name-refused", &error.text, None) {
                            let _ = sender.send(Err(error)).await;
                            return;
                        }
                    }
                    Err(error) => {
                        let _ = sender.send(Err(error)).await;
                        return;
                    }
                }
            }
            return;
        }
    }

    fn out_of_order(&self) -> Error {
        Error::temporary(
            ErrorKind::Corrupt,
            format!("the listing of {} is not in key order", self.store.address()),
        )
    }
}

/// The listing broke its promise of order; the same call succeeds when it is made again.
pub(crate) fn is_out_of_order(error: &Error) -> bool {
    error.kind == ErrorKind::Corrupt && error.is_temporary()
}
