//! A whole migration and its way back with the application's clients behind a real PgBouncer: pgbench writes all the time, and neither a
//! transaction fails nor is one lost or doubled.

use crate::demo::times;
use crate::harness::{Gateway, Place, Ran, Running, free_port, ran, wait_for};
use rehome_testkit::delay::{self, Delay};
use rehome_testkit::pgbouncer::{self, PgBouncer};
use rehome_testkit::postgres::{Postgres, programs_or_skip};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub const PATIENCE: Duration = Duration::from_secs(120);
const SETTINGS: [(&str, &str); 5] = [
    ("wal_retrieve_retry_interval", "100ms"),
    ("max_connections", "100"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("shared_buffers", "64MB"),
];
pub const CLIENTS: u32 = 8;

/// Rows that each client numbers, in the order in which they were acknowledged, beside a balance that each of them adds to.
const TABLES: &str =
    "CREATE TABLE acked (id bigserial PRIMARY KEY, client int NOT NULL, n int NOT NULL, UNIQUE (client, n));
    CREATE TABLE balance (client int PRIMARY KEY, sum bigint NOT NULL);
    INSERT INTO balance SELECT client, 0 FROM generate_series(0, 63) client;
    ALTER TABLE acked OWNER TO shop; ALTER TABLE balance OWNER TO shop";
pub const SCRIPT: &str = "\\set n :n + 1\nBEGIN;\nINSERT INTO acked (client, n) VALUES (:client_id, :n);\n\
    UPDATE balance SET sum = sum + :n WHERE client = :client_id;\nCOMMIT;\n";

/// The way clients come to their database.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// With this `pool_mode`.
    Bouncer(&'static str),
    /// The gateway's own door.
    Front,
}

pub const BOUNCER: Way = Way::Bouncer("transaction");

pub struct Stage {
    pub place: Place,
    pub programs: PathBuf,
    pub source: Postgres,
    pub target: Postgres,
    bouncer: Option<PgBouncer>,
    pub gateway: Option<Gateway>,
    /// What is between everybody and each server, where they were put apart.
    pub lines: Option<Lines>,
}

/// The way to each server, for the engine, the other server and PgBouncer alike.
pub struct Lines {
    pub source: Delay,
    pub target: Delay,
    _runtime: tokio::runtime::Runtime,
}

impl Lines {
    fn to(source: u16, target: u16) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let to = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let line = |port| runtime.block_on(delay::start(to(port), Duration::ZERO)).unwrap();
        Self { source: line(source), target: line(target), _runtime: runtime }
    }
}

/// A server that is reached by a port, too.
fn with_port(port: &str) -> Vec<(&'static str, &str)> {
    let reached = [("listen_addresses", "127.0.0.1"), ("port", port)];
    SETTINGS.into_iter().chain(reached).collect()
}

impl Stage {
    pub fn open(fence: &str, way: Way) -> Option<Self> {
        Self::open_on(&std::env::temp_dir(), fence, way)
    }

    /// `disk`: where the target's files are.
    fn open_on(disk: &Path, fence: &str, way: Way) -> Option<Self> {
        let programs = programs_or_skip()?;
        let source = Postgres::start(&programs, &SETTINGS).unwrap();
        let target = Postgres::start_in(disk, &programs, &SETTINGS).unwrap();
        Self::of(programs, way, (source, target), None, fence)
    }

    /// With lines to both servers that can be cut.
    pub fn open_apart(fence: &str, way: Way) -> Option<Self> {
        let programs = programs_or_skip()?;
        let ports = [free_port(), free_port()];
        let start = |port: u16| Postgres::start(&programs, &with_port(&port.to_string())).unwrap();
        let servers = (start(ports[0]), start(ports[1]));
        let lines = Lines::to(ports[0], ports[1]);
        Self::of(programs, way, servers, Some(lines), fence)
    }

