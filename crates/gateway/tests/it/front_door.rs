//! Clients of a real PostgreSQL at the front door: what a session keeps when it goes to another server, and who is kept out. The two
//! servers hold the same schema and know of each other nothing: which one answers is seen from a row.

use crate::support::{Gateway, SECRET, TOKEN, eventually, within};
use bytes::{Buf, BytesMut};
use futures::{StreamExt, future::poll_fn};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use rehome_gateway::control::{Refusal, Request as Control, Response as Reply, SessionRule};
use rehome_gateway::postgres::{End, FrontDoor, Login};
use rehome_gateway::{Backend, Config};
use rehome_part::Side;
use rehome_spec::{Certificate, Secret};
use rehome_testkit::postgres::{Postgres, programs_or_skip};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::{AsyncMessage, Client, NoTls};

/// Of a pipeline.
const UNITS: u32 = 10_000;
const PASSWORD: &str = "correct horse";

/// Both servers, and a gateway with a door before them.
struct Stage {
    source: Postgres,
    target: Postgres,
    gateway: Gateway,
    door: SocketAddr,
}

const SCHEMA: &str =
    "CREATE ROLE shop LOGIN PASSWORD 'correct horse'; CREATE ROLE clerk; GRANT clerk TO shop;
    CREATE DATABASE orders OWNER shop";

impl Stage {
    async fn open() -> Option<Self> {
        Self::with(|_, _| {}).await
    }

    /// `change`: the door before it is opened, and where files of the test may be.
    async fn with(change: impl FnOnce(&mut FrontDoor, &std::path::Path)) -> Option<Self> {
        let programs = programs_or_skip()?;
        let start_one = |name: &'static str| {
            let programs = programs.clone();
            tokio::task::spawn_blocking(move || {
                let server = Postgres::start(&programs, &[]).unwrap();
                for statement in SCHEMA.split(';') {
                    server.sql("postgres", statement).unwrap();
                }
                // The numbers of types differ, as they do after a move.
                let other = if name == "target" { "CREATE TYPE unrelated AS ENUM ('x');" } else { "" };
                let tables = format!(
                    "{other} CREATE TYPE mood AS ENUM ('calm', 'busy'); CREATE TABLE here (side text); INSERT INTO here VALUES ('{name}');
                     CREATE TABLE orders (id bigserial PRIMARY KEY, mood mood, note text); GRANT ALL ON ALL TABLES IN SCHEMA public TO shop, clerk;
                     GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO shop, clerk"
                );
                server.sql("orders", &tables).unwrap();
                server
            })
        };
        let (source, target) = tokio::join!(start_one("source"), start_one("target"));
        let (source, target) = (source.unwrap(), target.unwrap());
        let end = |server: &Postgres| End {
            at: Backend {
                host: server.folder().display().to_string(),
                port: 5432,
                database: "orders".into(),
            },
            tls: None,
        };
        let password = || PASSWORD.to_owned();
        let mut door = FrontDoor {
            name: "orders".into(),
            listen: "127.0.0.1:0".into(),
            tls: vec![],
            database: "orders".into(),
            logins: vec![Login { user: "shop".into(), passwords: [password(), password()] }],
            source: end(&source),
            target: end(&target),
        };
        let folder = Arc::new(tempfile::tempdir().unwrap());
        change(&mut door, folder.path());
        let (state, control) = (folder.path().join("state"), folder.path().join("control.sock"));
        let config =
            Config { front_doors: vec![door], ..Config::new("edge-1", state, control, SECRET, vec![]) };
        let gateway = Gateway::again(config, folder).await;
        let door = gateway.running.addresses["orders"];
        gateway.done(Control::Enroll { run: "run".into(), token: TOKEN }).await;
        Some(Self { source, target, gateway, door })
    }

    async fn client(&self) -> Session {
        Session::connect(self.door).await
    }

    async fn arm(&self) {
        self.gateway.done(Gateway::arm(self.gateway.status().await.epoch.0, 10_000)).await;
    }

    async fn hold_by(&self, sessions: SessionRule, in_flight_ms: u64) -> Reply {
        let epoch = self.gateway.status().await.epoch;
        self.gateway.call(Control::Hold { epoch, in_flight_ms, sessions, token: TOKEN }).await
    }

    async fn held(&self) {
        let held = self.hold_by(SessionRule::Wait, 10_000).await;
        assert!(matches!(held, Reply::Held(_)), "{held:?}");
    }

    /// What an attempt ends with, good or given up.
    async fn settle(&self, owner: Side) {
        self.gateway.settle(self.gateway.status().await.epoch.0 + 1, owner).await;
    }

    async fn switch(&self) {
        self.arm().await;
        self.held().await;
        self.settle(Side::Target).await;
    }
}

