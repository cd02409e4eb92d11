//! One address of a side: its open connections, what is under way on them, and whether it has earned a rest. An idle connection
//! serves a write only if it is young and its socket shows no sign of an end. Never sends or repeats a request.

use super::dial::{self, Dialed, Dialing};
use super::http1::{Http1, Line};
use super::{Connection, Http2, Kind};
use crate::body::RequestBody;
use crate::config::Upstream;
use crate::control::UpstreamStatus;
use hyper::client::conn::http2;
use rehome_spec::UpstreamHttp;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const SHARDS: usize = 8;
/// Idle connections kept per shard.
const KEPT: usize = 128;
/// Streams on one HTTP/2 connection before another is made, and such connections at most.
const STREAMS: u32 = 100;
const SHARED: usize = 16;
/// So many failures in a row, and the address rests for so long.
const FAILURES: u32 = 3;
const REST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Member {
    pub upstream: Upstream,
    dialing: Dialing,
    idle_limit: Duration,
    idle: [Mutex<Vec<Idle>>; SHARDS],
    next: AtomicUsize,
    shared: Mutex<Vec<Shared>>,
    under_way: AtomicU32,
    /// 0 unknown, 1 healthy, 2 not: by its health path.
    health: AtomicU8,
    failures: AtomicU32,
    made: Instant,
    /// Milliseconds after `made`.
    rests_until: AtomicU64,
}

/// An HTTP/1.1 connection that waits for a request.
#[derive(Debug)]
struct Idle {
    line: Box<Line>,
    since: Instant,
}

/// An HTTP/2 connection and the requests on it.
#[derive(Debug, Clone)]
struct Shared {
    sender: http2::SendRequest<RequestBody>,
    streams: Arc<AtomicU32>,
}

/// One request under way; counted until dropped.
#[derive(Debug)]
pub(super) struct UnderWay {
    member: Arc<Member>,
    stream: Option<Arc<AtomicU32>>,
}