    fn of(
        programs: PathBuf,
        way: Way,
        (source, target): (Postgres, Postgres),
        lines: Option<Lines>,
        fence: &str,
    ) -> Option<Self> {
        source.sql("postgres", "CREATE ROLE shop LOGIN").unwrap();
        source.sql("postgres", "CREATE DATABASE orders OWNER shop").unwrap();
        source.sql("orders", TABLES).unwrap();
        let made = Command::new(programs.join("pgbench"))
            .args(["-i", "-q", "-U", "shop", "-p", &source.port().to_string(), "-h"])
            .arg(source.folder())
            .arg("orders")
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for server in [&source, &target] {
            server.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN").unwrap();
        }
        let place = Place::new();
        for secret in ["console", "secret"] {
            let path = place.write(secret, secret);
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        }
        let end = |server: &Postgres, line: Option<&Delay>| {
            let url = match line {
                None => server.address("rehome", "orders"),
                Some(line) => format!("postgres://rehome@{}/orders?sslmode=disable", line.address),
            };
            let secret = place.path("secret");
            format!(
                "url = {url:?}\napplications = [{{ user = \"shop\", password = \"file:{}\" }}]\n",
                secret.display()
            )
        };
        let (bouncer, front) = match way {
            Way::Bouncer(pool_mode) => {
                let program = pgbouncer::program_or_skip()?;
                let databases = match &lines {
                    None => format!("orders = host={} dbname=orders", source.folder().display()),
                    Some(lines) => {
                        format!("orders = host=127.0.0.1 port={} dbname=orders", lines.source.address.port())
                    }
                };
                let users = [("rehome", "console"), ("shop", "secret")];
                let settings = format!("pool_mode = {pool_mode}");
                let bouncer = PgBouncer::start(&program, &databases, &users, &settings).unwrap();
                let table = format!(
                    "[[databases.pgbouncers]]\nadmin = {:?}\npassword = \"file:{}\"\nfile = {:?}\n",
                    bouncer.address("rehome", "pgbouncer"),
                    place.path("console").display(),
                    bouncer.folder().join("rehome.ini"),
                );
                (Some(bouncer), table)
            }
            Way::Front => (None, "[databases.front]\nlisten = \"127.0.0.1:0\"\n".to_owned()),
        };
        place.write(
            "rehome.toml",
            &format!(
                "[migration]\nname = \"orders\"\nsource = {{ cloud = \"a\", region = \"here\" }}\ntarget = {{ cloud = \"b\", region = \"there\" }}\n\n\
                 [switch]\nmax_pause = \"2s\"\naccept = [\"no-bypass\"]\n\n[[databases]]\nname = \"orders\"\nfence = {fence:?}\n\n\
                 [databases.source]\n{}\n[databases.target]\n{}\n{front}\n[[gateways]]\nname = \"one\"\ncontrol = {:?}\n",
                end(&source, lines.as_ref().map(|lines| &lines.source)),
                end(&target, lines.as_ref().map(|lines| &lines.target)),
                place.path("g.sock"),
            ),
        );
        let gateway = Gateway::start(&place, "rehome.toml", "one");
        Some(Self { place, programs, source, target, bouncer, gateway: Some(gateway), lines })
    }

    pub fn rehome(&self, words: &[&str]) -> Ran {
        let mut command = self.place.command(&["--file", "rehome.toml"]);
        ran(command.args(words).output().unwrap())
    }

    /// A program of PostgreSQL as the application, the way that clients come.
    pub fn client(&self, program: &str) -> Command {
        let (host, port) = match (&self.bouncer, self.gateway.as_ref().and_then(|gateway| gateway.front)) {
            (Some(bouncer), _) => (bouncer.folder().display().to_string(), pgbouncer::PORT),
            (None, Some(front)) => (front.ip().to_string(), front.port()),
            (None, None) => panic!("clients have no way"),
        };
        let mut command = Command::new(self.programs.join(program));
        command.args(["-U", "shop", "-p", &port.to_string(), "-h", &host]);
        command.args(["-d", "orders"]).env("PGPASSWORD", "secret").current_dir(self.place.folder.path());
        command
    }

