//! The same for clients that come by the gateway's own door: in one connection from before the move until after it was taken back.

use crate::bouncer::{Stage, Way, followed, runs, switched, whole};
use crate::harness::wait_for;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn there_and_back_under_pgbench() {
    runs("writes", Way::Front, "simple");
}

/// Statements that were prepared before the move are run after it.
#[test]
fn there_and_back_with_prepared_statements() {
    runs("writes", Way::Front, "prepared");
}

#[test]
fn there_and_back_with_logins_shut_out() {
    runs("logins", Way::Front, "prepared");
}

/// The same clients all the time, the same two servers, the same connections; a hundred switches in the long runs.
#[test]
fn there_and_back_again_and_again() {
    let rounds = std::env::var("REHOME_ROUNDS").ok().and_then(|text| text.parse().ok());
    whole("writes", Way::Front, "prepared", rounds.unwrap_or(2));
}

/// A session of psql that is asked line by line.
struct Psql {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Psql {
    fn open(stage: &Stage) -> Self {
        let mut command = stage.client("psql");
        command.args(["-X", "-q", "-A", "-t"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, input, output: BufReader::new(output) }
    }

    fn say(&mut self, statement: &str) {
        writeln!(self.input, "{statement};").unwrap();
    }

    fn ask(&mut self, statement: &str) -> String {
        self.say(statement);
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seen before anybody waits: the switch does not begin, and whoever it is is named.
#[test]
fn a_report_of_minutes_keeps_the_switch_from_beginning_and_is_named() {
    let Some(stage) = Stage::open("writes", Way::Front) else { return };
    let bench = followed(&stage);
    let mut report = Psql::open(&stage);
    report.say("SET application_name = 'report'; BEGIN");
    assert_eq!(report.ask("SELECT 7"), "7");
    let age = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'report' AND xact_start < now() - interval '2500 ms'";
    wait_for("a transaction that is older than a hold waits", PATIENCE, || {
        (stage.source.sql("orders", age).unwrap() == "1").then_some(())
    });
    let refused = stage.rehome(&["switch", "--yes"]);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert_eq!(refused.code, 20, "{said}");
    assert!(said.contains("in-flight") && said.contains("PostgreSQL orders: shop, psql"), "{said}");
    assert_eq!(report.ask("COMMIT; SELECT current_setting('application_name')"), "report");
    switched(&stage);
    stage.goes_on(&stage.target, 100);
    assert_eq!(report.ask("SELECT current_setting('application_name')"), "report", "it came along");
    let (count, longest) = bench.end();
    assert_eq!(stage.rows(&stage.target), count, "lost or doubled");
    assert!(longest < 1_500.0, "nobody waited for the report: {longest} ms");
}
