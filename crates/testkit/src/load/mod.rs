//! Live traffic through a gateway, as users make it, and an honest record of what they were told. A write is never sent
//! twice; a write without a clear answer is recorded as unknown, and its order is left alone from then on.

mod client;
mod tally;

pub use tally::{Counts, Failure, LoadLog, Operation, Outcome, Quantiles, Write};

use crate::world::Seeded;
use client::{Reader, Writer};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tally::Tally;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Everything goes here.
    pub gateway: SocketAddr,
    /// Clients that look at pictures, one request at a time each.
    pub readers: u32,
    /// Clients that order, change, remove and look at their own orders, one request at a time each.
    pub writers: u32,
    /// Requests per second of all clients together; 0: as fast as answers come.
    pub rate: f64,
    /// Names of clients begin with this; different for every load on the same data.
    pub name: String,
    /// The same seed makes the same wishes.
    pub seed: u64,
    /// Pictures to look at (`media/…` of the manifest); each is compared with what it should be.
    pub media: Arc<Vec<Seeded>>,
    /// Every write is appended here as a line of JSON when it has ended.
    pub log: PathBuf,
    /// How long a client waits for an answer.
    pub patience: Duration,
}

/// Traffic that goes on until [`Load::stop`].
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    stop: CancellationToken,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all clients. Fails when the log cannot be created.
    pub fn start(config: LoadConfig) -> io::Result<Self> {
        let tally = Arc::new(Tally::open(&config.log)?);
        let stop = CancellationToken::new();
        let everybody = f64::from(config.readers + config.writers).max(1.0);
        let pace =
            if config.rate > 0.0 { Duration::from_secs_f64(everybody / config.rate) } else { Duration::ZERO };
        let config = Arc::new(config);
        let mut clients = Vec::new();
        for number in 0..config.writers {
            let writer = Writer::new(&config, number, tally.clone());
            clients.push(tokio::spawn(paced(writer, pace, config.seed ^ u64::from(number), stop.clone())));
        }
        for number in 0..config.readers {
            let reader = Reader::new(&config, number, tally.clone());
            clients.push(tokio::spawn(paced(
                reader,
                pace,
                config.seed ^ u64::from(number) << 32,
                stop.clone(),
            )));
        }
        Ok(Self { tally, stop, clients })
    }

    /// How it goes so far.
    pub fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Lets every client finish its request (or run out of patience) and returns the record.
    pub async fn stop(self) -> LoadLog {
        self.stop.cancel();
        for client in self.clients {
            if let Err(error) = client.await {
                tracing::error!(%error, "a client broke");
                self.tally.broken(error.to_string());
            }
        }
        self.tally.finish()
    }
}

/// Something a client does again and again.
trait Turn: Send + 'static {
    fn turn(&mut self) -> impl Future<Output = ()> + Send;
}

/// Begins at a random moment of the first interval, then keeps the interval; a slow answer delays the next request.
async fn paced(mut client: impl Turn, pace: Duration, seed: u64, stop: CancellationToken) {
    let first = pace.mul_f64(fastrand::Rng::with_seed(seed).f64());
    let mut ticks =
        tokio::time::interval_at(tokio::time::Instant::now() + first, pace.max(Duration::from_nanos(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ticks.tick() => client.turn().await,
        }
    }
}