impl UnderWay {
    fn on(member: &Arc<Member>, stream: Option<Arc<AtomicU32>>) -> Self {
        member.under_way.fetch_add(1, Ordering::Relaxed);
        if let Some(stream) = &stream {
            stream.fetch_add(1, Ordering::Relaxed);
        }
        Self { member: member.clone(), stream }
    }

    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.member.under_way.fetch_sub(1, Ordering::Relaxed);
        if let Some(stream) = &self.stream {
            stream.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Member {
    pub fn new(upstream: Upstream, dialing: Dialing, idle_limit: Duration) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            dialing,
            idle_limit,
            idle: Default::default(),
            next: AtomicUsize::new(0),
            shared: Mutex::default(),
            under_way: AtomicU32::new(0),
            health: AtomicU8::new(0),
            failures: AtomicU32::new(0),
            made: Instant::now(),
            rests_until: AtomicU64::new(0),
        })
    }

    pub fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    pub fn healthy(&self) -> Option<bool> {
        match self.health.load(Ordering::Relaxed) {
            0 => None,
            state => Some(state == 1),
        }
    }

    pub fn set_healthy(&self, healthy: bool) {
        self.health.store(if healthy { 1 } else { 2 }, Ordering::Relaxed);
    }

    /// Should requests go elsewhere as long as they can?
    pub fn is_out(&self) -> bool {
        self.healthy() == Some(false) || self.is_resting()
    }

    pub fn status(&self) -> UpstreamStatus {
        UpstreamStatus {
            address: self.upstream.authority.clone(),
            healthy: self.healthy(),
            resting: self.is_resting(),
            under_way: self.under_way(),
        }
    }

    pub fn is_resting(&self) -> bool {
        let until = self.rests_until.load(Ordering::Relaxed);
        until != 0 && (self.made.elapsed().as_millis() as u64) < until
    }

    /// It could not be reached, broke off, or did not answer in time.
    pub fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES {
            let until = (self.made.elapsed() + REST).as_millis() as u64;
            if !self.is_resting() {
                tracing::warn!(
                    upstream = self.upstream.authority,
                    "failed {FAILURES} times in a row; it rests"
                );
            }
            self.rests_until.store(until, Ordering::Relaxed);
        }
    }

    pub fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.rests_until.store(0, Ordering::Relaxed);
        }
    }

    /// A connection that is ready for a request; `for_write` asks the kernel about it first. Says how long connecting took, if
    /// it was needed.
    ///
    /// # Errors
    /// No connection could be made; nothing was sent.
    pub async fn take(self: &Arc<Self>, for_write: bool) -> io::Result<(Connection, Option<Duration>)> {
        if let Some(connection) = self.take_shared(STREAMS) {
            return Ok((connection, None));
        }
        while let Some(mut idle) = self.pop() {
            if !for_write || idle.line.is_open() {
                return Ok((self.connection(Kind::Http1(Http1::Whole(idle.line)), true, None), None));
            }
        }
        self.connect().await
    }

    /// A new connection.
    ///
    /// # Errors
    /// No connection could be made; nothing was sent.
    pub async fn connect(self: &Arc<Self>) -> io::Result<(Connection, Option<Duration>)> {
        let started = Instant::now();
        // Boxed: every client's connection has room for the state of a request, and few requests dial.
        let dialed = Box::pin(dial::dial(&self.upstream, &self.dialing)).await?;
        let took = Some(started.elapsed());
        let sender = match dialed {
            Dialed::Http1(line) => {
                return Ok((self.connection(Kind::Http1(Http1::Whole(line)), false, None), took));
            }
            Dialed::Http2(sender) => sender,
        };
        let shared = Shared { sender, streams: Arc::default() };
        let connection =
            self.connection(Kind::Http2(Http2::new(&shared.sender)), false, Some(shared.streams.clone()));
        let mut all = self.shared();
        all.retain(|shared| !shared.sender.is_closed());
        all.push(shared);
        Ok((connection, took))
    }

    /// Connections that are open: those that wait and those in use.
    pub fn open(&self) -> usize {
        let waiting: usize = (0..SHARDS).map(|index| self.shard(index).len()).sum();
        waiting + self.under_way() as usize
    }

    /// Makes connections until `wanted` are open, so that requests which come all at once need not wait for them.
    ///
    /// # Errors
    /// The first that could not be made; what was made stays.
    pub async fn warm(self: &Arc<Self>, wanted: usize) -> io::Result<()> {
        let missing = match self.dialing.http {
            UpstreamHttp::One => wanted.saturating_sub(self.open()),
            UpstreamHttp::Two => usize::from(wanted > 0 && self.take_shared(u32::MAX).is_none()),
        };
        let made = (0..missing).map(|_| async {
            let (connection, _) = self.connect().await?;
            connection.give_back();
            Ok(())
        });
        futures::future::join_all(made).await.into_iter().collect()
    }

    fn connection(self: &Arc<Self>, kind: Kind, reused: bool, stream: Option<Arc<AtomicU32>>) -> Connection {
        Connection { kind, reused, under_way: UnderWay::on(self, stream) }
    }

    /// A place on the HTTP/2 connection with the fewest requests, if that has fewer than `most` or no more can be made.
    fn take_shared(self: &Arc<Self>, most: u32) -> Option<Connection> {
        if self.dialing.http != UpstreamHttp::Two {
            return None;
        }
        let all = self.shared();
        let open = all.iter().filter(|shared| !shared.sender.is_closed());
        let least = open.min_by_key(|shared| shared.streams.load(Ordering::Relaxed))?;
        if least.streams.load(Ordering::Relaxed) >= most && all.len() < SHARED {
            return None;
        }
        let kind = Kind::Http2(Http2::new(&least.sender));
        Some(self.connection(kind, true, Some(least.streams.clone())))
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.shared.lock().expect("no code panics while it holds this lock")
    }

    fn pop(&self) -> Option<Idle> {
        let first = self.next.load(Ordering::Relaxed);
        (0..SHARDS).find_map(|step| {
            let mut shard = self.shard(first + step);
            let mut idle = shard.pop()?;
            if self.is_usable(&mut idle) {
                return Some(idle);
            }
            // The youngest is on top: whatever lies below is older still.
            shard.retain_mut(|other| self.is_usable(other));
            shard.pop()
        })
    }

    fn is_usable(&self, idle: &mut Idle) -> bool {
        idle.since.elapsed() < self.idle_limit && idle.line.seems_open()
    }

    fn shard(&self, index: usize) -> MutexGuard<'_, Vec<Idle>> {
        self.idle[index % SHARDS].lock().expect("no code panics while it holds this lock")
    }

    /// Takes back a connection whose last answer was received completely.
    pub(super) fn keep(&self, line: Box<Line>) {
        if !line.is_whole() {
            return;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut shard = self.shard(index);
        if shard.len() < KEPT {
            shard.push(Idle { line, since: Instant::now() });
        }
    }

    /// Closes what idled too long. Called every second or so.
    pub fn sweep(&self) {
        for index in 0..SHARDS {
            self.shard(index).retain_mut(|idle| {
                idle.line.rest();
                self.is_usable(idle)
            });
        }
        self.shared().retain(|shared| !shared.sender.is_closed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn member(listener: &TcpListener, idle_limit: Duration) -> Arc<Member> {
        let address = format!("http://{}", listener.local_addr().unwrap());
        let upstream = Upstream::parse("api", "source", &address).unwrap();
        Member::new(upstream, Dialing { http: UpstreamHttp::One, tls: None }, idle_limit)
    }

    /// The runtime of this test has one thread, which stands still while the peer closes: the runtime cannot have noticed.
    #[tokio::test]
    async fn a_write_does_not_trust_a_connection_whose_end_nobody_noticed_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = member(&listener, Duration::from_secs(60));
        for for_write in [false, true] {
            let (connection, connecting) = member.connect().await.unwrap();
            assert!(connecting.is_some());
            let (peer, _) = listener.accept().unwrap();
            connection.give_back();
            drop(peer);
            let (connection, _) = member.take(for_write).await.unwrap();
            assert_eq!(connection.reused, !for_write, "only a write looks into the socket");
        }
    }

    #[tokio::test]
    async fn an_old_connection_is_not_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = member(&listener, Duration::ZERO);
        let (connection, _) = member.connect().await.unwrap();
        let _peer = listener.accept().unwrap();
        connection.give_back();
        assert!(!member.take(false).await.unwrap().0.reused);
        member.sweep();
        assert!(member.pop().is_none());
    }

    #[tokio::test]
    async fn what_is_under_way_is_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = member(&listener, Duration::from_secs(60));
        let (first, _) = member.take(false).await.unwrap();
        let (second, _) = member.take(false).await.unwrap();
        assert_eq!(member.under_way(), 2);
        drop(second);
        first.give_back();
        assert_eq!(member.under_way(), 0);
        assert!(member.take(false).await.unwrap().0.reused);
    }

    #[tokio::test]
    async fn a_warm_member_has_connections_before_anybody_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = member(&listener, Duration::from_secs(60));
        member.warm(5).await.unwrap();
        assert_eq!((member.open(), member.under_way()), (5, 0));
        let (connection, connecting) = member.take(true).await.unwrap();
        assert!(connecting.is_none() && connection.reused);
        member.warm(5).await.unwrap();
        assert_eq!(member.open(), 5, "one is in use");
        drop(listener);
        assert!(member.warm(6).await.is_err());
    }

    #[test]
    fn three_failures_in_a_row_earn_a_rest_that_an_answer_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = member(&listener, Duration::ZERO);
        member.failed();
        member.failed();
        assert!(!member.is_out());
        member.failed();
        assert!(member.is_out());
        member.answered();
        assert!(!member.is_out());
        member.set_healthy(false);
        assert!(member.is_out());
    }
}
