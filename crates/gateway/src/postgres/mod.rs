//! The front door of a PostgreSQL database: clients that speak its protocol come through here, wait in a switch between two
//! transactions, and go on at the new owner in the same connection. A transaction is a write of the gate, so lease, hold, decision and
//! release are those of every other write. Never looks at a row, and decides nothing.

mod flow;
mod frame;
mod login;
mod progress;
mod scram;
mod server;
mod session;
mod state;

use crate::backend::{Backend, reaches};
use crate::config::GatewayError;
use crate::gate::Gate;
use crate::histogram::Recent;
use crate::limits::Entrance;
use crate::listener;
use crate::server::Life;
use crate::tls::Certificates;
use bytes::Bytes;
use rehome_part::Side;
use rehome_part::traffic::{ServiceStatus, SideStatus};
use rehome_spec::Certificate;
use rustls::ClientConfig;
use scram::Verifier;
use socket2::{SockRef, TcpKeepalive};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;

const PROTOCOL: &[u8] = b"postgresql";
/// A peer that acknowledges nothing for so long is gone.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(1);
/// Looks until the times of transactions begin a new window.
const LOOKS_OF_WINDOW: u32 = 30;
/// Sessions that are read or opened at once: a server forks for each.
const AT_ONCE: usize = 16;
/// Arming waits at most so long for what idle sessions are to be known.
const PREPARE: Duration = Duration::from_millis(500);

/// A connection, whatever it goes over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a side's database is, and how it is reached.
#[derive(Debug, Clone)]
pub struct End {
    pub at: Backend,
    /// Whom to believe; `None`: without TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Who may come in.
#[derive(Clone)]
pub struct Login {
    pub user: String,
    /// What the source's and the target's server are shown, where they ask. Clients must know the source's.
    pub passwords: [String; 2],
}

impl fmt::Debug for Login {
    /// Without the passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// One front door, and the database behind it that moves.
#[derive(Debug, Clone)]
pub struct FrontDoor {
    /// The part's name.
    pub name: String,
    pub listen: String,
    /// Empty: clients come without TLS.
    pub tls: Vec<Certificate>,
    /// What clients call the database.
    pub database: String,
    pub logins: Vec<Login>,
    pub source: End,
    pub target: End,
}

/// [`TlsAcceptor`] has no `Debug` form.
struct Acceptor(TlsAcceptor);

/// Where a client's session is, for requests to cancel.
#[derive(Debug, Clone)]
struct Seat {
    side: Side,
    key: Bytes,
}

/// As it runs.
pub(crate) struct Door {
    plan: FrontDoor,
    address: SocketAddr,
    gate: Arc<Gate>,
    acceptor: Option<Acceptor>,
    pub certificates: Option<Arc<Certificates>>,
    verifiers: HashMap<Bytes, Verifier>,
    /// Makes answers to users who do not exist look the same every time.
    secret: [u8; 32],
    seats: Mutex<HashMap<Bytes, Seat>>,
    /// Idle sessions that are not ready to go to the other side.
    unready: AtomicU64,
    /// Rung when one of them is.
    ready: Notify,
    reading: Semaphore,
    /// By side: one that does not answer must not keep the other's clients out.
    opening: [Semaphore; 2],
    times: Recent,
    transactions: AtomicU64,
    refused: AtomicU64,
    healthy: Mutex<[Option<bool>; 2]>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("plan", &self.plan).finish_non_exhaustive()
    }
}

/// What every connection's socket is set to: small messages at once, and a peer that is gone is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    SockRef::from(stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED))
}

