//! A whole switch and the way back while clients write: what was acknowledged is on the new owner, once and in order.
//! With `REHOME_LONG=1` under load and several times, and the time that writes waited is printed.

#![allow(clippy::print_stdout, reason = "what was measured is told")]

use crate::redis_world::{APPLICATION, World, end};
use crate::support::Unseen;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use rehome_databases::redis::RedisPart;
use rehome_databases::{Address, End, Ends, FenceMeans};
use rehome_part::{Epoch, Fence, Flow, FollowState, Marker, Part, Scope, Side};
use rehome_testkit::delay;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Where clients write now.
type Owner = watch::Receiver<Side>;

async fn connection(world: &World, side: Side) -> MultiplexedConnection {
    let address = ("127.0.0.1", world.of(side).port());
    let info = redis::RedisConnectionInfo::default().set_username(APPLICATION.0).set_password(APPLICATION.1);
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(&info, stream, AsyncConnectionConfig::new()).await.unwrap();
    tokio::spawn(driver);
    connection
}

/// One client: numbers in a row into a list of its own, and keys that end soon beside them. Refused by one side, it tries the owner
/// again with the same number. Gives how many were acknowledged and the longest that one took.
async fn client(
    world: Arc<World>,
    number: usize,
    owner: Owner,
    pace: Duration,
    stop: CancellationToken,
) -> (u64, Duration) {
    let (mut side, mut next, mut longest) = (*owner.borrow(), 0_u64, Duration::ZERO);
    let mut to = connection(&world, side).await;
    let list = format!("list:{number}");
    let mut since = Instant::now();
    while !stop.is_cancelled() {
        let mut both = redis::pipe();
        both.cmd("RPUSH").arg(&list).arg(next);
        both.cmd("SET").arg(format!("soon:{number}:{}", next % 50)).arg(next).arg("PX").arg(40);
        match both.query_async::<(u64, String)>(&mut to).await {
            Ok((length, _)) => {
                assert_eq!(length, next + 1, "client {number}");
                next += 1;
                longest = longest.max(since.elapsed());
                tokio::time::sleep(pace).await;
                since = Instant::now();
            }
            Err(error) => {
                let code = error.code().unwrap_or_default().to_owned();
                assert!(matches!(&*code, "NOPERM" | "READONLY"), "client {number}: {error}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                let now = *owner.borrow();
                if now != side {
                    side = now;
                    to = connection(&world, side).await;
                }
            }
        }
    }
    (next, longest)
}

struct Following {
    task: JoinHandle<rehome_part::Result<()>>,
    stop: CancellationToken,
    state: watch::Receiver<FollowState>,
}

fn follow(part: &Arc<RedisPart>, flow: Flow) -> Following {
    let (report, state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let (part, token) = (part.clone(), stop.clone());
    let task = tokio::spawn(async move { part.follow(flow, report, token).await });
    Following { task, stop, state }
}

impl Following {
    async fn is_close(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        let is_close = |state: &FollowState| state.lag_seconds.is_some_and(|lag| lag < 1.0);
        while !is_close(&self.state.borrow()) {
            assert!(Instant::now() < until, "the follower never came close: {:?}", self.state.borrow());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn finish(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// What the engine does, in its order. Gives how long each step took while writes were refused.
async fn switch(
    part: &Arc<RedisPart>,
    flow: Flow,
    nonce: &str,
    following: Following,
) -> Vec<(&'static str, Duration)> {
    part.warm(flow).await.unwrap();
    let marker = Marker { epoch: Epoch::FIRST, nonce: nonce.to_owned() };
    let mut steps = Vec::new();
    let mut since = Instant::now();
    let mut done = |name| {
        steps.push((name, since.elapsed()));
        since = Instant::now();
    };
    part.fence(flow.from()).await.unwrap();
    done("fence");
    assert_eq!(part.probe(flow.from()).await.unwrap(), Fence::ProvedClosed);
    done("proof");
    let position = part.head(flow).await.unwrap();
    part.mark(flow, &marker).await.unwrap();
    done("mark");
    let drained = part.drain(flow, &position, &marker, CancellationToken::new()).await.unwrap();
    assert!(drained.marker_seen && part.covers(&drained.applied, &position));
    done("drain");
    let compared =
        part.verify(flow, Scope::Since(position), Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert!(compared.is_equal() && compared.in_motion == 0, "{compared:?}");
    done("verify");
    following.finish().await;
    done("stop");
    part.seal(flow).await.unwrap();
    done("seal");
    part.unfence(flow.to()).await.unwrap();
    assert_eq!(part.probe(flow.to()).await.unwrap(), Fence::Open);
    done("open");
    steps
}

fn counter(world: &World, side: Side, name: &str) -> u64 {
    let stats = world.own(side, &["INFO", "stats"]);
    let found =
        stats.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':')?.parse().ok());
    found.unwrap()
}

fn list(world: &World, side: Side, number: usize) -> Vec<u64> {
    let text = world.own(side, &["LRANGE", &format!("list:{number}"), "0", "-1"]);
    text.lines().map(|line| line.parse().unwrap()).collect()
}

/// The source is here, the target so far away; the two are as far from each other.
async fn far_apart(world: &World, round_trip: Duration) -> (RedisPart, Vec<delay::Delay>) {
    let far = async |side| {
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], world.of(side).port()));
        delay::start(to, round_trip).await.unwrap()
    };
    let (source, target) = (far(Side::Source).await, far(Side::Target).await);
    let at = |end: &End, delay: &delay::Delay| Address { port: delay.address.port(), ..end.address.clone() };
    let (mut here, mut there) = (end(&world.source), end(&world.target));
    here.from_other = Some(at(&here, &source));
    there.address = at(&there, &target);
    let ends = Ends { source: here, target: there };
    (RedisPart::new("cache", ends, FenceMeans::Writes, world.state.path()).unwrap(), vec![source, target])
}

async fn there_and_back(
    clients: usize,
    pace: Duration,
    before: Duration,
    round_trip: Duration,
) -> Vec<Vec<(&'static str, Duration)>> {
    let Some(world) = World::new(FenceMeans::Writes) else { return Vec::new() };
    let world = Arc::new(world);
    world.own(Side::Source, &["SET", "from-before", "1"]);
    let (says_owner, owner) = watch::channel(Side::Source);
    let stop = CancellationToken::new();
    let tasks: Vec<_> = (0..clients)
        .map(|number| tokio::spawn(client(world.clone(), number, owner.clone(), pace, stop.clone())))
        .collect();
    let (part, _distance) = match round_trip.is_zero() {
        true => (world.part(), Vec::new()),
        false => far_apart(&world, round_trip).await,
    };
    let part = Arc::new(part);
    part.prepare().await.unwrap();
    part.fence(Side::Target).await.unwrap();
    part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    let following = follow(&part, Flow::Forward);
    following.is_close().await;
    tokio::time::sleep(before).await;
    following.is_close().await;
    let there = switch(&part, Flow::Forward, "there", following).await;
    says_owner.send_replace(Side::Target);
    let following = follow(&part, Flow::Reverse);
    following.is_close().await;
    tokio::time::sleep(before).await;
    let since = rehome_part::Position("unknown:0".to_owned());
    assert!(part.sweep(Flow::Forward, &since).await.unwrap().is_empty(), "nobody wrote late");
    let back = switch(&part, Flow::Reverse, "back", following).await;
    says_owner.send_replace(Side::Source);
    let following = follow(&part, Flow::Forward);
    following.is_close().await;
    tokio::time::sleep(before).await;
    stop.cancel();
    let mut written = 0;
    for (number, task) in tasks.into_iter().enumerate() {
        let (acknowledged, longest) = task.await.unwrap();
        let expected: Vec<u64> = (0..acknowledged).collect();
        assert_eq!(list(&world, Side::Source, number), expected, "client {number}");
        written += acknowledged;
        assert!(longest < Duration::from_secs(5), "client {number} waited {longest:?}");
        assert!(acknowledged > 10, "client {number} hardly wrote");
    }
    let head = part.head(Flow::Forward).await.unwrap();
    while !following.state.borrow().applied.as_ref().is_some_and(|applied| part.covers(applied, &head)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let compared =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert!(compared.is_equal(), "{compared:?}");
    following.finish().await;
    // One full copy in the whole of it: each turn goes on from where the other ended.
    assert_eq!(
        (counter(&world, Side::Source, "sync_full"), counter(&world, Side::Target, "sync_full")),
        (1, 0)
    );
    part.retire(Side::Source).await.unwrap();
    println!("{clients} clients, {written} writes, {compared:?}");
    vec![there, back]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_and_back_under_writes_nothing_is_lost_or_doubled_and_nothing_is_copied_twice() {
    there_and_back(8, Duration::from_millis(5), Duration::from_millis(500), Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_writes_wait() {
    if std::env::var_os("REHOME_LONG").is_none() {
        return;
    }
    for millis in [0, 0, 0, 20, 80] {
        let round_trip = Duration::from_millis(millis);
        for steps in
            there_and_back(16, Duration::from_micros(2_500), Duration::from_secs(3), round_trip).await
        {
            let sum: Duration = steps.iter().map(|(_, took)| *took).sum();
            println!("round trip {millis} ms: {sum:?} {steps:?}");
        }
    }
}