    /// Clients at `rate` transactions a second together until they are told to end: with our own script, or TPC-B.
    pub fn bench(&self, name: &str, clients: u32, rate: u32, work: &[&str]) -> Bench {
        let mut command = self.client("pgbench");
        command.args(["-n", "-c", &clients.to_string(), "-j", "2", "-l", &format!("--log-prefix={name}")]);
        command.args(["-R", &rate.to_string(), "-T", "600"]).args(work);
        let errors = self.place.path(&format!("{name}-errors"));
        command.stderr(std::fs::File::create(&errors).unwrap());
        let running = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Bench { running: Running(running), logs: self.place.path(&format!("{name}.")), errors }
    }

    /// What PgBouncer's console answers.
    fn console(&self, statement: &str) -> String {
        let bouncer = self.bouncer.as_ref().unwrap();
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-A", "-t", "-U", "rehome", "-d", "pgbouncer", "-c", statement]);
        command.args(["-p", &pgbouncer::PORT.to_string(), "-h"]).arg(bouncer.folder());
        let answer = command.env("PGPASSWORD", "console").output().unwrap();
        String::from_utf8_lossy(&answer.stdout).into_owned()
    }

    /// What PgBouncer wrote about it.
    fn said(&self) -> String {
        let log = self.bouncer.as_ref().map(|bouncer| bouncer.folder().join("log"));
        log.and_then(|log| std::fs::read_to_string(log).ok()).unwrap_or_default()
    }

    pub fn rows(&self, server: &Postgres) -> u64 {
        server.sql("orders", "SELECT count(*) FROM acked").unwrap().parse().unwrap()
    }

    /// What clients of our script saw committed is there, once, in the order of each of them, and nothing else.
    pub fn has_all(&self, server: &Postgres, committed: u64) {
        assert_eq!(self.rows(server), committed, "lost or doubled");
        for wrong in [
            "SELECT count(*) FROM (SELECT count(*) AS have, max(n) AS last FROM acked GROUP BY client) c WHERE have <> last",
            "SELECT count(*) FROM (SELECT n - lag(n) OVER (PARTITION BY client ORDER BY id) AS step FROM acked) s WHERE step <> 1",
            "SELECT count(*) FROM balance JOIN (SELECT client, sum(n) AS wanted FROM acked GROUP BY client) a USING (client)
             WHERE sum <> wanted",
        ] {
            assert_eq!(server.sql("orders", wrong).unwrap(), "0", "{wrong}");
        }
    }

    /// Clients with our own script, `rate` transactions a second together.
    pub fn ours(&self, rate: u32, protocol: &str) -> Bench {
        let script = self.place.write("script.sql", SCRIPT);
        self.bench("ours", CLIENTS, rate, &["-M", protocol, "-D", "n=0", "-f", script.to_str().unwrap()])
    }

    /// So many more rows arrive there.
    pub fn goes_on(&self, server: &Postgres, more: u64) {
        let wanted = self.rows(server) + more;
        wait_for("rows", PATIENCE, || (self.rows(server) >= wanted).then_some(()));
    }
}

/// Clients at work.
pub struct Bench {
    running: Running,
    /// How the names of its logs begin.
    logs: PathBuf,
    errors: PathBuf,
}

impl Bench {
    /// Ends it as the end of its time would, and says what it saw committed: none failed.
    pub fn end(mut self) -> (u64, f64) {
        crate::harness::send(self.running.0.id(), rustix::process::Signal::ALARM);
        let ended = wait_for("the end of pgbench", PATIENCE, || self.running.0.try_wait().unwrap());
        assert!(ended.success(), "{}", std::fs::read_to_string(&self.errors).unwrap());
        committed(&self.logs)
    }
}

