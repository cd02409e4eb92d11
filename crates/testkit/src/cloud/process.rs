//! What a process of the test kit does besides its work: read its configuration from a private file, say on standard
//! output that it is ready, and end on a signal or with its parent.

use super::{CloudError, S3Config, serve_s3};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The line a server process prints once it listens.
#[derive(Debug, Clone, Serialize, serde::Deserialize)]
pub(crate) struct Ready {
    pub pid: u32,
    /// Where it really listens: S3 and the change feed, or the shop, or what is forwarded.
    pub addresses: Vec<std::net::SocketAddr>,
}

/// Runs the S3 server described by the JSON file (mode 0600) until SIGTERM, SIGINT or, unless told otherwise, the end of
/// standard input.
pub async fn main_s3(config_path: &Path) -> Result<(), CloudError> {
    let config: S3Config = read_config(config_path)?;
    let shutdown = CancellationToken::new();
    let outlive = config.outlive_parent;
    let running = serve_s3(config, shutdown.clone()).await?;
    say_ready(&Ready { pid: std::process::id(), addresses: vec![running.address, running.events_address] })?;
    end_asked(outlive).await;
    shutdown.cancel();
    running.finished().await;
    Ok(())
}

/// Reads a configuration with secrets in it; refuses a file that others may read.
pub(crate) fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T, CloudError> {
    let failed = |why: String| CloudError::Config { path: path.into(), why };
    let mode = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(failed("it holds secrets and others may read it; set its mode to 0600".into()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| failed(error.to_string()))
}

/// Standard output is this process's protocol: one line, read by whoever started it.
pub(crate) fn say_ready(ready: &Ready) -> Result<(), CloudError> {
    let mut line = serde_json::to_vec(ready).map_err(|error| CloudError::Ready(error.into()))?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).map_err(CloudError::Ready)
}

/// Waits for a signal, or for the parent to go away.
pub(crate) async fn end_asked(outlive_parent: bool) {
    let mut terminate =
        signal(SignalKind::terminate()).expect("SIGTERM can be handled in a process of its own");
    let mut interrupt =
        signal(SignalKind::interrupt()).expect("SIGINT can be handled in a process of its own");
    let parent_gone = async {
        if outlive_parent {
            std::future::pending::<()>().await;
        }
        // A thread of its own: one of the runtime's would keep the process from ending on a signal.
        let (gone, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while io::stdin().read(&mut buffer).is_ok_and(|read| read > 0) {}
            drop(gone);
        });
        let _ = ended.await; // only ever ends by being dropped
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = parent_gone => {}
    }
}
