//! What `assess` finds on a real Redis, what a comparison finds between two, and how they are reached.

use crate::redis_world::{OWN, end, server};
use rehome_databases::redis::{Session, assess, connect, fits};
use rehome_databases::verify::{Found, Options, Pair, Progress, What, verify};
use rehome_databases::{Address, redis};
use rehome_part::{Error, ErrorKind, Finding, Severity, Side};
use rehome_testkit::redis::{Redis, is_here_or_skip};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

async fn own(server: &Redis, side: Side) -> Session {
    let end = end(server);
    connect(&end.address, end.password.as_deref(), side).await.unwrap()
}

fn ids(findings: &[Finding], severity: Severity) -> Vec<&str> {
    let of = findings.iter().filter(|finding| finding.severity == severity);
    let mut ids: Vec<&str> = of.map(|finding| &*finding.id).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn a_server_that_can_move_has_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users.acl");
    std::fs::write(&users, "user rehome on >own-secret ~* &* +@all\nuser app on >app-secret ~* &* +@all\n")
        .unwrap();
    let users = users.display().to_string();
    let (Some(source), Some(target)) = (
        is_here_or_skip().then(|| Redis::start(&[("aclfile", &users), ("save", "3600 1")]).unwrap()),
        server(&[]),
    ) else {
        return;
    };
    for number in 0..10 {
        source.run(&["SET", &format!("key:{number}"), "x"]).unwrap();
    }
    source.run(&["-n", "7", "SET", "soon", "x", "EX", "1000"]).unwrap();
    let session = own(&source, Side::Source).await;
    let (assessed, written) = tokio::join!(assess(&session, Duration::from_secs(1)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        source.run(&["MSET", "a", "1", "b", "2", "c", "3"]).unwrap()
    });
    let (assessed, _) = (assessed.unwrap(), written);
    assert_eq!((assessed.keys, assessed.expiring, assessed.databases[&7]), (11, 1, 1));
    assert_eq!(assessed.users, ["app", "default"]);
    assert!(assessed.watched.unwrap().changes_per_second.unwrap() > 2.0, "{:?}", assessed.watched);
    assert_eq!(ids(&assessed.findings, Severity::Blocker), Vec::<&str>::new(), "{:?}", assessed.findings);
    assert_eq!(ids(&assessed.findings, Severity::Warning), Vec::<&str>::new(), "{:?}", assessed.findings);
    assert_eq!(ids(&assessed.findings, Severity::Info), ["clients", "expiring", "no-password"]);
    let fits = fits(&assessed, &own(&target, Side::Target).await).await.unwrap();
    assert_eq!(ids(&fits, Severity::Info), ["target-empty"], "{fits:?}");
    assert_eq!(fits.len(), 1);
}