/// Transactions that pgbench saw committed, and the longest one of them in milliseconds.
fn committed(logs: &Path) -> (u64, f64) {
    let (mut count, mut longest) = (0, 0.0_f64);
    for entry in std::fs::read_dir(logs.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if !path.to_string_lossy().starts_with(&*logs.to_string_lossy()) {
            continue;
        }
        for line in std::fs::read_to_string(path).unwrap().lines() {
            // client, number, time in microseconds with its wait in the schedule, script, second, microsecond, that wait
            let mut words = line.split(' ').map(|word| word.parse::<f64>().unwrap_or(f64::NAN));
            let (took, late) = (words.nth(2).unwrap(), words.nth(3).unwrap_or(0.0));
            assert!(took.is_finite(), "a transaction failed: {line}");
            (count, longest) = (count + 1, longest.max((took - late) / 1e3));
        }
    }
    (count, longest)
}

/// One time, or as often as the long runs say.
pub fn runs(fence: &str, way: Way, protocol: &str) {
    for _ in 0..times() {
        whole(fence, way, protocol, 1);
    }
}

/// There and back while clients write; what they saw committed is there, once, in their order.
pub fn whole(fence: &str, way: Way, protocol: &str, rounds: u32) {
    let rate = std::env::var("REHOME_BENCH_RATE").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    let Some(stage) = Stage::open(fence, way) else { return };
    let doctor = stage.rehome(&["doctor"]);
    assert_eq!(doctor.code, 0, "{}\n{}", doctor.stdout, doctor.stderr);
    let ours = stage.ours(rate, protocol);
    let tpcb = stage.bench("tpcb", 4, rate / 4, &["-M", protocol, "-b", "tpcb-like"]);
    stage.goes_on(&stage.source, 200);
    let pause = || stage.rehome(&["report", "--json"]).last_json()["write_pause_ms"].to_string();
    let end_with = format!("--end-with={}", std::process::id());
    let mut pauses = Vec::new();
    for round in 0..rounds {
        // The run that was taken back follows still: the next time is a switch, not another run.
        let words = if round == 0 { vec!["apply", "--yes", &end_with] } else { vec!["switch", "--yes"] };
        let applied = stage.rehome(&words);
        assert_eq!(applied.code, 0, "round {round}: {}\n{}", applied.stdout, applied.stderr);
        stage.goes_on(&stage.target, 200);
        let there = stage.rehome(&["report", "--json"]).last_json();
        assert_eq!(there["one_writable_side_proved"], true, "{there:#}");
        let reversed = stage.rehome(&["reverse", "--yes"]);
        assert_eq!(reversed.code, 21, "round {round}: {}\n{}", reversed.stdout, reversed.stderr);
        stage.goes_on(&stage.source, 200);
        if round == 0 {
            let again = stage.rehome(&["apply", "--yes"]);
            assert_eq!(again.code, 21, "{}\n{}", again.stdout, again.stderr);
            assert!(again.stderr.contains("go there again: `rehome switch`"), "{}", again.stderr);
        }
        pauses.extend([there["write_pause_ms"].to_string(), pause()]);
    }

    let ((ours, longest), (tpcb, longest_tpcb)) = (ours.end(), tpcb.end());
    assert!(
        longest.max(longest_tpcb) < 5_000.0,
        "a client waited {longest} or {longest_tpcb} ms: {}",
        stage.said()
    );
    stage.has_all(&stage.source, ours);
    for (what, wanted) in [
        ("SELECT count(*) FROM pgbench_history", tpcb),
        (
            "SELECT abs((SELECT sum(delta) FROM pgbench_history) - (SELECT sum(abalance) FROM pgbench_accounts))",
            0,
        ),
        (
            "SELECT abs((SELECT sum(delta) FROM pgbench_history) - (SELECT sum(bbalance) FROM pgbench_branches))",
            0,
        ),
    ] {
        assert_eq!(stage.source.sql("orders", what).unwrap(), wanted.to_string(), "{what}");
    }
    eprintln!(
        "{way:?}, {fence}: {ours} and {tpcb} transactions at {rate} and {}/s, the longest {longest:.0} and {longest_tpcb:.0} ms; pauses {} ms",
        rate / 4,
        pauses.join(", ")
    );
}

#[test]
fn there_and_back_under_pgbench() {
    runs("writes", BOUNCER, "simple");
}

#[test]
fn there_and_back_with_logins_shut_out() {
    runs("logins", BOUNCER, "simple");
}

