//! An audit: both sides listed beside a running follower, which is told every key that is not as it should be. It carries
//! nothing itself, so that no two workers meet on one key.

use crate::listing::is_out_of_order;
use crate::mover::{Action, Deletes, Mover, decide};
use rehome_part::{Flow, Result};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const KEYS_AHEAD: usize = 1_024;

/// An audit under way. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Audit {
    pub keys: mpsc::Receiver<String>,
    task: JoinHandle<Result<()>>,
}

impl Audit {
    pub fn begin(mover: &Arc<Mover>, flow: Flow) -> Self {
        let (sender, keys) = mpsc::channel(KEYS_AHEAD);
        let mover = Arc::clone(mover);
        let task = tokio::spawn(async move {
            loop {
                match list(&mover, flow, &sender).await {
                    Err(error) if is_out_of_order(&error) => {
                        tracing::warn!(%error, "sorting it here from now on");
                    }
                    other => return other,
                }
            }
        });
        Self { keys, task }
    }

    /// After `keys` ended: was everything listed?
    pub async fn outcome(&mut self) -> Result<()> {
        (&mut self.task).await.unwrap_or_else(|error| {
            Err(rehome_part::Error::temporary(
                rehome_part::ErrorKind::Other,
                format!("the audit's task died: {error}"),
            ))
        })
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn list(mover: &Mover, flow: Flow, keys: &mpsc::Sender<String>) -> Result<()> {
    let mut merge = mover.merge(flow);
    while let Some(pair) = merge.next().await? {
        // Equal pairs are not remembered here: this listing may be older than what the follower just wrote.
        let wanted = matches!(decide(mover, flow, Deletes::Ours, &pair)?, Action::Copy(_) | Action::Delete);
        if wanted && keys.send(pair.key).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