#[tokio::test]
async fn what_stands_in_the_way_is_found() {
    let settings =
        [("maxmemory", "100mb"), ("maxmemory-policy", "allkeys-lru"), ("repl-backlog-size", "16kb")];
    let (Some(source), Some(target)) =
        (server(&settings), server(&[("databases", "4"), ("maxmemory", "1mb")]))
    else {
        return;
    };
    source.run(&["-n", "7", "SET", "a", "x"]).unwrap();
    source.run(&["XADD", "events", "*", "f", "v"]).unwrap();
    source.run(&["XGROUP", "CREATE", "events", "readers", "0"]).unwrap();
    source
        .run(&["FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)"])
        .unwrap();
    source.run(&["EVAL", "return 1", "0"]).unwrap();
    source.run(&["SETRANGE", "big", "2000000", "x"]).unwrap();
    target.run(&["SET", "theirs", "x"]).unwrap();
    source.run(&["ACL", "SETUSER", "small", "on", ">pw", "~*", "+@all", "-psync", "-replicaof"]).unwrap();
    let address = |server: &Redis, user: &str| Address::parse(&server.address(user, 0)).unwrap();
    let default = connect(&address(&source, "default"), None, Side::Source).await.unwrap();
    let (assessed, ()) = tokio::join!(assess(&default, Duration::from_millis(600)), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let many: Vec<String> = (0..2_000).map(|number| format!("m{number}")).collect();
        let mut words = vec!["MSET"];
        words.extend(many.iter().flat_map(|key| [&**key, "x"]));
        source.run(&words).unwrap();
    });
    let assessed = assessed.unwrap();
    assert_eq!(ids(&assessed.findings, Severity::Blocker), ["own-user"], "{:?}", assessed.findings);
    assert_eq!(
        ids(&assessed.findings, Severity::Warning),
        ["backlog-size", "evicts", "fence-not-durable", "no-persistence"],
        "{:?}",
        assessed.findings
    );
    assert_eq!(ids(&assessed.findings, Severity::Info), ["clients", "functions", "scripts", "streams"]);
    let remedies = assessed.findings.iter().filter(|finding| finding.severity != Severity::Info);
    assert!(remedies.clone().all(|finding| finding.remedy.is_some()), "each says what to do");
    let fits = fits(&assessed, &own(&target, Side::Target).await).await.unwrap();
    assert_eq!(ids(&fits, Severity::Blocker), ["databases", "target-not-empty", "too-small"], "{fits:?}");
    let small = connect(&address(&source, "small"), Some("pw"), Side::Source).await.unwrap();
    let refused = redis::assess(&small, Duration::ZERO).await.unwrap();
    assert_eq!(ids(&refused.findings, Severity::Blocker), ["may-replicate"], "{:?}", refused.findings);
}

#[tokio::test]
async fn a_cluster_and_a_replica_are_refused_and_so_is_a_cloud_without_replication() {
    let forbidden = [("rename-command", "REPLICAOF forbidden"), ("rename-command", "PSYNC also-forbidden")];
    let (Some(plain), Some(cluster)) = (server(&[]), server(&[("cluster-enabled", "yes")])) else { return };
    let session = own(&cluster, Side::Source).await;
    let assessed = assess(&session, Duration::ZERO).await.unwrap();
    assert_eq!(ids(&assessed.findings, Severity::Blocker), ["cluster"], "{:?}", assessed.findings);
    let port = plain.port().to_string();
    let replica = server(&[("replicaof", &format!("127.0.0.1 {port}"))]).unwrap();
    let assessed = assess(&own(&replica, Side::Source).await, Duration::ZERO).await.unwrap();
    assert_eq!(ids(&assessed.findings, Severity::Blocker), ["is-replica"], "{:?}", assessed.findings);
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("redis.conf");
    let lines = forbidden.map(|(name, value)| format!("{name} {value}\n")).concat();
    std::fs::write(&configuration, lines).unwrap();
    let cloud = server(&[("include", &configuration.display().to_string())]).unwrap();
    let assessed = assess(&own(&cloud, Side::Source).await, Duration::ZERO).await.unwrap();
    assert_eq!(
        ids(&assessed.findings, Severity::Blocker),
        ["replication-forbidden"],
        "{:?}",
        assessed.findings
    );
    let fits = fits(&assessed, &own(&cloud, Side::Target).await).await.unwrap();
    assert_eq!(ids(&fits, Severity::Blocker), ["replication-forbidden"], "{fits:?}");
}

/// The same content made in another order, so that sets and hashes are packed otherwise.
fn fill(server: &Redis, numbers: impl Iterator<Item = u32> + Clone) {
    for number in numbers.clone() {
        let number = number.to_string();
        server
            .run(&[
                "SADD",
                "set",
                &format!("a longer member that does not fit the small form of a set {number}"),
            ])
            .unwrap();
        server.run(&["HSET", "hash", &number, &"x".repeat(80)]).unwrap();
        server.run(&["-n", "5", "ZADD", "sorted", &number, &format!("{number}{}", "y".repeat(90))]).unwrap();
    }
    server.run(&["SET", "bytes", "\u{1}\u{7f}"]).unwrap();
    server.run(&["RPUSH", "list", "1", "2", "3"]).unwrap();
    server.run(&["XADD", "events", "1-1", "f", "v"]).unwrap();
    server.run(&["XGROUP", "CREATE", "events", "readers", "0"]).unwrap();
    server.run(&["SET", "ends", "x", "EXAT", "4000000000"]).unwrap();
    server.run(&["SET", "rehome:ours", &server.port().to_string()]).unwrap();
}

