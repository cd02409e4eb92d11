//! Connections to one side of a service: made, kept for a while, checked before a write goes on one, dropped when old. An idle
//! connection serves a write only if it is young and its socket shows no sign of an end. Never sends or repeats a request.

use crate::body::RequestBody;
use crate::config::Upstream;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a connection that just served a request may need until it takes the next.
const READY_TIMEOUT: Duration = Duration::from_millis(50);
const SHARDS: usize = 8;
/// Idle connections kept per shard.
const KEPT: usize = 128;

/// One open connection, used by one request at a time.
#[derive(Debug)]
pub(crate) struct Connection {
    pub sender: SendRequest<RequestBody>,
    driver: AbortHandle,
    /// The same socket, only for looking at what has arrived.
    probe: OwnedFd,
    /// Bytes handed to the system so far.
    sent: Arc<AtomicU64>,
    idle_since: Instant,
    /// Did it serve a request before?
    pub reused: bool,
}

impl Connection {
    pub fn sent_bytes(&self) -> SentBytes {
        SentBytes { counter: self.sent.clone(), before: self.sent.load(Ordering::SeqCst) }
    }

    /// Closes it whatever it is doing; dropped alone, it would first send the rest of a request's body.
    pub fn cut(self) {
        self.driver.abort();
    }

    /// Looks into the socket: an end, an error or bytes nobody asked for mean that it is of no use.
    fn is_silent(&self) -> bool {
        let mut byte = [0_u8; 1];
        matches!(
            recv(&self.probe, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Err(Errno::AGAIN | Errno::INTR)
        )
    }
}

/// Tells whether any byte left since it was made.
#[derive(Debug)]
pub(crate) struct SentBytes {
    counter: Arc<AtomicU64>,
    before: u64,
}

impl SentBytes {
    pub fn any(&self) -> bool {
        self.counter.load(Ordering::SeqCst) != self.before
    }
}

/// The connections to one upstream.
#[derive(Debug)]
pub(crate) struct Pool {
    pub upstream: Upstream,
    idle_limit: Duration,
    idle: [Mutex<Vec<Connection>>; SHARDS],
    next: AtomicUsize,
}

impl Pool {
    pub fn new(upstream: Upstream, idle_limit: Duration) -> Self {
        Self { upstream, idle_limit, idle: Default::default(), next: AtomicUsize::new(0) }
    }

    /// A connection that is ready for a request; `for_write` looks into the socket first. Says how long connecting took, if it
    /// was needed.
    ///
    /// # Errors
    /// No connection could be made; nothing was sent.
    pub async fn take(&self, for_write: bool) -> io::Result<(Connection, Option<Duration>)> {
        while let Some(mut connection) = self.pop() {
            let ready = connection.sender.is_ready()
                || matches!(tokio::time::timeout(READY_TIMEOUT, connection.sender.ready()).await, Ok(Ok(())));
            if ready && (!for_write || connection.is_silent()) {
                return Ok((connection, None));
            }
        }
        self.connect().await
    }

    /// A new connection.
    ///
    /// # Errors
    /// No connection could be made; nothing was sent.
    pub async fn connect(&self) -> io::Result<(Connection, Option<Duration>)> {
        let started = Instant::now();
        let Upstream { host, port, .. } = &self.upstream;
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port)))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let took = started.elapsed();
        stream.set_nodelay(true)?;
        let probe = stream.as_fd().try_clone_to_owned()?;
        let sent = Arc::new(AtomicU64::new(0));
        let wire = TokioIo::new(Wire { stream, sent: sent.clone() });
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(crate::server::MAX_HEAD)
            .handshake(wire)
            .await
            .map_err(io::Error::other)?;
        let driver = tokio::spawn(async move {
            // Whoever uses the connection hears of its errors; here they only end the task.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        let driver = driver.abort_handle();
        Ok((
            Connection { sender, driver, probe, sent, idle_since: Instant::now(), reused: false },
            Some(took),
        ))
    }

    fn pop(&self) -> Option<Connection> {
        let first = self.next.load(Ordering::Relaxed);
        (0..SHARDS).find_map(|step| {
            let mut shard = self.shard(first + step);
            let connection = shard.pop()?;
            if connection.idle_since.elapsed() < self.idle_limit && !connection.sender.is_closed() {
                return Some(connection);
            }
            // The youngest is on top: whatever lies below is older still.
            shard.retain(|other| other.idle_since.elapsed() < self.idle_limit && !other.sender.is_closed());
            shard.pop()
        })
    }

    fn shard(&self, index: usize) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle[index % SHARDS].lock().expect("no code panics while it holds this lock")
    }

    /// Takes back a connection whose last answer was received completely.
    pub fn put(&self, mut connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        connection.idle_since = Instant::now();
        connection.reused = true;
        let index = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut shard = self.shard(index);
        if shard.len() < KEPT {
            shard.push(connection);
        }
    }

    /// Closes what idled too long. Called every second or so.
    pub fn sweep(&self) {
        for index in 0..SHARDS {
            self.shard(index)
                .retain(|other| other.idle_since.elapsed() < self.idle_limit && !other.sender.is_closed());
        }
    }
}

/// A socket that counts what it sends.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    sent: Arc<AtomicU64>,
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Wire {
    fn count(&self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = result {
            self.sent.fetch_add(*bytes as u64, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// The runtime of this test has one thread, which stands still while the peer closes: hyper cannot have noticed.
    #[tokio::test]
    async fn a_write_does_not_trust_a_connection_whose_end_nobody_noticed_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let upstream = Upstream::parse("api", "source", &format!("http://{authority}")).unwrap();
        let pool = Pool::new(upstream, Duration::from_secs(60));
        for for_write in [false, true] {
            let (mut connection, connecting) = pool.connect().await.unwrap();
            assert!(connecting.is_some());
            let (peer, _) = listener.accept().unwrap();
            connection.sender.ready().await.unwrap();
            pool.put(connection);
            drop(peer);
            let (connection, _) = pool.take(for_write).await.unwrap();
            assert_eq!(connection.reused, !for_write, "only a write looks into the socket");
        }
    }

    #[tokio::test]
    async fn an_old_connection_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream =
            Upstream::parse("api", "source", &format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let pool = Pool::new(upstream, Duration::ZERO);
        let (mut connection, _) = pool.connect().await.unwrap();
        let _peer = listener.accept().unwrap();
        connection.sender.ready().await.unwrap();
        pool.put(connection);
        assert!(!pool.take(false).await.unwrap().0.reused);
        pool.sweep();
        assert!(pool.pop().is_none());
    }
}