/// A client with what it is told besides its answers.
struct Session {
    client: Client,
    told: mpsc::UnboundedReceiver<AsyncMessage>,
}

fn config(door: SocketAddr) -> tokio_postgres::Config {
    let mut config = tokio_postgres::Config::new();
    config.host(door.ip().to_string()).port(door.port()).user("shop").dbname("orders").password(PASSWORD);
    config.application_name("till 7");
    config
}

impl Session {
    async fn connect(door: SocketAddr) -> Self {
        Self::of(config(door)).await
    }

    async fn of(config: tokio_postgres::Config) -> Self {
        let (client, mut connection) = within("a login", config.connect(NoTls)).await.unwrap();
        let (sender, told) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                let _nobody_listens = sender.send(message);
            }
        });
        Self { client, told }
    }

    async fn one(&self, statement: &str) -> String {
        let rows = within(statement, self.client.simple_query(statement)).await.unwrap();
        rows.iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("").to_owned()),
                _ => None,
            })
            .unwrap_or_default()
    }

    async fn side(&self) -> String {
        self.one("SELECT side FROM here").await
    }
}

#[tokio::test]
async fn a_session_goes_on_with_everything_that_it_had_become() {
    let Some(stage) = Stage::open().await else { return };
    let mut session = stage.client().await;
    let client = &session.client;
    let insert =
        client.prepare("INSERT INTO orders (mood, note) VALUES ($1, $2) RETURNING id").await.unwrap();
    let typed = client.prepare("SELECT $1::text || current_setting('TimeZone')").await.unwrap();
    session
        .one(
            "SET timezone = 'Asia/Shanghai'; SET statement_timeout = '77s'; SET search_path = public, \"odd \"\" name\"; SET app.tenant = '4''2';
             LISTEN \"Bells\"; SET client_encoding = 'GBK'; SET ROLE clerk",
        )
        .await;
    session.one("PREPARE by_sql (int) AS SELECT $1 + 1;").await;
    assert_eq!(session.side().await, "source");
    stage.switch().await;

    assert_eq!(session.side().await, "target");
    for (what, wanted) in [
        ("SHOW timezone", "Asia/Shanghai"),
        ("SHOW statement_timeout", "77s"),
        ("SHOW search_path", "public, \"odd \"\" name\""),
        ("SHOW app.tenant", "4'2"),
        ("SHOW client_encoding", "GBK"),
        ("SHOW application_name", "till 7"),
        ("SELECT current_user", "clerk"),
        ("SELECT session_user", "shop"),
        ("EXECUTE by_sql (6)", "7"),
        ("SELECT string_agg(name, ',' ORDER BY name) FROM pg_prepared_statements WHERE from_sql", "by_sql"),
    ] {
        assert_eq!(session.one(what).await, wanted, "{what}");
    }
    let joined: String = session.client.query_one(&typed, &[&"in "]).await.unwrap().get(0);
    assert_eq!(joined, "in Asia/Shanghai");
    // The enum has another number at the target; the statement was prepared there for its name.
    assert_eq!(insert.params()[0].name(), "mood");
    let statement = "SELECT parameter_types::text FROM pg_prepared_statements WHERE statement LIKE 'INSERT%'";
    assert_eq!(session.one(statement).await, "{mood,text}");

    stage.target.sql("orders", "NOTIFY \"Bells\", 'rung'").unwrap();
    let rung = within("a notification", async {
        loop {
            if let AsyncMessage::Notification(note) = session.told.recv().await.unwrap() {
                return note.payload().to_owned();
            }
        }
    });
    assert_eq!(rung.await, "rung");
}

