//! What the contract does not ask: foreign keys, users, settings, late writes, aborts, broken links, and what leads around a fence.

use crate::redis_world::{APPLICATION, OWN, World, end, login, server};
use crate::support::Unseen;
use rehome_databases::redis::RedisPart;
use rehome_databases::{End, Ends, FenceMeans};
use rehome_part::{Epoch, ErrorKind, Fence, Flow, FollowState, Marker, Part, Progress, Scope, Side};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

async fn copied(world: &World) -> RedisPart {
    let part = world.part();
    part.prepare().await.unwrap();
    part.fence(Side::Target).await.unwrap();
    part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    part
}

/// Until just before the commit.
async fn sealed(world: &World) -> RedisPart {
    let part = copied(world).await;
    part.fence(Side::Source).await.unwrap();
    let position = part.head(Flow::Forward).await.unwrap();
    let marker = Marker { epoch: Epoch::FIRST, nonce: "one".to_owned() };
    part.mark(Flow::Forward, &marker).await.unwrap();
    part.drain(Flow::Forward, &position, &marker, CancellationToken::new()).await.unwrap();
    part.seal(Flow::Forward).await.unwrap();
    part
}

/// Follows until `condition` holds.
async fn follow_until(part: &RedisPart, flow: Flow, condition: impl Fn(&FollowState) -> bool) {
    let (report, state) = watch::channel(FollowState::default());
    let stop = CancellationToken::new();
    let until = async {
        let until = Instant::now() + Duration::from_secs(20);
        while !condition(&state.borrow()) {
            assert!(Instant::now() < until, "it never came: {:?}", state.borrow());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    let (followed, ()) = tokio::join!(part.follow(flow, report, stop.clone()), until);
    followed.unwrap();
}

fn full_copies(world: &World, side: Side) -> String {
    let stats = world.own(side, &["INFO", "stats"]);
    stats.lines().find_map(|line| line.trim().strip_prefix("sync_full:")).unwrap().to_owned()
}

fn is_close(state: &FollowState) -> bool {
    state.backlog == Some(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_others_on_the_target_are_not_wiped() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "ours", "1"]);
    world.own(Side::Target, &["SET", "theirs", "1"]);
    let part = world.part();
    let assessed = part.assess().await.unwrap();
    assert!(assessed.findings.iter().any(|finding| finding.id == "target-not-empty"), "{assessed:?}");
    part.prepare().await.unwrap();
    let error = part.copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Unsupported, Some(Side::Target)), "{error}");
    assert_eq!(world.own(Side::Target, &["GET", "theirs"]), "1");
    // Nor does a follower that was never preceded by a copy begin one.
    let (report, _) = watch::channel(FollowState::default());
    let error = part.follow(Flow::Forward, report, CancellationToken::new()).await.unwrap_err();
    assert!(error.text.contains("nothing was copied"), "{error}");
    assert_eq!(world.own(Side::Target, &["GET", "theirs"]), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_all_databases_come_along_and_everything_of_ours_goes() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    world.own(
        Side::Source,
        &["ACL", "SETUSER", "worker", "on", ">queue", "~jobs:*", "+@list", "+@connection"],
    );
    world.of(Side::Source).run(&["-n", "9", "SET", "elsewhere", "1"]).unwrap();
    world.own(Side::Source, &["RPUSH", "jobs:1", "a"]);
    world.own(Side::Target, &["CONFIG", "SET", "masterauth", "was-here"]);
    let users = world.own(Side::Target, &["ACL", "LIST"]);
    let part = sealed(&world).await;
    part.unfence(Side::Target).await.unwrap();
    assert_eq!(world.of(Side::Target).run(&["-n", "9", "GET", "elsewhere"]).unwrap(), "1");
    world.of(Side::Target).run_as(Some(("worker", "queue")), &["RPUSH", "jobs:1", "b"]).unwrap();
    world.of(Side::Target).run_as(Some(("worker", "queue")), &["SET", "jobs:2", "b"]).unwrap_err();
    follow_until(&part, Flow::Reverse, is_close).await;
    assert_eq!(world.own(Side::Source, &["LRANGE", "jobs:1", "0", "-1"]), "a\nb");
    let result =
        part.verify(Flow::Reverse, Scope::Full, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert!(result.is_equal() && result.compared == 2, "{result:?}");
    part.retire(Side::Target).await.unwrap();
    assert!(world.own(Side::Source, &["ROLE"]).starts_with("master"));
    world.application(Side::Source, &["SET", "late", "1"]).unwrap_err();
    assert_eq!(world.own(Side::Target, &["CONFIG", "GET", "masterauth"]), "masterauth\nwas-here");
    assert_eq!(world.own(Side::Source, &["CONFIG", "GET", "masterauth"]), "masterauth");
    assert_eq!(world.own(Side::Source, &["CONFIG", "GET", "repl-backlog-ttl"]), "repl-backlog-ttl\n3600");
    let now = world.own(Side::Target, &["ACL", "LIST"]);
    assert!(users.lines().all(|user| now.contains(user)) && now.lines().count() == 4, "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_after_the_seal_goes_on_following_without_a_second_copy() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "a", "1"]);
    let part = sealed(&world).await;
    // Unseen may write anywhere, and the target has not left the source.
    assert_eq!(part.probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
    assert_eq!(part.probe(Side::Target).await.unwrap(), Fence::ProvedClosed);
    assert!(world.own(Side::Target, &["ROLE"]).starts_with("slave"));
    // As after a kill: another process takes it back.
    let part = {
        drop(part);
        world.part()
    };
    part.unseal(Flow::Forward).await.unwrap();
    part.unfence(Side::Source).await.unwrap();
    let began = Instant::now();
    world.application(Side::Source, &["SET", "a", "2"]).unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "the pause was taken away");
    follow_until(&part, Flow::Forward, |state| {
        is_close(state) && world.own(Side::Target, &["GET", "a"]) == "2"
    })
    .await;
    assert_eq!(full_copies(&world, Side::Source), "1");
    assert!(world.application(Side::Target, &["SET", "a", "3"]).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_writes_are_found_before_the_old_owner_follows_and_survive_where_they_can() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    for key in ["kept", "conflict", "removed", "same"] {
        world.own(Side::Source, &["SET", key, "1"]);
    }
    let part = sealed(&world).await;
    part.unfence(Side::Target).await.unwrap();
    world.own(Side::Source, &["CLIENT", "UNPAUSE"]);
    world.application(Side::Target, &["SET", "conflict", "of the target"]).unwrap();
    world.application(Side::Target, &["SET", "same", "2"]).unwrap();
    for late in [
        &["SET", "conflict", "late"][..],
        &["DEL", "removed"],
        &["SET", "same", "2"],
        &["HSET", "new", "f", "v"],
    ] {
        world.own(Side::Source, late);
    }
    world.own(Side::Source, &["SET", "kept", "late", "EX", "1000"]);
    world.of(Side::Source).run_as(Some(OWN), &["-n", "3", "LPUSH", "third", "x"]).unwrap();
    follow_until(&part, Flow::Reverse, is_close).await;
    // Now the source is a replica; what was found is remembered, by another process as well.
    let since = rehome_part::Position("nothing:0".to_owned());
    let found = world.part().sweep(Flow::Forward, &since).await.unwrap();
    let of = |id: &str| {
        found.iter().filter(|finding| finding.id == id).map(|finding| &*finding.text).collect::<Vec<_>>()
    };
    let conflicts = of("late-write-conflict");
    assert!(conflicts.len() == 1 && conflicts[0].contains("`conflict`"), "{found:?}");
    assert_eq!(of("late-write-copied").len(), 4, "{found:?}");
    assert_eq!(found.len(), 5, "{found:?}");
    for side in [Side::Target, Side::Source] {
        assert_eq!(world.own(side, &["GET", "kept"]), "late");
        assert_eq!(world.own(side, &["GET", "conflict"]), "of the target");
        assert_eq!(world.own(side, &["EXISTS", "removed"]), "0");
        assert_eq!(world.own(side, &["HGET", "new", "f"]), "v");
        assert_eq!(world.of(side).run(&["-n", "3", "LRANGE", "third", "0", "-1"]).unwrap(), "x");
        let left: u64 = world.own(side, &["TTL", "kept"]).parse().unwrap();
        assert!((990..=1000).contains(&left));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_link_is_unknown_lag_and_is_bound_again() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "a", "1"]);
    let part = copied(&world).await;
    follow_until(&part, Flow::Forward, is_close).await;
    // Somebody ends it by hand, and an application takes the chance.
    world.own(Side::Target, &["REPLICAOF", "NO", "ONE"]);
    assert!(world.application(Side::Target, &["SET", "a", "2"]).is_err(), "the target is fenced besides");
    world.own(Side::Source, &["SET", "a", "3"]);
    let said_unknown = std::sync::atomic::AtomicBool::new(false);
    follow_until(&part, Flow::Forward, |state| {
        if state.applied.is_none() {
            assert_eq!(state.lag_seconds, None);
            said_unknown.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        is_close(state) && world.own(Side::Target, &["GET", "a"]) == "3"
    })
    .await;
    assert!(said_unknown.into_inner());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fence_stops_transactions_that_were_begun_and_scripts() {
    use std::io::{BufRead, BufReader, Write};
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    let part = world.part();
    part.prepare().await.unwrap();
    let mut raw = std::net::TcpStream::connect(("127.0.0.1", world.source.port())).unwrap();
    raw.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answers = BufReader::new(raw.try_clone().unwrap()).lines();
    let login = format!("AUTH {} {}\r\n", APPLICATION.0, APPLICATION.1);
    raw.write_all(format!("{login}MULTI\r\nSET begun 1\r\n").as_bytes()).unwrap();
    for wanted in ["+OK", "+OK", "+QUEUED"] {
        assert_eq!(answers.next().unwrap().unwrap(), wanted);
    }
    part.fence(Side::Source).await.unwrap();
    raw.write_all(b"EXEC\r\nEVAL \"return redis.call('SET', 'script', 1)\" 1 script\r\n").unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "*1");
    assert!(answers.next().unwrap().unwrap().starts_with("-NOPERM"));
    assert!(answers.next().unwrap().unwrap().contains("can't run this command"));
    assert_eq!(world.own(Side::Source, &["DBSIZE"]), "0");
    // Reads go on, and nobody takes the fence away by himself.
    assert!(world.application(Side::Source, &["GET", "begun"]).is_ok());
    assert!(world.of(Side::Source).run(&["ACL", "SETUSER", "default", "+@all"]).is_err());
    assert!(world.of(Side::Source).run(&["REPLICAOF", "NO", "ONE"]).is_err());
    assert!(world.of(Side::Source).run(&["SET", "x", "1"]).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_probe_takes_no_word_for_a_proof() {
    let (Some(source), Some(target)) = (server(&[]), server(&[])) else { return };
    let state = tempfile::tempdir().unwrap();
    source.run(&["ACL", "SETUSER", "narrow", "on", ">pw", "~shop:*", "+@all"]).unwrap();
    let part = |applications| {
        let ends = Ends { source: End { applications, ..end(&source) }, target: end(&target) };
        RedisPart::new("cache", ends, FenceMeans::Writes, state.path()).unwrap()
    };
    let narrow = part(vec![login(("narrow", "pw"))]);
    assert_eq!(narrow.probe(Side::Source).await.unwrap(), Fence::Open);
    narrow.fence(Side::Source).await.unwrap();
    assert_eq!(narrow.probe(Side::Source).await.unwrap(), Fence::ProvedClosed);
    let wrong = part(vec![login(("narrow", "not it"))]).probe(Side::Source).await.unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::Credentials);
    assert!(!wrong.text.contains("not it"));
    narrow.unfence(Side::Source).await.unwrap();
    let ourselves = part(vec![login(OWN)]).fence(Side::Source).await.unwrap_err();
    assert_eq!(ourselves.kind, ErrorKind::Unsupported, "{ourselves}");
    assert_eq!(part(vec![]).probe(Side::Source).await.unwrap(), Fence::Open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_changed_behind_the_fence_stays_changed() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    let part = world.part();
    part.fence(Side::Source).await.unwrap();
    world.own(Side::Source, &["ACL", "SETUSER", "app", "resetpass", ">new-secret"]);
    world.part().unfence(Side::Source).await.unwrap();
    world.source.run_as(Some(("app", "new-secret")), &["SET", "a", "1"]).unwrap();
    world.application(Side::Source, &["SET", "a", "1"]).unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_started_anew_is_still_fenced_and_bound_again() {
    let Some(mut world) = World::with_files(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "a", "1"]);
    let part = copied(&world).await;
    world.target.restart().unwrap();
    assert!(world.own(Side::Target, &["ROLE"]).starts_with("master"));
    world.application(Side::Target, &["SET", "b", "1"]).unwrap_err();
    follow_until(&part, Flow::Forward, is_close).await;
    assert_eq!(world.own(Side::Target, &["GET", "a"]), "1");

    // The same for the old owner, once it follows.
    let part = sealed(&world).await;
    part.unfence(Side::Target).await.unwrap();
    follow_until(&part, Flow::Reverse, is_close).await;
    world.source.restart().unwrap();
    world.application(Side::Source, &["SET", "b", "1"]).unwrap_err();
    follow_until(&part, Flow::Reverse, is_close).await;
    assert_eq!(world.own(Side::Source, &["GET", "a"]), "1");
    let since = rehome_part::Position("nothing:0".to_owned());
    let found = part.sweep(Flow::Forward, &since).await.unwrap();
    assert_eq!(found.iter().map(|finding| &*finding.id).collect::<Vec<_>>(), ["replica-restarted"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_owner_that_was_started_anew_before_it_followed_is_not_wiped_unasked() {
    let Some(mut world) = World::with_files(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "a", "1"]);
    let part = sealed(&world).await;
    part.unfence(Side::Target).await.unwrap();
    world.source.restart().unwrap();
    world.own(Side::Source, &["SET", "late", "1"]);
    let (report, _) = watch::channel(FollowState::default());
    let error = part.follow(Flow::Reverse, report, CancellationToken::new()).await.unwrap_err();
    assert_eq!((error.kind, error.side), (ErrorKind::Changed, Some(Side::Source)), "{error}");
    assert_eq!(world.own(Side::Source, &["GET", "late"]), "1");
    let since = rehome_part::Position("nothing:0".to_owned());
    assert_eq!(part.sweep(Flow::Forward, &since).await.unwrap()[0].id, "late-writes-unknown");
    // A person looked, and binds it by hand.
    world.own(Side::Source, &["CONFIG", "SET", "masteruser", OWN.0]);
    world.own(Side::Source, &["CONFIG", "SET", "masterauth", OWN.1]);
    world.own(Side::Source, &["REPLICAOF", "127.0.0.1", &world.target.port().to_string()]);
    follow_until(&part, Flow::Reverse, is_close).await;
    assert_eq!(world.own(Side::Source, &["GET", "a"]), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_over_tls_where_the_address_says_so() {
    if !rehome_testkit::redis::is_here_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let secured = || {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let settings = [
            ("tls-port", &*port),
            ("tls-cert-file", &*chain),
            ("tls-key-file", &*key),
            ("tls-ca-cert-file", &*chain),
            ("tls-auth-clients", "no"),
        ];
        let server = server(&settings).unwrap();
        let text = format!("rediss://{}@127.0.0.1:{port}/0?sslrootcert={chain}", OWN.0);
        let address = rehome_databases::Address::parse(&text).unwrap();
        (End { address, ..end(&server) }, server)
    };
    let ((source_end, source), (target_end, target)) = (secured(), secured());
    let (state, ends) = (tempfile::tempdir().unwrap(), Ends { source: source_end, target: target_end });
    let part = || RedisPart::new("cache", ends.clone(), FenceMeans::Writes, state.path()).unwrap();
    let world = World { source, target, state: tempfile::tempdir().unwrap(), means: FenceMeans::Writes };
    world.own(Side::Source, &["SET", "a", "1"]);
    part().prepare().await.unwrap();
    part().copy(Flow::Forward, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert_eq!(world.own(Side::Target, &["GET", "a"]), "1");
    assert!(world.own(Side::Target, &["CONFIG", "GET", "tls-replication"]).ends_with("yes"));
    let since = part().head(Flow::Forward).await.unwrap();
    world.own(Side::Source, &["SET", "b", "1"]);
    follow_until(&part(), Flow::Forward, |state| {
        is_close(state) && world.own(Side::Target, &["EXISTS", "b"]) == "1"
    })
    .await;
    let result =
        part().verify(Flow::Forward, Scope::Since(since), Arc::new(Unseen), CancellationToken::new()).await;
    let result = result.unwrap();
    assert!(result.is_equal() && result.compared == 2, "{result:?}");
    part().unprepare().await.unwrap();
    assert!(world.own(Side::Target, &["CONFIG", "GET", "tls-replication"]).ends_with("no"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seal_waits_for_the_last_bytes() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    world.own(Side::Source, &["SET", "a", "1"]);
    let part = copied(&world).await;
    follow_until(&part, Flow::Forward, is_close).await;
    // The target hears and does nothing for a while.
    world.own(Side::Target, &["CLIENT", "PAUSE", "600", "WRITE"]);
    world.own(Side::Source, &["SET", "a", "2"]);
    let began = Instant::now();
    let sealed = part.seal(Flow::Forward).await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(300), "{:?}", began.elapsed());
    assert!(part.covers(&sealed.reverse_start, &part.head(Flow::Forward).await.unwrap()));
    assert_eq!(world.own(Side::Target, &["GET", "a"]), "2");
}

#[derive(Debug, Default)]
struct Seen(std::sync::Mutex<Vec<(u64, Option<u64>)>>);

impl Progress for Seen {
    fn update(&self, keys: u64, _: u64, of: Option<u64>, _: Option<u64>) {
        self.0.lock().unwrap().push((keys, of));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_many_keys_says_how_far_it_is_and_can_be_interrupted() {
    let Some(world) = World::new(FenceMeans::Writes) else { return };
    let fill = "for n = 1, 300000 do redis.call('SET', 'key:' .. n, string.rep('x', 100)) end";
    world.own(Side::Source, &["EVAL", fill, "0"]);
    let part = world.part();
    part.prepare().await.unwrap();
    let stop = CancellationToken::new();
    let soon = async {
        tokio::time::sleep(Duration::from_millis(80)).await;
        stop.cancel();
    };
    let (stopped, ()) = tokio::join!(part.copy(Flow::Forward, Arc::new(Unseen), stop.clone()), soon);
    assert_eq!(stopped.unwrap_err().kind, ErrorKind::Cancelled);
    let seen = Arc::new(Seen::default());
    let done = world.part().copy(Flow::Forward, seen.clone(), CancellationToken::new()).await.unwrap();
    assert_eq!(done.objects + done.kept, 300_000);
    let seen = seen.0.lock().unwrap().clone();
    assert!(seen.iter().any(|(keys, of)| *keys > 0 && *keys < 300_000 && *of == Some(300_000)), "{seen:?}");
    assert_eq!(full_copies(&world, Side::Source), "1");
    let verified =
        part.verify(Flow::Forward, Scope::Full, Arc::new(Unseen), CancellationToken::new()).await.unwrap();
    assert!(verified.is_equal() && verified.compared >= 300_000, "{verified:?}");
}
