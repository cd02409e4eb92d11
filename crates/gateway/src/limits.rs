//! What one client may cost: connections per address, the size and pace of a request's body, answers that are not taken. And
//! the counts of everybody who was turned away at the entrance, with the reason.

use crate::downstream::ClientBody;
use crate::service::Service;
use http_body::Frame;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A body must move so many bytes within [`Patience::body`] of being waited for.
const BODY_STEP: u64 = 1 << 10;
/// How long a client that was refused in the middle of its body may go on sending, so that it reads the refusal.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client may take over each thing.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// The PROXY header, from the connection on.
    pub proxy_header: Duration,
    /// The TLS handshake.
    pub handshake: Duration,
    /// A request's head over HTTP/1, from its first byte to its last.
    pub head: Duration,
    /// Each 1 KiB of a request's body that is waited for.
    pub body: Duration,
    /// An answer of which the client takes nothing.
    pub answer: Duration,
    /// Between two looks at the certificate files.
    pub certificates: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            proxy_header: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            certificates: Duration::from_secs(5),
        }
    }
}

/// Why a connection or request was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    UnknownHost,
    UnknownPath,
    ClimbingPath,
    BodySize,
    SlowBody,
    SlowHead,
    SlowReader,
    /// What came is no HTTP/1, or could be read in two ways.
    Malformed,
    ClientConnections,
    ProxyHeader,
    Handshake,
}

impl Reason {
    pub const ALL: [Self; 11] = [
        Self::UnknownHost,
        Self::UnknownPath,
        Self::ClimbingPath,
        Self::BodySize,
        Self::SlowBody,
        Self::SlowHead,
        Self::SlowReader,
        Self::Malformed,
        Self::ClientConnections,
        Self::ProxyHeader,
        Self::Handshake,
    ];

    /// As the metrics call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownHost => "unknown-host",
            Self::UnknownPath => "unknown-path",
            Self::ClimbingPath => "climbing-path",
            Self::BodySize => "body-size",
            Self::SlowBody => "slow-body",
            Self::SlowHead => "slow-head",
            Self::SlowReader => "slow-reader",
            Self::Malformed => "malformed",
            Self::ClientConnections => "client-connections",
            Self::ProxyHeader => "proxy-header",
            Self::Handshake => "handshake",
        }
    }
}

/// What all listeners count together.
#[derive(Debug, Default)]
pub(crate) struct Entrance {
    turned_away: [AtomicU64; Reason::ALL.len()],
    pub certificates_read: AtomicU64,
    pub certificates_refused: AtomicU64,
}

impl Entrance {
    pub fn turn_away(&self, reason: Reason) {
        self.turned_away[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn turned_away(&self, reason: Reason) -> u64 {
        self.turned_away[reason as usize].load(Ordering::Relaxed)
    }
}

/// How many connections each client has open.
#[derive(Debug)]
pub(crate) struct PerClient {
    bound: u32,
    open: Mutex<HashMap<IpAddr, u32>>,
}

/// One of a client's places; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    of: Arc<PerClient>,
    client: IpAddr,
}

impl PerClient {
    pub fn new(bound: u32) -> Arc<Self> {
        Arc::new(Self { bound, open: Mutex::default() })
    }