impl Door {
    /// Reads certificates and passwords. Blocks, for some milliseconds a login.
    ///
    /// # Errors
    /// A certificate that cannot be used; a machine without random numbers.
    pub fn new(
        plan: FrontDoor,
        address: SocketAddr,
        gate: Arc<Gate>,
        entrance: Arc<Entrance>,
    ) -> Result<Self, GatewayError> {
        let certificates = match plan.tls.is_empty() {
            true => None,
            false => Some(Certificates::open(plan.tls.clone(), entrance)?),
        };
        let acceptor = certificates.as_ref().map(|all| all.acceptor(&[PROTOCOL])).transpose()?;
        let verifier = |login: &Login| {
            (Bytes::copy_from_slice(login.user.as_bytes()), Verifier::of(&login.passwords[0]))
        };
        let verifiers = plan.logins.iter().map(verifier).collect();
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| GatewayError::Config(error.to_string()))?;
        Ok(Self {
            plan,
            address,
            gate,
            acceptor: acceptor.map(Acceptor),
            certificates,
            verifiers,
            secret,
            seats: Mutex::default(),
            unready: AtomicU64::new(0),
            ready: Notify::new(),
            reading: Semaphore::new(AT_ONCE),
            opening: [Semaphore::new(AT_ONCE), Semaphore::new(AT_ONCE)],
            times: Recent::default(),
            transactions: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            healthy: Mutex::default(),
        })
    }

    /// Its name, and where it really listens.
    pub fn place(&self) -> (String, SocketAddr) {
        (self.plan.name.clone(), self.address)
    }

    fn end(&self, side: Side) -> &End {
        match side {
            Side::Source => &self.plan.source,
            Side::Target => &self.plan.target,
        }
    }

    /// Takes clients until the gateway ends.
    pub async fn accept(self: Arc<Self>, socket: Arc<TcpListener>, places: Arc<Semaphore>, life: Life) {
        let serve = |stream, peer| {
            let (door, life) = (self.clone(), life.clone());
            async move { Box::pin(client(door, stream, peer, &life)).await.map_err(Into::into) }
        };
        listener::take(&socket, &self.gate, &places, &life, serve).await;
    }

    /// Waits until every idle session is ready to go, for as long as arming may take.
    pub async fn prepared(&self) {
        let all_ready = async {
            loop {
                let ready = self.ready.notified();
                tokio::pin!(ready);
                ready.as_mut().enable();
                if self.unready.load(Ordering::SeqCst) == 0 {
                    return;
                }
                ready.await;
            }
        };
        if tokio::time::timeout(PREPARE, all_ready).await.is_err() {
            let unready = self.unready.load(Ordering::SeqCst);
            tracing::warn!(
                database = self.plan.name,
                unready,
                "sessions are not ready yet; the switch does not wait for them"
            );
        }
    }

    /// Health of both sides, and the window of times; for the life of the gateway.
    pub async fn look(self: Arc<Self>) {
        let mut looks = 0;
        loop {
            let (source, target) = tokio::join!(reaches(&self.plan.source.at), reaches(&self.plan.target.at));
            *self.healthy.lock().expect("no code panics while it holds this lock") =
                [Some(source), Some(target)];
            looks += 1;
            if looks % LOOKS_OF_WINDOW == 0 {
                self.times.turn();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn status(&self) -> ServiceStatus {
        let healthy = *self.healthy.lock().expect("no code panics while it holds this lock");
        let side = |healthy| SideStatus { healthy, ..SideStatus::default() };
        ServiceStatus {
            name: self.plan.name.clone(),
            listen: self.address.to_string(),
            source: side(healthy[0]),
            target: side(healthy[1]),
            refused: self.refused.load(Ordering::Relaxed),
            writes_total: self.transactions.load(Ordering::Relaxed),
            write_p999_ms: self.times.quantile_ms(0.999),
            ..ServiceStatus::default()
        }
    }
}

/// One client from its first byte to its last.
async fn client(door: Arc<Door>, stream: TcpStream, peer: SocketAddr, life: &Life) -> io::Result<()> {
    prepare(&stream)?;
    let welcomed = tokio::select! {
        welcomed = login::welcome(&door, stream) => welcomed?,
        () = life.closing.cancelled() => return Ok(()),
    };
    match welcomed {
        login::Visit::Session(client, caller) => {
            tokio::select! {
                served = session::serve(door, client, caller, peer, life) => served,
                () = life.kill.cancelled() => Ok(()),
            }
        }
        login::Visit::Cancel(key) => {
            let seat = door.seats.lock().expect("no code panics while it holds this lock").get(&key).cloned();
            match seat {
                Some(seat) => server::cancel(door.end(seat.side), &seat.key).await,
                None => Ok(()),
            }
        }
    }
}
