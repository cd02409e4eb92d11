//! A switch there and back under writers who note what was acknowledged to them: nothing of it is lost, nothing doubled. With
//! `REHOME_LONG=1` it is done several times, and what it took is printed.

use crate::mysql_world::{Following, Quiet, World, follow};
use mysql_async::prelude::Queryable;
use rehome_databases::mysql::MysqlPart;
use rehome_databases::{Address, FenceMeans};
use rehome_part::{Epoch, Fence, Flow, FollowState, Marker, Part, Position, Scope, Severity, Side};
use rehome_testkit::delay;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Each writer commits rows of its own, one after the other, and moves on only when it was told that one is there. What was refused
/// is tried again; what is unknown, because the session was ended, counts as neither.
struct Writers {
    tasks: Vec<JoinHandle<(BTreeSet<i64>, BTreeSet<i64>)>>,
    stop: CancellationToken,
    acked: Arc<AtomicU64>,
}

fn writers(world: &Arc<World>, side: Side, first: i64, count: i64, pause: Duration) -> Writers {
    let (stop, acked) = (CancellationToken::new(), Arc::<AtomicU64>::default());
    let one = |number: i64| {
        let (world, stop, acked) = (Arc::clone(world), stop.clone(), Arc::clone(&acked));
        tokio::spawn(async move {
            let (mut sure, mut unknown) = (BTreeSet::new(), BTreeSet::new());
            let mut conn = None;
            let mut id = first + number;
            while !stop.is_cancelled() {
                let mut open = match conn.take() {
                    Some(open) => open,
                    None => match world.app(side).await {
                        Ok(open) => open,
                        Err(_) => {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                            continue;
                        }
                    },
                };
                let written = async {
                    open.query_drop("START TRANSACTION").await?;
                    open.exec_drop("INSERT INTO shop.acked VALUES (?, 1)", (id,)).await?;
                    open.exec_drop("UPDATE shop.total SET n = n + 1 WHERE id = ?", (number,)).await?;
                    open.query_drop("COMMIT").await
                };
                match written.await {
                    Ok(()) => {
                        sure.insert(id);
                        acked.fetch_add(1, Ordering::Relaxed);
                        id += count;
                        conn = Some(open);
                    }
                    // Refused by the fence: certainly not there.
                    Err(mysql_async::Error::Server(refused)) if refused.code == 1290 => {
                        let _ = open.query_drop("ROLLBACK").await;
                        conn = Some(open);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Err(_) => {
                        unknown.insert(id);
                        id += count;
                    }
                }
                tokio::time::sleep(pause).await;
            }
            (sure, unknown)
        })
    };
    let tasks = (0..count).map(one).collect();
    Writers { tasks, stop, acked }
}

impl Writers {
    async fn end(self) -> (BTreeSet<i64>, BTreeSet<i64>) {
        self.stop.cancel();
        let (mut sure, mut unknown) = (BTreeSet::new(), BTreeSet::new());
        for task in self.tasks {
            let (more, less) = task.await.unwrap();
            sure.extend(more);
            unknown.extend(less);
        }
        (sure, unknown)
    }
}

/// What a switch took, step by step.
#[derive(Debug, Default)]
struct Took(Vec<(&'static str, Duration)>);

impl Took {
    fn step(&mut self, name: &'static str, begun: &mut Instant) {
        self.0.push((name, begun.elapsed()));
        *begun = Instant::now();
    }

    fn sum(&self) -> Duration {
        self.0.iter().map(|(_, took)| *took).sum()
    }
}

/// As the engine does it, from the fence to the moment when the new owner is open.
async fn switch(part: &Arc<MysqlPart>, flow: Flow, following: Following, epoch: u64) -> (Took, Position) {
    part.warm(flow).await.unwrap();
    let since = part.head(flow).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut took = Took::default();
    let mut now = Instant::now();
    part.fence(flow.from()).await.unwrap();
    took.step("fence", &mut now);
    let position = part.head(flow).await.unwrap();
    took.step("head", &mut now);
    let marker = Marker { epoch: Epoch(epoch), nonce: format!("switch-{epoch}") };
    part.mark(flow, &marker).await.unwrap();
    took.step("mark", &mut now);
    let drained = part.drain(flow, &position, &marker, CancellationToken::new()).await.unwrap();
    assert!(drained.marker_seen && part.covers(&drained.applied, &position));
    took.step("drain", &mut now);
    following.finish().await;
    took.step("stop", &mut now);
    let scope = Scope::Since(since);
    let short = part.verify(flow, scope, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    assert!(short.is_equal(), "{short:?}");
    took.step("verify", &mut now);
    part.seal(flow).await.unwrap();
    took.step("seal", &mut now);
    part.unfence(flow.to()).await.unwrap();
    took.step("open", &mut now);
    (took, position)
}

async fn ids(world: &World, side: Side) -> (BTreeSet<i64>, i64, i64) {
    let mut conn = world.mover(side).await;
    let ids: Vec<i64> = conn.query("SELECT id FROM shop.acked").await.unwrap();
    let total: Option<i64> = conn.query_first("SELECT CAST(SUM(n) AS SIGNED) FROM shop.total").await.unwrap();
    (ids.iter().copied().collect(), ids.len() as i64, total.unwrap())
}

#[allow(clippy::print_stderr, reason = "what was measured is told where it was asked for")]
fn tell(text: &str) {
    if std::env::var_os("REHOME_LONG").is_some() {
        eprintln!("{text}");
    }
}

const COUNT: i64 = 8;

fn prepared_world() -> Option<Arc<World>> {
    let world = World::start(FenceMeans::Writes, &[])?;
    world
        .source
        .sql(
            "shop",
            "CREATE TABLE acked (id bigint PRIMARY KEY, n int NOT NULL); CREATE TABLE total (id bigint PRIMARY KEY, n bigint NOT NULL);
             INSERT INTO total SELECT seq, 0 FROM seq_0_to_7",
        )
        .unwrap();
    Some(Arc::new(world))
}

/// The source is here, the target so far away; the two are as far from each other.
async fn far_apart(world: &World, round_trip: Duration) -> (MysqlPart, Vec<delay::Delay>) {
    let far = async |side| {
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], world.server(side).port()));
        delay::start(to, round_trip).await.unwrap()
    };
    let (source, target) = (far(Side::Source).await, far(Side::Target).await);
    let mut ends = world.ends();
    let at = |address: &Address, delay: &delay::Delay| Address {
        host: "127.0.0.1".into(),
        port: delay.address.port(),
        ..address.clone()
    };
    ends.source.from_other = Some(at(&ends.source.address, &source));
    ends.target.address = at(&ends.target.address, &target);
    (world.mysql_part_of(ends), vec![source, target])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_there_exactly_once_there_and_back() {
    there_and_back(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_it_takes_from_far_away() {
    if std::env::var_os("REHOME_LONG").is_some() {
        for millis in [20, 80] {
            tell(&format!("round trip {millis} ms"));
            there_and_back(Duration::from_millis(millis)).await;
        }
    }
}

async fn there_and_back(round_trip: Duration) {
    let Some(world) = prepared_world() else { return };
    let rounds = if std::env::var_os("REHOME_LONG").is_some() { 5 } else { 1 };
    let (part, _distance) = match round_trip.is_zero() {
        true => (world.mysql_part(), Vec::new()),
        false => far_apart(&world, round_trip).await,
    };
    let part = Arc::new(part);
    part.prepare().await.unwrap();
    // The writers are at work from before the first copy on.
    let mut first = 0;
    let mut all = (BTreeSet::new(), BTreeSet::new());
    let pause = Duration::from_millis(8);
    let mut at_work = writers(&world, Side::Source, first, COUNT, pause);
    part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    part.fence(Side::Target).await.unwrap();
    for (epoch, round) in (1..).zip(0..rounds * 2) {
        let flow = if round % 2 == 0 { Flow::Forward } else { Flow::Reverse };
        let mut following = follow(&part, flow);
        following.caught_up().await;
        let (acked, begun) = (at_work.acked.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs(2)).await;
        let rate = (at_work.acked.load(Ordering::Relaxed) - acked) as f64 / begun.elapsed().as_secs_f64();
        let before = following.state.borrow().clone();
        let (took, position) = switch(&part, flow, following, epoch).await;
        let steps: Vec<String> =
            took.0.iter().map(|(name, took)| format!("{name} {:.1} ms", took.as_secs_f64() * 1e3)).collect();
        let sum = took.sum().as_secs_f64() * 1e3;
        tell(&format!(
            "{flow}, {rate:.0} commits/s: closed for {sum:.1} ms ({}); before: lag {:?} s, backlog {:?}",
            steps.join(", "),
            before.lag_seconds,
            before.backlog
        ));
        assert_eq!(part.probe(flow.from()).await.unwrap(), Fence::ProvedClosed);
        assert_eq!(part.probe(flow.to()).await.unwrap(), Fence::Open);
        assert!(part.sweep(flow, &position).await.unwrap().is_empty());
        let (sure, unknown) = at_work.end().await;
        assert!(sure.len() > 100, "the writers did not write");
        first += 1_000_000;
        all.0.extend(sure);
        all.1.extend(unknown);
        let (there, rows, total) = ids(&world, flow.to()).await;
        let lost: Vec<_> = all.0.difference(&there).take(5).collect();
        assert!(lost.is_empty(), "acknowledged and not on the {}: {lost:?}", flow.to());
        let strange: Vec<_> =
            there.iter().filter(|id| !all.0.contains(id) && !all.1.contains(id)).take(5).collect();
        assert!(strange.is_empty(), "nobody wrote {strange:?}");
        assert_eq!(
            (rows, total),
            (there.len() as i64, there.len() as i64),
            "a transaction was applied twice or in half"
        );
        at_work = writers(&world, flow.to(), first, COUNT, pause);
    }
    all.0.extend(at_work.end().await.0);
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    let head = part.head(Flow::Forward).await.unwrap();
    let covered =
        |state: &FollowState| state.applied.as_ref().is_some_and(|applied| part.covers(applied, &head));
    tokio::time::timeout(Duration::from_secs(20), following.state.wait_for(covered)).await.unwrap().unwrap();
    following.finish().await;
    for side in [Side::Source, Side::Target] {
        let (there, ..) = ids(&world, side).await;
        assert!(all.0.is_subset(&there), "something acknowledged is not on the {side}");
    }
    let verified =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    assert!(verified.is_equal(), "{verified:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_skipped_transaction_is_found() {
    let Some(world) = prepared_world() else { return };
    world.source.sql("shop", "INSERT INTO acked SELECT seq, 1 FROM seq_1_to_30000").unwrap();
    let part = Arc::new(world.mysql_part());
    part.prepare().await.unwrap();
    part.copy(Flow::Forward, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    following.finish().await;
    // The replica is told that it has what it never saw.
    world.source.sql("shop", "UPDATE acked SET n = 2 WHERE id IN (123, 29000)").unwrap();
    let skipped = world.source.sql("shop", "SELECT @@GLOBAL.gtid_binlog_pos").unwrap();
    world.target.sql("mysql", &format!("SET GLOBAL gtid_slave_pos = '{skipped}'")).unwrap();
    world.source.sql("shop", "UPDATE acked SET n = 3 WHERE id = 5").unwrap();
    let mut following = follow(&part, Flow::Forward);
    following.caught_up().await;
    let verified =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Quiet), CancellationToken::new()).await.unwrap();
    following.finish().await;
    let texts: Vec<&str> = verified.differences.iter().map(|one| &*one.text).collect();
    assert_eq!(texts, ["acked (123) differs", "acked (29000) differs"]);
    assert!(verified.differences.iter().all(|one| one.severity == Severity::Warning));
}