#[tokio::test]
async fn idle_sessions_leave_the_old_server_by_themselves() {
    let Some(stage) = Stage::open().await else { return };
    let sessions = futures::future::join_all((0..20).map(|_| stage.client())).await;
    stage.switch().await;
    let count = |server: &Postgres| {
        server.sql("orders", "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'").unwrap()
    };
    eventually("all sessions are at the target", || {
        let there = (count(&stage.source), count(&stage.target));
        async move { there == ("0".into(), "20".into()) }
    })
    .await;
    for session in &sessions {
        assert_eq!(session.side().await, "target");
    }
}

#[tokio::test]
async fn an_open_transaction_holds_the_switch_up_and_is_named() {
    let Some(stage) = Stage::open().await else { return };
    let (busy, other) = (stage.client().await, stage.client().await);
    busy.one("BEGIN; INSERT INTO orders (note) VALUES ('one')").await;
    stage.arm().await;
    let Reply::Refused { why: Refusal::InFlight, text } = stage.hold_by(SessionRule::Wait, 50).await else {
        panic!()
    };
    assert!(text.contains("PostgreSQL orders: shop, till 7"), "{text}");
    // Who is inside goes on to the end, who is not waits, and a newcomer too.
    let (waits, comes) =
        (tokio::spawn(async move { other.side().await }), tokio::spawn(Session::connect(stage.door)));
    stage.gateway.waiting(2).await;
    busy.one("INSERT INTO orders (note) VALUES ('two')").await;
    busy.one("COMMIT").await;
    stage.held().await;
    assert_eq!(stage.source.sql("orders", "SELECT count(*) FROM orders").unwrap(), "2");
    stage.settle(Side::Target).await;
    assert_eq!(waits.await.unwrap(), "target");
    assert_eq!(comes.await.unwrap().side().await, "target");
    assert_eq!(busy.side().await, "target");
}

