//! Distance between two places on one machine: forwards TCP and keeps every chunk half a round trip in each direction,
//! without limiting how much is under way. A connection costs one round trip before its first byte, as real ones do.
//! The line can be cut, and heals: what was on its way arrives late then, as it does when a real network comes back.

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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
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
    line: watch::Sender<Line>,
    _running: DropGuard,
}

/// What becomes of bytes, and which connections it knows: those that began under an earlier number are forgotten.
#[derive(Debug, Clone, Copy)]
struct Line {
    state: State,
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Whole,
    /// A black hole: nothing arrives and nobody is told, new connections come into the void.
    Cut,
    /// Every connection is reset, a new one too.
    Reset,
}

impl Delay {
    /// Nothing passes any more, in no direction, and nobody is told.
    pub fn cut(&self) {
        self.line.send_modify(|line| line.state = State::Cut);
    }

    /// Every connection is reset now, and every new one, until the line heals.
    pub fn reset(&self) {
        self.line.send_modify(|line| line.state = State::Reset);
    }

    /// What was on its way arrives, and the line is as it was; connections that were forgotten are remembered.
    pub fn heal(&self) {
        self.line.send_replace(Line { state: State::Whole, number: 0 });
    }

    /// New connections pass again. Older ones stay silent, as behind a router that has lost its memory.
    pub fn heal_for_new(&self) {
        self.line.send_modify(|line| *line = Line { state: State::Whole, number: line.number + 1 });
    }
}

/// Forwards a loopback address, chosen by the kernel, to `to`, `round_trip` away.
pub async fn start(to: SocketAddr, round_trip: Duration) -> io::Result<Delay> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    let (line, seen) = watch::channel(Line { state: State::Whole, number: 0 });
    let way = Way { to, round_trip, line: seen, number: 0 };
    tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, way, stop)));
    Ok(Delay { address, line, _running: guard })
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

/// From a connection's point of view.
#[derive(Debug, Clone)]
struct Way {
    to: SocketAddr,
    round_trip: Duration,
    line: watch::Receiver<Line>,
    /// The line's when the connection began.
    number: u64,
}

impl Way {
    /// Until bytes pass; at once where they do. Never where nobody holds the line any more.
    async fn open(&mut self) {
        let passes = |line: &Line| line.state == State::Whole && line.number <= self.number;
        if self.line.wait_for(passes).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn reset(mut self) {
        if self.line.wait_for(|line| line.state == State::Reset).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn accept(listener: TcpListener, way: Way, stop: CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((near, _)) => {
                let number = way.line.borrow().number;
                let way = Way { number, ..way.clone() };
                tokio::spawn(stop.clone().run_until_cancelled_owned(forward(near, way)));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn forward(mut near: TcpStream, mut way: Way) {
    let reset = way.clone().reset();
    let mut far = None;
    let passing = async {
        tokio::time::sleep(way.round_trip).await; // the handshake
        way.open().await;
        let Ok(connected) = TcpStream::connect(way.to).await else { return };
        let far = far.insert(connected);
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let ((near_in, near_out), (far_in, far_out)) = (near.split(), far.split());
        tokio::join!(pump(near_in, far_out, way.clone()), pump(far_in, near_out, way));
    };
    tokio::select! {
        biased;
        () = reset => {}
        () = passing => return,
    }
    for end in [Some(&near), far.as_ref()].into_iter().flatten() {
        // Without lingering its end is a reset.
        let _ = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO));
    }
}

type Parcel = (Instant, Vec<u8>, OwnedSemaphorePermit);

/// One direction. An end of stream travels like data.
async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, way: Way) {
    let (mut leaves, mut arrives, delay) = (way.clone(), way.clone(), way.round_trip / 2);
    let room = Arc::new(Semaphore::new(UNDER_WAY));
    let (send, mut receive) = mpsc::unbounded_channel::<Parcel>();
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            leaves.open().await;
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
            arrives.open().await;
            last = due;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        tokio::time::sleep_until(last.max(Instant::now()) + delay).await;
        arrives.open().await;
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