#[tokio::test]
async fn a_comparison_names_every_key_that_differs_and_no_other() {
    let (Some(source), Some(target)) = (server(&[]), server(&[("hash-max-listpack-entries", "4")])) else {
        return;
    };
    fill(&source, 0..30);
    fill(&target, (0..30).rev());
    let of = |server: &Redis| (end(server).address, end(server).password);
    let pair = Pair { source: of(&source), target: of(&target) };
    let compare = async || {
        let (options, progress) = (Options::default(), Arc::<Progress>::default());
        let stop = CancellationToken::new();
        let mut compared = verify(&pair, &options, Path::new(""), progress, stop).await.unwrap();
        compared.iter_mut().for_each(|one| one.rows.sort());
        compared
    };
    let same = compare().await;
    assert!(same.iter().all(|one| one.found == Found::Same), "{same:?}");
    assert_eq!(
        same.iter().map(|one| (&*one.table, one.source_rows)).collect::<Vec<_>>(),
        [("0", 6), ("5", 1)]
    );
    assert!(same[0].looked_again == 0, "packed otherwise is no difference: {same:?}");
    target.run(&["XGROUP", "SETID", "events", "readers", "1-1"]).unwrap();
    target.run(&["EXPIREAT", "ends", "4000000100"]).unwrap();
    target.run(&["HSET", "hash", "7", "other"]).unwrap();
    target.run(&["DEL", "list"]).unwrap();
    target.run(&["SET", "too-much", "x"]).unwrap();
    target.run(&["-n", "5", "ZADD", "sorted", "7.5", &format!("7{}", "y".repeat(90))]).unwrap();
    let found = compare().await;
    let rows: Vec<(&str, What)> = found[0].rows.iter().map(|row| (&*row.key[0], row.what)).collect();
    assert_eq!(
        rows,
        [
            ("ends", What::Differs),
            ("events", What::Differs),
            ("hash", What::Differs),
            ("list", What::OnlyOnSource),
            ("too-much", What::OnlyOnTarget)
        ]
    );
    assert_eq!(
        (&found[0].found, found[0].differing, found[1].differing),
        (&Found::Differs, 5, 1),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_password_and_a_certificate_are_asked_for() {
    if !is_here_or_skip() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    std::fs::write(&chain, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let settings = [
        ("tls-port", &*port),
        ("tls-cert-file", &*chain),
        ("tls-key-file", &*key),
        ("tls-ca-cert-file", &*chain),
        ("tls-auth-clients", "no"),
    ];
    let server = server(&settings).unwrap();
    let reach = async |rest: &str, password: Option<&str>| -> Result<Session, Error> {
        let address = Address::parse(&format!("rediss://{}@127.0.0.1:{port}/0?{rest}", OWN.0)).unwrap();
        connect(&address, password, Side::Source).await
    };
    let known = format!("sslrootcert={chain}");
    let session = reach(&known, Some(OWN.1)).await.unwrap();
    assert!(assess(&session, Duration::ZERO).await.is_ok());
    for password in [Some("wrong"), None] {
        let error = reach(&known, password).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
        assert!(!error.text.contains("wrong"), "{error}");
    }
    let unknown = reach("sslmode=verify-full", Some(OWN.1)).await.unwrap_err();
    assert!(unknown.text.contains("certificate"), "{unknown}");
    let socket = Address::parse(&server.socket_address(OWN.0, 3)).unwrap();
    connect(&socket, Some(OWN.1), Side::Target).await.unwrap();
    drop(server);
    let gone = connect(&socket, Some(OWN.1), Side::Target).await.unwrap_err();
    assert_eq!((gone.kind, gone.side, gone.is_temporary()), (ErrorKind::Network, Some(Side::Target), true));
}
