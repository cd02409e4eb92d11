//! Distance between two places on one machine: forwards TCP and keeps every chunk half a round trip in each direction,
//! without limiting how much is under way. A connection costs one round trip before its first byte, as real ones do.

use crate::cloud::CloudError;
use crate::cloud::process::{Ready, end_asked, read_config, say_ready};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

const CHUNK: usize = 64 * 1024;
/// Bytes under way in one direction of one connection; far above what any test sends within a round trip.
const UNDER_WAY: usize = 64 << 20;

/// One forwarded address; forwarding ends when this is dropped.
#[derive(Debug)]
pub struct Delay {
    /// Where to connect instead.
    pub address: SocketAddr,
    _running: DropGuard,
}

/// Forwards a loopback address, chosen by the kernel, to `to`, `round_trip` away.
pub async fn start(to: SocketAddr, round_trip: Duration) -> io::Result<Delay> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, to, round_trip, stop)));
    Ok(Delay { address, _running: guard })
}

/// Several forwarded addresses as a process of its own, for `--keep`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayConfig {
    pub to: Vec<SocketAddr>,
    pub round_trip_ms: u64,
    #[serde(default)]
    pub outlive_parent: bool,
}

/// Runs what the JSON file describes until told to end.
pub async fn main(config_path: &Path) -> Result<(), CloudError> {
    let config: DelayConfig = read_config(config_path)?;
    let mut delays = Vec::new();
    for &to in &config.to {
        let delay = start(to, Duration::from_millis(config.round_trip_ms)).await;
        delays.push(delay.map_err(|source| CloudError::Listen { address: to, source })?);
    }
    let addresses = delays.iter().map(|delay| delay.address).collect();
    say_ready(&Ready { pid: std::process::id(), addresses })?;
    end_asked(config.outlive_parent).await;
    Ok(())
}

async fn accept(listener: TcpListener, to: SocketAddr, round_trip: Duration, stop: CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                tokio::spawn(stop.clone().run_until_cancelled_owned(forward(near, to, round_trip)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn forward(near: TcpStream, to: SocketAddr, round_trip: Duration) {
    tokio::time::sleep(round_trip).await; // the handshake
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    tokio::join!(pump(near_in, far_out, round_trip / 2), pump(far_in, near_out, round_trip / 2));
}

type Parcel = (Instant, Vec<u8>, OwnedSemaphorePermit);

/// One direction. An end of stream travels like data.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let room = Arc::new(Semaphore::new(UNDER_WAY));
    let (send, mut receive) = mpsc::unbounded_channel::<Parcel>();
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let size = u32::try_from(read).unwrap_or(u32::MAX);
            let Ok(permit) = room.clone().acquire_many_owned(size).await else { return };
            if send.send((Instant::now() + delay, buffer[..read].to_vec(), permit)).is_err() {
                return; // nobody writes any more
            }
        }
    };
    let writing = async move {
        let mut last = Instant::now();
        while let Some((due, bytes, _permit)) = receive.recv().await {
            tokio::time::sleep_until(due).await;
            last = due;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        tokio::time::sleep_until(last.max(Instant::now()) + delay).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