    /// `None` when the client has as many as it may.
    pub fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let client = household(address);
        let mut open = self.open.lock().expect("no code panics while it holds this lock");
        let count = open.entry(client).or_default();
        if *count >= self.bound {
            return None;
        }
        *count += 1;
        Some(Place { of: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().expect("no code panics while it holds this lock");
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

/// With IPv6 a single customer has at least 64 bits of addresses (RFC 6177), so they count as one.
fn household(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

/// Why a request's body was not read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the body is larger than this service takes")]
    TooLarge,
    #[error("the body came too slowly")]
    TooSlow,
}

/// Why a body towards the upstream ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    #[error("the client's body broke: {0}")]
    Client(#[from] io::Error),
    #[error(transparent)]
    Cut(#[from] Cut),
}

/// Size and pace of one request's body. Only time spent waiting for the client counts: a body that nobody asks for (its
/// write is held, or its upstream is slow) is never too slow.
#[derive(Debug)]
pub(crate) struct BodyLimits {
    left: Option<u64>,
    pace: Option<Pace>,
    entrance: Arc<Entrance>,
}

#[derive(Debug)]
struct Pace {
    patience: Duration,
    /// Since the last whole step.
    moved: u64,
    waited: Duration,
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl BodyLimits {
    /// `patience`: `None` for calls that stream, whose client may be silent for as long as it likes.
    pub fn new(largest: Option<u64>, patience: Option<Duration>, entrance: Arc<Entrance>) -> Self {
        let pace =
            patience.map(|patience| Pace { patience, moved: 0, waited: Duration::ZERO, waiting: None });
        Self { left: largest, pace, entrance }
    }

    /// Looks at what the body gave. `has_answer`: once the upstream answers, a slow body is a conversation.
    ///
    /// # Errors
    /// What the body is to be cut for; it is counted.
    pub fn look<T, E>(
        &mut self,
        frame: &Poll<Option<Result<Frame<T>, E>>>,
        has_answer: bool,
        cx: &mut Context<'_>,
    ) -> Result<(), Cut>
    where
        T: bytes::Buf,
    {
        let bytes = match frame {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.remaining() as u64),
            Poll::Ready(_) => 0,
            Poll::Pending if has_answer => return Ok(()),
            Poll::Pending => {
                return match self.pace.as_mut().is_some_and(|pace| pace.is_over(cx)) {
                    true => Err(self.cut(Cut::TooSlow)),
                    false => Ok(()),
                };
            }
        };
        if let Some(pace) = &mut self.pace {
            pace.came(bytes);
        }
        if let Some(left) = &mut self.left {
            match left.checked_sub(bytes) {
                Some(rest) => *left = rest,
                None => return Err(self.cut(Cut::TooLarge)),
            }
        }
        Ok(())
    }

    fn cut(&self, cut: Cut) -> Cut {
        self.entrance.turn_away(match cut {
            Cut::TooLarge => Reason::BodySize,
            Cut::TooSlow => Reason::SlowBody,
        });
        cut
    }
}

impl Pace {
    fn came(&mut self, bytes: u64) {
        if let Some((since, _)) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        self.moved += bytes;
        if self.moved >= BODY_STEP {
            (self.moved, self.waited) = (0, Duration::ZERO);
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let left = self.patience.saturating_sub(self.waited);
        let (_, timer) = self.waiting.get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        timer.as_mut().poll(cx).is_ready()
    }
}

/// Keeps the rest of a refused body for a moment, unread: over HTTP/2 its stream would be reset in one breath with the answer,
/// and some clients (curl 7.88) then lose the answer.
pub(crate) fn keep_a_moment(service: &Service, body: ClientBody) {
    let kill = service.kill.clone();
    service.tasks.spawn(async move {
        tokio::select! {
            () = sleep(LINGER) => {}
            () = kill.cancelled() => {}
        }
        drop(body);
    });
}

/// Asks a connection to wait for the client's end before it closes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Linger(Arc<AtomicBool>);

impl Linger {
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client's socket: cut when the client takes nothing of what it asked for, and closed softly after a refusal.
#[derive(Debug)]
pub(crate) struct Paced<S> {
    stream: S,
    patience: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    linger: Linger,
    lingering: Option<Pin<Box<Sleep>>>,
    entrance: Arc<Entrance>,
}

impl<S> Paced<S> {
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    pub fn new(stream: S, patience: Duration, entrance: Arc<Entrance>) -> (Self, Linger) {
        let linger = Linger::default();
        let paced = Self { stream, patience, stuck: None, linger: linger.clone(), lingering: None, entrance };
        (paced, linger)
    }

    fn moved<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.stuck = None;
            return result;
        }
        let patience = self.patience;
        ready!(self.stuck.get_or_insert_with(|| Box::pin(sleep(patience))).as_mut().poll(cx));
        self.entrance.turn_away(Reason::SlowReader);
        self.stuck = None;
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }
}

impl<S: AsyncRead + Unpin> Paced<S> {
    /// Closing a socket with unread bytes resets it, and the client may never see what it was told (RFC 9112 section 9.6).
    fn wait_for_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        loop {
            if self.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.moved(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.moved(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        if this.linger.0.load(Ordering::Relaxed) {
            ready!(this.wait_for_end(cx));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::task::Waker;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    type Given = Poll<Option<Result<Frame<Bytes>, ()>>>;

    fn data(length: usize) -> Given {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![0; length])))))
    }

    fn limits(largest: Option<u64>) -> (BodyLimits, Arc<Entrance>) {
        let entrance = Arc::<Entrance>::default();
        (BodyLimits::new(largest, Some(Duration::from_secs(30)), entrance.clone()), entrance)
    }

    #[tokio::test]
    async fn a_body_may_be_as_large_as_the_limit_and_no_larger() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut limits, entrance) = limits(Some(10));
        assert_eq!(limits.look(&data(6), false, &mut cx), Ok(()));
        assert_eq!(limits.look(&data(4), false, &mut cx), Ok(()));
        assert_eq!(limits.look(&data(0), false, &mut cx), Ok(()));
        assert_eq!(entrance.turned_away(Reason::BodySize), 0);
        assert_eq!(limits.look(&data(1), false, &mut cx), Err(Cut::TooLarge));
        assert_eq!(entrance.turned_away(Reason::BodySize), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_waiting_for_the_client_counts() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut limits, entrance) = limits(None);
        let second = Duration::from_secs(1);
        assert_eq!(limits.look::<_, ()>(&Given::Pending, false, &mut cx), Ok(()));
        tokio::time::advance(20 * second).await;
        assert_eq!(limits.look(&data(1000), false, &mut cx), Ok(()), "too little to begin anew");
        tokio::time::advance(1000 * second).await;
        assert_eq!(limits.look(&Given::Pending, false, &mut cx), Ok(()), "nobody asked for it meanwhile");
        tokio::time::advance(9 * second).await;
        assert_eq!(limits.look(&Given::Pending, false, &mut cx), Ok(()));
        tokio::time::advance(2 * second).await;
        assert_eq!(limits.look(&Given::Pending, true, &mut cx), Ok(()), "the upstream answers already");
        assert_eq!(limits.look(&Given::Pending, false, &mut cx), Err(Cut::TooSlow));
        assert_eq!(entrance.turned_away(Reason::SlowBody), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_keeps_the_pace_may_take_for_ever() {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut limits, _) = limits(None);
        for _ in 0..100 {
            assert_eq!(limits.look(&Given::Pending, false, &mut cx), Ok(()));
            tokio::time::advance(Duration::from_secs(29)).await;
            assert_eq!(limits.look(&data(1024), false, &mut cx), Ok(()));
        }
    }

    #[test]
    fn a_client_has_so_many_places_and_gets_them_back() {
        let clients = PerClient::new(2);
        let [one, mapped, other]: [IpAddr; 3] =
            ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let first = clients.take(one).unwrap();
        let _second = clients.take(mapped).unwrap();
        assert!(clients.take(one).is_none());
        assert!(clients.take(other).is_some());
        drop(first);
        assert!(clients.take(one).is_some());
        assert_eq!(clients.open.lock().unwrap().len(), 1, "whoever has none is forgotten");
    }

    #[test]
    fn one_household_counts_once() {
        let clients = PerClient::new(1);
        let [one, same, other]: [IpAddr; 3] =
            ["2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1"].map(|text| text.parse().unwrap());
        let _place = clients.take(one).unwrap();
        assert!(clients.take(same).is_none() && clients.take(other).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_cut() {
        let (near, mut far) = tokio::io::duplex(1024);
        let entrance = Arc::<Entrance>::default();
        let (mut paced, _) = Paced::new(near, Duration::from_secs(60), entrance.clone());
        let writing = tokio::spawn(async move { paced.write_all(&[7; 4096]).await });
        tokio::time::sleep(Duration::from_secs(59)).await;
        far.read_exact(&mut [0; 1024]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(59)).await;
        assert!(!writing.is_finished(), "it moved in between");
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), entrance.turned_away(Reason::SlowReader)), (io::ErrorKind::TimedOut, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_client_is_listened_to_for_a_moment() {
        let (near, mut far) = tokio::io::duplex(1024);
        let (mut paced, linger) = Paced::new(near, Duration::from_secs(60), Arc::default());
        linger.ask();
        let closing = tokio::spawn(async move { paced.shutdown().await });
        far.write_all(&[0; 8192]).await.unwrap();
        assert!(!closing.is_finished());
        let asked = Instant::now();
        closing.await.unwrap().unwrap();
        assert_eq!(asked.elapsed().as_secs(), 2, "and not for longer");
    }
}
