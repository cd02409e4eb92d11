//! One JSON line per request, written by a thread of its own behind a bounded queue: a slow disk loses lines, which are
//! counted, and never slows a request. No query strings, no header values but the request id.

use crate::config::GatewayError;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{mpsc, oneshot};

/// Lines that may wait for the disk.
const QUEUE: usize = 16_384;

/// What is known at the end of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// Milliseconds since 1970.
    pub time: u64,
    pub service: String,
    pub id: String,
    /// Hash of the client's key.
    pub client: String,
    pub method: String,
    pub path: String,
    pub class: &'static str,
    pub side: Option<&'static str>,
    pub epoch: u64,
    pub status: u16,
    pub millis: f64,
    pub held_ms: Option<f64>,
    pub outcome: &'static str,
}

#[derive(Debug)]
enum Message {
    Entry(Box<Entry>),
    Close(oneshot::Sender<()>),
}

/// Where entries are given up.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    pub fn open(path: &Path) -> Result<Self, GatewayError> {
        let error = |source| GatewayError::AccessLog { path: path.into(), source };
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path).map_err(error)?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write(file, receiver))
            .map_err(error)?;
        Ok(Self { queue, dropped: Arc::default() })
    }

    pub fn record(&self, entry: Entry) {
        if self.queue.try_send(Message::Entry(Box::new(entry))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines lost because the disk was slower than the requests.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Writes what is queued and ends.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.queue.send(Message::Close(done)).await.is_ok() {
            // An error means that the thread ended before.
            let _ended = closed.await;
        }
    }
}

fn write(file: File, mut receiver: mpsc::Receiver<Message>) {
    let mut file = BufWriter::with_capacity(1 << 16, file);
    let mut failed = false;
    while let Some(message) = receiver.blocking_recv() {
        let entry = match message {
            Message::Entry(entry) => entry,
            Message::Close(done) => {
                let _result = file.flush();
                // Nobody listens when the caller gave up waiting.
                let _result = done.send(());
                return;
            }
        };
        let mut line = serde_json::to_vec(&entry).unwrap_or_default();
        line.push(b'\n');
        let mut result = file.write_all(&line);
        if receiver.is_empty() {
            result = result.and_then(|()| file.flush());
        }
        if let Err(error) = result
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(%error, "cannot write the access log");
        }
    }
}