#[tokio::test]
async fn what_cannot_go_elsewhere_counts_as_a_session() {
    let Some(stage) = Stage::open().await else { return };
    stage.source.sql("orders", "CREATE TABLE only_here (n int)").unwrap();
    for (what, undo) in [
        ("CREATE TEMPORARY TABLE basket (n int)", "DROP TABLE basket"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock_all()"),
        ("SET app.tenant = '1'; PREPARE mine AS SELECT 7", "DEALLOCATE mine"),
        ("PREPARE mine AS SELECT * FROM only_here", "DEALLOCATE mine"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "CLOSE c"),
    ] {
        let session = stage.client().await;
        session.one(what).await;
        stage.arm().await;
        for rule in [SessionRule::Refuse, SessionRule::Wait] {
            let held = stage.hold_by(rule, 100).await;
            assert!(matches!(held, Reply::Refused { why: Refusal::Sessions, .. }), "{what}: {held:?}");
        }
        stage.settle(Side::Source).await;
        // Another transaction, and it is as it was.
        session.side().await;
        stage.arm().await;
        let held = stage.hold_by(SessionRule::Refuse, 100).await;
        assert!(matches!(held, Reply::Refused { why: Refusal::Sessions, .. }), "{what}: {held:?}");
        stage.settle(Side::Source).await;
        session.one(undo).await;
        stage.arm().await;
        let held = stage.hold_by(SessionRule::Refuse, 100).await;
        assert!(matches!(held, Reply::Held(_)), "{undo}: {held:?}");
        stage.settle(Side::Source).await;
    }
    let session = stage.client().await;
    session.one("SELECT pg_advisory_lock(7)").await;
    stage.arm().await;
    let held = stage.hold_by(SessionRule::Wait, 50).await;
    assert!(matches!(held, Reply::Refused { why: Refusal::Sessions, .. }), "{held:?}");
    // It waits itself, and is ended all the same.
    let error = async { session.client.simple_query("SELECT 1").await.unwrap_err() };
    let closing = async {
        stage.gateway.waiting(1).await;
        stage.hold_by(SessionRule::Close, 2_000).await
    };
    let (error, held) = tokio::join!(error, closing);
    assert!(matches!(held, Reply::Held(_)), "{held:?}");
    stage.settle(Side::Target).await;
    let is_told = error.is_closed() || error.code() == Some(&SqlState::ADMIN_SHUTDOWN);
    assert!(is_told, "{error}");
    assert_eq!(stage.client().await.side().await, "target");
}

/// As with `fence = "logins"`: the old server ends every session while its client waits, and then the switch is given up.
#[tokio::test]
async fn a_session_that_was_ended_under_a_switch_is_made_again_where_it_was() {
    let Some(stage) = Stage::open().await else { return };
    let (idle, waiting) = (stage.client().await, stage.client().await);
    for session in [&idle, &waiting] {
        session.one("SET app.tenant = '42'").await;
        session.one("PREPARE mine AS SELECT 7").await;
    }
    stage.arm().await;
    stage.held().await;
    let waits =
        tokio::spawn(
            async move { (waiting.one("EXECUTE mine").await, waiting.one("SHOW app.tenant").await) },
        );
    stage.gateway.waiting(1).await;
    stage
        .source
        .sql("orders", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'")
        .unwrap();
    stage.settle(Side::Source).await;
    assert_eq!(waits.await.unwrap(), ("7".to_owned(), "42".to_owned()));
    assert_eq!(
        (idle.side().await, idle.one("SHOW app.tenant").await),
        ("source".to_owned(), "42".to_owned())
    );
}

#[tokio::test]
async fn a_server_that_ends_a_session_outside_a_switch_is_heard() {
    let Some(stage) = Stage::open().await else { return };
    let session = stage.client().await;
    session.side().await;
    stage
        .source
        .sql("orders", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'shop'")
        .unwrap();
    eventually("the client is told", || async { session.client.is_closed() }).await;
    assert_eq!(stage.client().await.side().await, "source");
}

#[tokio::test]
async fn a_statement_is_cancelled_wherever_the_session_is() {
    let Some(stage) = Stage::open().await else { return };
    let session = stage.client().await;
    for side in ["source", "target"] {
        assert_eq!(session.side().await, side);
        let cancel = session.client.cancel_token();
        let slow = session.client.simple_query("SELECT pg_sleep(60)");
        let cancelled = async {
            let server = if side == "source" { &stage.source } else { &stage.target };
            eventually("the statement runs", || {
                let running = server.sql(
                    "orders",
                    "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'",
                );
                async move { running.unwrap() == "1" }
            })
            .await;
            cancel.cancel_query(NoTls).await.unwrap();
        };
        let (error, ()) = tokio::join!(slow, cancelled);
        assert_eq!(error.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
        if side == "source" {
            stage.switch().await;
        }
    }
}

#[tokio::test]
async fn pipelines_and_copies_pass_and_wait_at_their_ends() {
    let Some(stage) = Stage::open().await else { return };
    let session = Arc::new(stage.client().await);
    let rows = 50_000;
    let copy = session.client.copy_in("COPY orders (note) FROM STDIN").await.unwrap();
    let mut copy = std::pin::pin!(copy);
    use futures::SinkExt;
    copy.send(bytes::Bytes::from("half\n".repeat(rows / 2))).await.unwrap();
    stage.arm().await;
    assert!(matches!(
        stage.hold_by(SessionRule::Wait, 20).await,
        Reply::Refused { why: Refusal::InFlight, .. }
    ));
    copy.send(bytes::Bytes::from("half\n".repeat(rows / 2))).await.unwrap();
    // Sent behind the end of the COPY, before it is answered.
    let behind = session.clone();
    let asked = tokio::spawn(async move { behind.side().await });
    assert_eq!(copy.finish().await.unwrap(), rows as u64);
    stage.held().await;
    stage.settle(Side::Target).await;
    assert_eq!(asked.await.unwrap(), "target", "a statement of its own, so it waited");
    assert_eq!(stage.source.sql("orders", "SELECT count(*) FROM orders").unwrap(), rows.to_string());

    let out = session
        .client
        .copy_out("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 20000)) TO STDOUT")
        .await
        .unwrap();
    let bytes: usize =
        out.map(|piece| piece.unwrap().len()).fold(0, |sum, more| async move { sum + more }).await;
    assert_eq!(bytes, 20_000 * 1_001);
    let many = (0..500).map(|n: i32| {
        let session = session.clone();
        async move { session.client.query_one("SELECT $1::int4", &[&n]).await.unwrap().get::<_, i32>(0) }
    });
    assert_eq!(futures::future::join_all(many).await, (0..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn nobody_comes_in_who_should_not() {
    let Some(stage) = Stage::open().await else { return };
    let refused = |change: fn(&mut tokio_postgres::Config) -> &mut tokio_postgres::Config| {
        let mut config = config(stage.door);
        change(&mut config);
        async move {
            let error = within("a refusal", config.connect(NoTls)).await.err().expect("it came in");
            let error = error.as_db_error().unwrap_or_else(|| panic!("{error}")).clone();
            (error.code().code().to_owned(), error.message().to_owned())
        }
    };
    let (wrong, message) = refused(|config| config.password("guess")).await;
    let (nobody, no_message) = refused(|config| config.user("mallory")).await;
    assert_eq!((&*wrong, &*nobody), ("28P01", "28P01"));
    assert_eq!(
        message.replace("shop", "?"),
        no_message.replace("mallory", "?"),
        "whether he exists is not told"
    );
    assert_eq!(refused(|config| config.dbname("postgres")).await.0, "3D000");
    // A role of the server that is no application's: the migration's own is not to be had here.
    assert_eq!(refused(|config| config.user("postgres")).await.0, "28P01");

    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0, 0, 7, 0, 3, 0, 0], &[0xff; 64], &[0, 0, 0, 9, 0, 2, 0, 0, 0]]
    {
        let mut stream = TcpStream::connect(stage.door).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut said = Vec::new();
        let _cut = within("the end of it", stream.read_to_end(&mut said)).await;
        assert!(said.is_empty() || said[0] == b'E', "{garbage:?}: {said:?}");
    }
    assert_eq!(stage.client().await.side().await, "source");
}

#[tokio::test]
async fn servers_may_ask_for_any_proof() {
    let Some(stage) = Stage::open().await else { return };
    for (method, encryption) in
        [("scram-sha-256", "scram-sha-256"), ("password", "scram-sha-256"), ("md5", "md5")]
    {
        let rules = stage.source.folder().join("data/pg_hba.conf");
        std::fs::write(rules, format!("local all shop {method}\nlocal all all trust\n")).unwrap();
        let settings = format!(
            "SET password_encryption = '{encryption}'; ALTER ROLE shop PASSWORD '{PASSWORD}'; SELECT pg_reload_conf()"
        );
        stage.source.sql("postgres", &settings).unwrap();
        eventually("the rules count", || {
            let without = stage.source.sql(
                "postgres",
                &format!("SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = '{method}'"),
            );
            async move { without.unwrap() == "1" }
        })
        .await;
        assert_eq!(stage.client().await.side().await, "source", "{method}");
    }
}

#[tokio::test]
async fn a_door_with_a_certificate_takes_nothing_but_tls() {
    let mut chain = None;
    let stage = Stage::with(|door, folder| {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (path, key) = (folder.join("door.pem"), folder.join("door.key"));
        std::fs::write(&path, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        door.tls = vec![Certificate { chain: path.clone(), key: Secret(format!("file:{}", key.display())) }];
        chain = Some(path);
    });
    let Some(stage) = stage.await else { return };
    let error = config(stage.door).connect(NoTls).await.err().unwrap();
    assert_eq!(error.code(), Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION));
    let psql = programs_or_skip().unwrap().join("psql");
    let asked = tokio::process::Command::new(psql)
        .args(["-X", "-A", "-t", "-c", "SELECT side FROM here"])
        .arg(format!(
            "host=127.0.0.1 port={} user=shop dbname=orders sslmode=verify-full sslrootcert={}",
            stage.door.port(),
            chain.unwrap().display()
        ))
        .env("PGPASSWORD", PASSWORD)
        .output();
    let asked = within("psql", asked).await.unwrap();
    assert_eq!(
        String::from_utf8_lossy(&asked.stdout),
        "source\n",
        "{}",
        String::from_utf8_lossy(&asked.stderr)
    );
}

/// A client that speaks message by message.
struct Raw {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Raw {
    async fn login(door: SocketAddr, version: u32) -> Self {
        let mut raw = Self { stream: TcpStream::connect(door).await.unwrap(), buffer: BytesMut::new() };
        let mut hello = BytesMut::new();
        frontend::startup_message([("user", "shop"), ("database", "orders")], &mut hello).unwrap();
        hello[4..8].copy_from_slice(&version.to_be_bytes());
        raw.stream.write_all(&hello).await.unwrap();
        if version != 3 << 16 {
            assert_eq!(raw.next().await.0, b'v', "it says which version it speaks");
        }
        let mut scram = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        assert_eq!(raw.next().await.0, b'R');
        raw.say(|out| frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), out).unwrap()).await;
        scram.update(&raw.next().await.1[4..]).unwrap();
        raw.say(|out| frontend::sasl_response(scram.message(), out).unwrap()).await;
        scram.finish(&raw.next().await.1[4..]).unwrap();
        raw.until_ready().await;
        raw
    }

    async fn say(&mut self, put: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        put(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn next(&mut self) -> (u8, BytesMut) {
        within("a message", async {
            loop {
                if self.buffer.len() >= 5 {
                    let length = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                    if self.buffer.len() > length {
                        let mut message = self.buffer.split_to(length + 1);
                        let kind = message.get_u8();
                        message.advance(4);
                        return (kind, message);
                    }
                }
                assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "the door closed");
            }
        })
        .await
    }

    /// The kinds of all messages up to `ReadyForQuery`, and the bytes of the last row.
    async fn until_ready(&mut self) -> (String, Vec<u8>) {
        let (mut kinds, mut row) = (String::new(), Vec::new());
        loop {
            let (kind, body) = self.next().await;
            kinds.push(char::from(kind));
            match kind {
                b'D' => row = body[6..].to_vec(),
                b'Z' => return (kinds, row),
                _ => {}
            }
        }
    }
}

/// As drivers do that ask for the types of a statement first: the statement without a name outlives the switch between the two.
#[tokio::test]
async fn a_statement_without_a_name_goes_along() {
    let Some(stage) = Stage::open().await else { return };
    let mut raw = Raw::login(stage.door, 3 << 16).await;
    raw.say(|out| {
        frontend::parse("", "SELECT side || $1 FROM here", [25], out).unwrap();
        frontend::describe(b'S', "", out).unwrap();
        frontend::sync(out);
    })
    .await;
    assert_eq!(raw.until_ready().await.0, "1tTZ");
    stage.switch().await;
    raw.say(|out| {
        let nothing = |_: &(), _: &mut BytesMut| Ok(postgres_protocol::IsNull::No);
        let value = |(): (), out: &mut BytesMut| {
            out.extend_from_slice(b"!");
            nothing(&(), out)
        };
        let bound = frontend::bind("", "", [], [()], value, [], out);
        assert!(bound.is_ok());
        frontend::execute("", 0, out).unwrap();
        frontend::sync(out);
    })
    .await;
    let (kinds, row) = raw.until_ready().await;
    assert_eq!((kinds.trim_start_matches('S'), &row[..]), ("2DCZ", &b"target!"[..]));
}

/// Half a message is no transaction: whoever sends no more holds nobody up, and costs nothing.
#[tokio::test]
async fn a_client_that_stops_in_a_message_holds_nothing() {
    let Some(stage) = Stage::open().await else { return };
    let mut raw = Raw::login(stage.door, 3 << 16).await;
    let mut whole = BytesMut::new();
    frontend::query("SELECT side FROM here", &mut whole).unwrap();
    let rest = whole.split_off(9);
    for half in [whole.split_to(3), whole] {
        raw.stream.write_all(&half).await.unwrap();
        assert_eq!(stage.client().await.side().await, "source");
    }
    let transactions = stage.gateway.status().await.services[0].writes_total;
    assert!(transactions <= 2, "{transactions} transactions of one client");
    stage.switch().await;
    raw.stream.write_all(&rest).await.unwrap();
    assert!(raw.until_ready().await.1.starts_with(b"target"));
}

/// Units that were sent at once are transactions of their own: those that the door had not passed on go to the new owner, in order.
#[tokio::test]
async fn a_client_that_never_waits_is_held_between_two_units() {
    let Some(stage) = Stage::open().await else { return };
    let raw = Raw::login(stage.door, (3 << 16) + 2).await;
    let mut many = BytesMut::new();
    for n in 0..UNITS {
        frontend::query(&format!("INSERT INTO orders (note) VALUES ('{n}')"), &mut many).unwrap();
    }
    let (mut reading, mut writing) = raw.stream.into_split();
    let sends = tokio::spawn(async move {
        writing.write_all(&many).await.unwrap();
        writing
    });
    let reads = tokio::spawn(async move {
        let (mut buffer, mut answered) = (BytesMut::new(), 0);
        while answered < UNITS {
            assert!(reading.read_buf(&mut buffer).await.unwrap() > 0);
            while buffer.len() >= 5 {
                let length = u32::from_be_bytes(buffer[1..5].try_into().unwrap()) as usize;
                if buffer.len() <= length {
                    break;
                }
                let message = buffer.split_to(length + 1);
                assert_ne!(message[0], b'E', "{}", String::from_utf8_lossy(&message));
                answered += u32::from(message[0] == b'Z');
            }
        }
    });
    let count = |server: &Postgres| {
        server.sql("orders", "SELECT count(*) FROM orders").unwrap().parse::<u32>().unwrap()
    };
    eventually("some are done", || {
        let done = count(&stage.source);
        async move { done > 100 }
    })
    .await;
    stage.switch().await;
    let at_source = count(&stage.source);
    within("all answers", reads).await.unwrap();
    drop(sends.await.unwrap());
    assert_eq!(count(&stage.source), at_source, "nothing came there after the hold");
    assert_eq!(at_source + count(&stage.target), UNITS, "each once");
    let order = "SELECT count(*) FROM (SELECT note::int - lag(note::int) OVER (ORDER BY id) AS step FROM orders) s WHERE step <> 1";
    for server in [&stage.source, &stage.target] {
        assert_eq!(server.sql("orders", order).unwrap(), "0", "in order");
    }
    assert!(at_source < UNITS, "the switch came too late to show anything");
}

#[tokio::test]
async fn a_gateway_that_ends_lets_transactions_finish() {
    let Some(stage) = Stage::open().await else { return };
    let (busy, idle) = (stage.client().await, stage.client().await);
    busy.one("BEGIN; INSERT INTO orders (note) VALUES ('one')").await;
    let Stage { gateway, source, .. } = stage;
    let drains = tokio::spawn(gateway.running.drain(Duration::from_secs(20)));
    eventually("the idle one is told", || async { idle.client.is_closed() }).await;
    busy.one("COMMIT").await;
    assert_eq!(within("the drain", drains).await.unwrap().cut, 0);
    assert_eq!(source.sql("orders", "SELECT count(*) FROM orders").unwrap(), "1");
}
