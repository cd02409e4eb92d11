//! A task that dies with its owner: when the engine is dropped, nothing of it goes on.

use std::future::Future;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub(crate) struct Task {
    handle: JoinHandle<()>,
    stop: CancellationToken,
}

impl Task {
    /// Starts `work`, which is given the token that asks it to end.
    pub fn start<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(CancellationToken) -> F) -> Self {
        let stop = CancellationToken::new();
        Self { handle: tokio::spawn(work(stop.clone())), stop }
    }

    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Asks it to end and waits; after `patience` it is ended.
    pub async fn end(mut self, patience: Duration) {
        self.stop.cancel();
        if tokio::time::timeout(patience, &mut self.handle).await.is_err() {
            tracing::warn!("a task did not end when asked; ending it");
            self.handle.abort();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