/// The same clients all the time, the same two servers; a hundred switches in the long runs.
#[test]
fn there_and_back_again_and_again() {
    if let Some(rounds) = std::env::var("REHOME_ROUNDS").ok().and_then(|text| text.parse().ok()) {
        whole("writes", BOUNCER, "simple", rounds);
    }
}

/// Who does not come to an end keeps the switch from beginning, and nobody else waits for long.
#[test]
fn a_transaction_that_stays_open_gives_the_switch_up_and_clients_go_on() {
    let Some(stage) = Stage::open("writes", BOUNCER) else { return };
    let bench = stage.ours(200, "simple");
    let end_with = format!("--end-with={}", std::process::id());
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);

    let mut psql = stage.client("psql").args(["-X", "-q"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = psql.stdin.take().unwrap();
    input.write_all(b"BEGIN; UPDATE balance SET sum = sum WHERE client = 63;\n").unwrap();
    let inside = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND query LIKE '%client = 63%'";
    wait_for("an open transaction", PATIENCE, || {
        (stage.source.sql("orders", inside).unwrap() == "1").then_some(())
    });
    let refused = stage.rehome(&["switch", "--yes"]);
    assert_ne!(refused.code, 0, "{}\n{}", refused.stdout, refused.stderr);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("PgBouncer orders"), "who holds it up is named: {said}");
    stage.goes_on(&stage.source, 100);

    input.write_all(b"COMMIT;\n").unwrap();
    drop(input);
    assert!(psql.wait().unwrap().success());
    let switched = stage.rehome(&["switch", "--yes"]);
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    stage.goes_on(&stage.target, 100);
    let (count, longest) = bench.end();
    assert_eq!(stage.rows(&stage.target), count, "lost or doubled");
    eprintln!("{count} transactions, the longest {longest:.0} ms with one attempt given up");
}

/// A gateway that is killed changes nothing for clients; the next one goes on, and switches.
#[test]
fn clients_need_no_gateway_but_for_a_switch() {
    let Some(mut stage) = Stage::open("writes", BOUNCER) else { return };
    let bench = stage.ours(200, "simple");
    let end_with = format!("--end-with={}", std::process::id());
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);
    drop(stage.gateway.take());
    stage.goes_on(&stage.source, 100);
    let refused = stage.rehome(&["switch", "--yes"]);
    assert_ne!(refused.code, 0, "{}\n{}", refused.stdout, refused.stderr);
    stage.goes_on(&stage.source, 100);
    stage.gateway = Some(Gateway::start(&stage.place, "rehome.toml", "one"));
    let switched = stage.rehome(&["switch", "--yes"]);
    assert_eq!(switched.code, 0, "{}\n{}", switched.stdout, switched.stderr);
    stage.goes_on(&stage.target, 100);
    let config = stage.console("SHOW CONFIG");
    assert!(config.contains("server_login_retry|1|"), "one login that fails must not cost 15 s: {config}");
    // What was decided outlives both.
    drop(stage.gateway.take());
    stage.gateway = Some(Gateway::start(&stage.place, "rehome.toml", "one"));
    stage.goes_on(&stage.target, 100);
    let (count, _) = bench.end();
    assert_eq!(stage.rows(&stage.target), count, "lost or doubled");
}

/// Our own script at work, and a run that follows.
pub fn followed(stage: &Stage) -> Bench {
    let bench = stage.ours(200, "simple");
    let end_with = format!("--end-with={}", std::process::id());
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);
    bench
}

/// Until an attempt succeeds.
pub fn switched(stage: &Stage) {
    wait_for("a switch", PATIENCE, || (stage.rehome(&["switch", "--yes"]).code == 0).then_some(()));
}

