//! `rehome db` as a user sees it: against a real server, killed in the middle, and with what people get wrong.

use crate::harness::{Place, ran};
use rehome_testkit::postgres::{Postgres, programs_or_skip};
use rustix::process::{Pid, Signal, kill_process};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A server, or a word that the test did not run.
fn server() -> Option<Postgres> {
    let server = Postgres::start(&programs_or_skip()?, &[("max_slot_wal_keep_size", "1GB")]).unwrap();
    for database in ["old", "new"] {
        server.sql("postgres", &format!("CREATE DATABASE {database}")).unwrap();
        server
            .sql(
                database,
                "CREATE TABLE orders (id int PRIMARY KEY, what text);
                 INSERT INTO orders SELECT n, 'order ' || n FROM generate_series(1, 5000) n; ANALYZE;",
            )
            .unwrap();
    }
    Some(server)
}

#[test]
fn what_a_review_of_a_database_looks_like() {
    let Some(server) = server() else { return };
    let place = Place::new();
    server.sql("old", "CREATE UNLOGGED TABLE quick (id int PRIMARY KEY)").unwrap();
    let (old, new) = (server.address("postgres", "old"), server.address("postgres", "new"));
    let shown = place.run(&["db", "assess", &old, "--target", &new, "--watch", "0s"]);
    let version = server.sql("old", "SHOW server_version").unwrap();
    let bytes = shown.stdout.split(" in 2 tables").next().and_then(|head| head.split(": ").nth(1));
    let sizes = server
        .sql("old", "SELECT pg_total_relation_size('orders') >> 10, pg_total_relation_size('quick') >> 10")
        .unwrap();
    let (orders, quick) = sizes.split_once('|').unwrap();
    let text = shown.snapshot(&place).replace(&version, "[VERSION]").replace(bytes.unwrap_or("?"), "[SIZE]");
    let text = text
        .replace(&format!("orders {orders}.0 KiB"), "orders [SIZE]")
        .replace(&format!("quick {quick}.0 KiB"), "quick [SIZE]");
    let (before, rest) = text.split_once("estimate: ").unwrap();
    let text = format!("{before}estimate: [TIME] to read{}", rest.split_once(" to read").unwrap().1);
    insta::assert_snapshot!(text);
    let json = place.run(&["--json", "db", "assess", &old, "--watch", "0s"]);
    assert_eq!((json.code, json.last_json()["assessed"]["tables"].as_u64()), (10, Some(2)));
}

#[test]
fn two_databases_are_compared_and_differences_named() {
    let Some(server) = server() else { return };
    let place = Place::new();
    let (old, new) = (server.address("postgres", "old"), server.address("postgres", "new"));
    let same = place.run(&["db", "verify", &old, &new]);
    assert_eq!(same.code, 0, "{}", same.stderr);
    assert!(
        same.stdout.starts_with("same      public.orders  5,000 rows\n1 tables, 5,000 rows in "),
        "{}",
        same.stdout
    );
    server
        .sql("new", "DELETE FROM orders WHERE id <= 30; UPDATE orders SET what = 'x' WHERE id = 4000")
        .unwrap();
    server.sql("new", "CREATE TABLE extra (id int)").unwrap();
    let differs = place.run(&["db", "verify", &old, &new, "--patience", "0s"]);
    let text = differs.snapshot(&place);
    let (before, took) = text.split_once(" rows in ").unwrap();
    let text = format!("{before} rows in [TIME]:{}", took.split_once(':').unwrap().1);
    insta::assert_snapshot!(text);
    let json = place.run(&["--json", "db", "verify", &old, &new, "--patience", "0s"]).last_json();
    assert_eq!((&json["same"], &json["tables"][1]["differing"]), (&false.into(), &31.into()));
}

#[test]
fn a_killed_comparison_goes_on_where_it_was() {
    let Some(server) = server() else { return };
    let place = Place::new();
    let (old, new) = (server.address("postgres", "old"), server.address("postgres", "new"));
    let arguments = ["--json", "db", "verify", &old, &new, "--chunk-rows", "1"];
    let mut child = place.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let marks = || std::fs::read_dir(place.path("state/verifications")).map_or(0, Iterator::count);
    let begun = Instant::now();
    while !has_begun(&place) && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert_eq!(marks(), 1, "it left its marks");
    let again = ran(place.command(&arguments).output().unwrap());
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(again.last_json()["tables"][0]["source_rows"], 5000, "each row once");
    assert_eq!(marks(), 0);
}

/// Do the marks tell of rows?
fn has_begun(place: &Place) -> bool {
    let Ok(mut files) = std::fs::read_dir(place.path("state/verifications")) else { return false };
    let text = files.find_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    text.is_some_and(|text| text.contains("\"source_rows\":") && !text.contains("\"source_rows\":0"))
}

#[test]
fn what_people_get_wrong_is_told_without_a_secret() {
    let place = Place::new();
    for (arguments, code, said) in [
        (&["db", "assess", "postgres://app:hunter2@db/shop"][..], 2, "holds a password"),
        (&["db", "assess", "mysql://app@127.0.0.1:1/shop"], 5, "Connection refused"),
        (&["db", "assess", "redis://127.0.0.1:1"], 5, "Connection refused"),
        (
            &["db", "verify", "mysql://app@127.0.0.1:1/shop", "redis://127.0.0.1:1"],
            1,
            "the source is MySQL or MariaDB and the target Redis",
        ),
        (
            &["db", "assess", "mysql://app@127.0.0.1:1/shop", "--target", "redis://127.0.0.1:1"],
            2,
            "the target Redis",
        ),
        (&["db", "assess", "postgres://app@127.0.0.1:1/shop"], 5, "Connection refused"),
        (
            &["db", "assess", "postgres://app@db/shop", "--password", "env:NOT_SET_HERE"],
            6,
            "NOT_SET_HERE is not set",
        ),
        (
            &[
                "db",
                "verify",
                "postgres://a@127.0.0.1:1/x",
                "postgres://a@127.0.0.1:1/x",
                "--patience",
                "soon",
            ],
            2,
            "soon",
        ),
        (
            &["db", "verify", "postgres://a@db/x?sslmode=require", "postgres://a@db/x"],
            2,
            "does not prove which server",
        ),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(
            ran.stderr.contains(said) && !ran.stderr.contains("hunter2"),
            "{arguments:?}: {}",
            ran.stderr
        );
    }
}
