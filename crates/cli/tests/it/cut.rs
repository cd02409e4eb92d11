//! The network to one database server is cut in the middle of a switch, exactly at a state, under pgbench behind PgBouncer, and heals. One
//! side owns the data at the end, nothing that was acknowledged is lost, no client sees an error, and the next switch succeeds.

use crate::bouncer::{PATIENCE, Stage};
use crate::harness::{Ran, ran, send, wait_for};
use rehome_testkit::delay::Delay;
use rehome_testkit::postgres::Postgres;
use rustix::process::Signal;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Target,
}
use Side::{Source, Target};

#[derive(Debug, Clone, Copy)]
struct Cut {
    /// The state that the run is in, and the first point of the engine in it.
    state: &'static str,
    point: &'static str,
    side: Side,
    /// How long; every deadline of a switch is shorter than `LONG`.
    lasts: Duration,
    resets: bool,
}

const LONG: Duration = Duration::from_secs(14);

fn at(state: &'static str, side: Side) -> Cut {
    let point = match state {
        "HELD" => "before:fence",
        "FENCED" => "before:drain",
        "DRAINED" => "before:compare",
        "SEALED" => "after:journal:sealed",
        other => panic!("no point in {other}"),
    };
    Cut { state, point, side, lasts: LONG, resets: false }
}

/// The process of the run's engine, once it has stopped itself.
fn stopped_engine(stage: &Stage) -> Option<u32> {
    let state = stage.place.path("state");
    let words = [state.as_os_str().as_encoded_bytes(), b"__engine"];
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let path = entry.ok()?.path();
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let line = std::fs::read(path.join("cmdline")).ok()?;
        let is_ours = words.iter().all(|word| line.split(|byte| *byte == 0).any(|one| one == *word));
        let stat = std::fs::read_to_string(path.join("stat")).ok().filter(|_| is_ours)?;
        stat.rsplit_once(") ")?.1.starts_with('T').then_some(id)
    })
}

/// What was seen of one cut, in seconds since it.
#[allow(dead_code)]
struct Seen {
    went_on_after: f64,
    at: Side,
    answer: Ran,
    /// What `rehome status` said after the deadlines, while the line was cut and the run not at its end.
    status: String,
    longest_ms: f64,
    tries: u32,
}

fn line(stage: &Stage, side: Side) -> &Delay {
    let lines = stage.lines.as_ref().unwrap();
    if side == Source { &lines.source } else { &lines.target }
}

fn server(stage: &Stage, side: Side) -> &Postgres {
    if side == Source { &stage.source } else { &stage.target }
}

/// A write as the application, past everything.
fn takes_writes(server: &Postgres) -> bool {
    server.sql("orders", "BEGIN; SET ROLE shop; DELETE FROM acked WHERE false; ROLLBACK").is_ok()
}

fn cut(cut: Cut) -> Option<Seen> {
    let stage = Stage::open_apart("writes")?;
    let bench = stage.ours(200);
    let (end_with, fault) =
        (format!("--end-with={}", std::process::id()), format!("--fault=stop@{}", cut.point));
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with, &fault]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);

    let mut switch = stage.place.command(&["--file", "rehome.toml", "switch", "--yes"]);
    let switching = switch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let engine = wait_for("the state", PATIENCE, || stopped_engine(&stage));
    let held = stage.rows(&stage.source);
    let the_line = line(&stage, cut.side);
    if cut.resets {
        the_line.reset()
    } else {
        the_line.cut()
    }
    send(engine, Signal::CONT);
    let began = Instant::now();

    let (mut healed, mut status, mut went_on) = (None, String::new(), None);
    while went_on.is_none() || healed.is_none() {
        if began.elapsed() >= cut.lasts && healed.is_none() {
            status = stage.rehome(&["status"]).stdout;
            the_line.heal();
            healed = Some(began.elapsed());
        }
        went_on = went_on.or_else(|| {
            // A follower brings rows to the other side, too: who takes writes is the owner.
            let more = [Source, Target].into_iter().any(|side| stage.rows(server(&stage, side)) > held);
            let at = if takes_writes(&stage.target) { Target } else { Source };
            more.then(|| (began.elapsed().as_secs_f64(), at))
        });
        if went_on.is_none() {
            let both = [Source, Target].map(|side| takes_writes(server(&stage, side)));
            assert_ne!(both, [true, true], "two sides take writes");
        }
        assert!(began.elapsed() < PATIENCE, "clients still wait: {}", stage.rehome(&["status"]).stdout);
        std::thread::sleep(Duration::from_millis(30));
    }
    let (went_on_after, at) = went_on.unwrap();
    let answer = ran(switching.wait_with_output().unwrap());
    let mut tries = 0;
    if at == Source {
        wait_for("a switch", PATIENCE, || {
            tries += 1;
            (stage.rehome(&["switch", "--yes"]).code == 0).then_some(())
        });
    }
    stage.goes_on(&stage.target, 100);
    let both = [Source, Target].map(|side| takes_writes(server(&stage, side)));
    assert_eq!(
        both,
        [false, true],
        "one side takes writes, after {tries} tries; clients had gone on at the {at:?}"
    );
    let owner = stage.rehome(&["status", "--json"]).last_json();
    assert_eq!(owner["view"]["owner"], "target", "{owner:#}");
    let (count, longest_ms) = bench.end();
    stage.has_all(&stage.target, count);
    let healed = healed.map_or(0.0, |healed| healed.as_secs_f64());
    eprintln!(
        "{} {:?} {} for {healed:.1} s: clients went on at the {at:?} after {went_on_after:.1} s, the longest waited {longest_ms:.0} ms; \
         the command said {}: {}; then {tries} tries; of {count} transactions none was lost\nstatus while cut:\n{status}",
        cut.state,
        cut.side,
        if cut.resets { "reset" } else { "cut" },
        answer.code,
        answer.stderr.trim(),
    );
    Some(Seen { went_on_after, at, answer, status, longest_ms, tries })
}

#[test]
fn target_at_fenced() {
    let Some(_seen) = cut(at("FENCED", Target)) else { return };
}

#[test]
fn source_at_held() {
    let Some(_seen) = cut(at("HELD", Source)) else { return };
}

#[test]
fn source_at_fenced() {
    let Some(_seen) = cut(at("FENCED", Source)) else { return };
}

#[test]
fn source_at_drained() {
    let Some(_seen) = cut(at("DRAINED", Source)) else { return };
}

#[test]
fn source_at_sealed() {
    let Some(_seen) = cut(at("SEALED", Source)) else { return };
}

#[test]
fn target_at_held() {
    let Some(_seen) = cut(at("HELD", Target)) else { return };
}

#[test]
fn target_at_drained() {
    let Some(_seen) = cut(at("DRAINED", Target)) else { return };
}

#[test]
fn target_at_sealed() {
    let Some(_seen) = cut(at("SEALED", Target)) else { return };
}