#[test]
fn a_follower_that_is_killed_again_and_again_loses_nothing() {
    let Some(stage) = Stage::open("writes", BOUNCER) else { return };
    let bench = followed(&stage);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let workers = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'logical replication worker'";
            while !done.load(Ordering::Relaxed) {
                stage.target.sql("orders", workers).unwrap();
                std::thread::sleep(Duration::from_millis(700));
            }
        });
        stage.goes_on(&stage.target, 400);
        switched(&stage);
        done.store(true, Ordering::Relaxed);
    });
    stage.goes_on(&stage.target, 100);
    let (count, longest) = bench.end();
    assert_eq!(stage.rows(&stage.target), count, "lost or doubled");
    eprintln!("{count} transactions, the longest {longest:.0} ms while the follower was killed");
}

#[test]
fn a_slot_dropped_under_a_run_keeps_the_switch_away_and_clients_go_on() {
    let Some(stage) = Stage::open("writes", BOUNCER) else { return };
    let bench = followed(&stage);
    let drop =
        "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL;
                SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
    wait_for("the slot to be free", PATIENCE, || stage.source.sql("orders", drop).ok());
    stage.goes_on(&stage.source, 100);
    let refused = stage.rehome(&["switch", "--yes"]);
    assert_ne!(refused.code, 0, "{}\n{}", refused.stdout, refused.stderr);
    stage.goes_on(&stage.source, 100);
    let status = stage.rehome(&["status"]);
    let said = "is gone: what was written meanwhile cannot be followed";
    assert!(status.stdout.contains(said), "{}\n{}", status.stdout, status.stderr);
    assert!(status.stdout.contains("begin the copy anew"), "what to do: {}", status.stdout);
    let (count, longest) = bench.end();
    assert_eq!(stage.rows(&stage.source), count, "lost or doubled");
    assert!(longest < 5_000.0, "{longest} ms");
}

/// A small disk in memory; gone with the test.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=240m,mode=755", "none"])
            .arg(path)
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(path.to_owned()));
        }
        assert!(std::env::var_os("REHOME_REQUIRE_TOOLS").is_none(), "nothing may be mounted here");
        eprintln!("SKIPPED: nothing may be mounted here");
        None
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_at_the_target_keeps_the_switch_away_until_there_is_room() {
    let room = tempfile::tempdir().unwrap();
    std::fs::set_permissions(room.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let Some(disk) = Disk::mount(&room.path().join("disk")) else { return };
    let Some(mut stage) = Stage::open_on(&disk.0, "writes", BOUNCER) else { return };
    let bench = followed(&stage);
    let ballast = disk.0.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    // Until nothing more fits.
    while file.write_all(&[0; 65_536]).is_ok() {}
    drop(file);
    // More than fits into the files that the target has already.
    let fill = "INSERT INTO acked (client, n) SELECT 1000 + c, 1 FROM generate_series(1, 120000) c";
    stage.source.sql("orders", fill).unwrap();
    let refused = stage.rehome(&["switch", "--yes"]);
    assert_ne!(refused.code, 0, "{}\n{}", refused.stdout, refused.stderr);
    stage.goes_on(&stage.source, 100);

    std::fs::remove_file(&ballast).unwrap();
    wait_for("the target", PATIENCE, || {
        stage.target.start_again(&SETTINGS).unwrap();
        stage.target.sql("orders", "SELECT 1").ok()
    });
    switched(&stage);
    stage.goes_on(&stage.target, 100);
    let (count, longest) = bench.end();
    assert_eq!(stage.rows(&stage.target), count + 120_000, "lost or doubled");
    eprintln!("{count} transactions, the longest {longest:.0} ms while the target's disk was full");
}

#[test]
fn pools_by_session_cannot_be_held_and_doctor_says_so() {
    let Some(stage) = Stage::open("writes", Way::Bouncer("session")) else { return };
    let Some(other) = Stage::open("writes", BOUNCER) else { return };
    let doctor = other.rehome(&["doctor"]);
    assert!(doctor.stdout.contains("holds between transactions"), "{}", doctor.stdout);
    let doctor = stage.rehome(&["doctor"]);
    assert_eq!(doctor.code, 10, "{}\n{}", doctor.stdout, doctor.stderr);
    assert!(doctor.stdout.contains("pool_mode is session"), "{}", doctor.stdout);
}
