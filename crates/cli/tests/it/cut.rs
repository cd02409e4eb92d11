//! The network to one database server is cut in the middle of a switch, exactly at a state, under pgbench behind PgBouncer or at the front door, and heals. One
//! side owns the data at the end, nothing that was acknowledged is lost, no client sees an error, and the next switch succeeds.

use crate::bouncer::{BOUNCER, PATIENCE, Stage, Way};
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
    /// How long; every deadline of a switch is shorter than [`LONG`].
    lasts: Duration,
    how: How,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// A black hole; what was on its way arrives late.
    Silent,
    /// A black hole; connections from before stay silent for ever.
    Forgotten,
    /// Every connection is reset.
    Reset,
}

/// Long enough, too, for the run to say `stuck`: ten seconds after it began to take the attempt back, at its next try.
const LONG: Duration = Duration::from_secs(18);
/// A new owner that answers before this, opens; afterwards the old one gets the next epoch.
const OPEN: Duration = Duration::from_secs(3);

fn at(state: &'static str, side: Side) -> Cut {
    let point = match state {
        "HELD" => "before:fence",
        "FENCED" => "before:drain",
        "DRAINED" => "before:compare",
        "SEALED" => "after:journal:sealed",
        other => panic!("no point in {other}"),
    };
    Cut { state, point, side, lasts: LONG, how: How::Silent, way: BOUNCER }
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
struct Seen {
    went_on_after: f64,
    at: Side,
    answer: Ran,
    /// What `rehome status` said after the deadlines, while the line was cut and the run not at its end.
    status: String,
    /// Since the heal, until a switch had succeeded.
    switched_after: f64,
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
    let stage = Stage::open_apart("writes", cut.way)?;
    let bench = stage.ours(200, if matches!(cut.way, Way::Front) { "prepared" } else { "simple" });
    let (end_with, fault) =
        (format!("--end-with={}", std::process::id()), format!("--fault=stop@{}", cut.point));
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with, &fault]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);

    let mut switch = stage.place.command(&["--file", "rehome.toml", "switch", "--yes"]);
    let switching = switch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let engine = wait_for("the state", PATIENCE, || stopped_engine(&stage));
    let held = stage.rows(&stage.source);
    let the_line = line(&stage, cut.side);
    if cut.how == How::Reset {
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
            if cut.how == How::Forgotten {
                the_line.heal_for_new()
            } else {
                the_line.heal()
            }
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
    if at == Source {
        wait_for("a switch", PATIENCE, || (stage.rehome(&["switch", "--yes"]).code == 0).then_some(()));
    }
    let healed = healed.unwrap().as_secs_f64();
    let switched_after = began.elapsed().as_secs_f64() - healed;
    stage.goes_on(&stage.target, 100);
    let both = [Source, Target].map(|side| takes_writes(server(&stage, side)));
    assert_eq!(both, [false, true], "one side takes writes");
    let owner = stage.rehome(&["status", "--json"]).last_json();
    assert_eq!(owner["view"]["owner"], "target", "{owner:#}");
    let (count, longest) = bench.end();
    stage.has_all(&stage.target, count);
    eprintln!(
        "{:<7} {:?} {:<9} for {healed:4.1} s: clients went on at the {at:?} after {went_on_after:4.1} s, the longest of {count} transactions \
         {longest:.0} ms; owned by the target {switched_after:.1} s after the heal",
        cut.state,
        cut.side,
        format!("{:?}", cut.how),
    );
    Some(Seen { went_on_after, at, answer, status, switched_after })
}

/// What has to come of it: who owns the data when clients go on, and how long after the cut or its end that is at most.
fn judge(cut: Cut, seen: &Seen) {
    let told = format!("{:?} {cut:?}\n{}", seen.answer, seen.status);
    let decided = cut.state == "SEALED";
    match (cut.side, decided) {
        // Everything that the switch still needs is on the other side.
        (Source, true) => {
            assert_eq!((seen.at, seen.answer.code), (Target, 0), "{told}");
            assert!(seen.went_on_after < 5.0, "{} s\n{told}", seen.went_on_after);
        }
        // Given up at the deadline of the state; nobody waits for the side that is cut off.
        (Target, false) => {
            assert_eq!(seen.at, Source, "{told}");
            assert!(seen.went_on_after < 8.0, "{} s\n{told}", seen.went_on_after);
            if cut.lasts == LONG {
                assert!(seen.status.contains("serves reads and writes as before"), "{told}");
            }
        }
        // Decided, and the new owner answers before its deadline: it opens.
        (Target, true) if cut.lasts < OPEN => {
            assert_eq!((seen.at, seen.answer.code), (Target, 0), "{told}");
            assert!(seen.went_on_after < cut.lasts.as_secs_f64() + 5.0, "{} s\n{told}", seen.went_on_after);
        }
        // The side that clients wait for is the one that is cut off, or could be open to others: they go on soon after the heal.
        _ => {
            assert_eq!(seen.at, Source, "{told}");
            assert!(seen.went_on_after < cut.lasts.as_secs_f64() + 10.0, "{} s\n{told}", seen.went_on_after);
            if cut.lasts == LONG {
                assert!(seen.status.contains("writes wait at the gateways"), "{told}");
            }
        }
    }
    if seen.at == Source {
        assert_eq!(seen.answer.code, 20, "{told}");
        assert!(seen.switched_after < 60.0, "switched {} s after the heal\n{told}", seen.switched_after);
    }
    if seen.at == Source && cut.lasts == LONG && cut.how != How::Reset {
        let side = if cut.side == Source { "source" } else { "target" };
        assert!(seen.status.contains("stuck at "), "{told}");
        assert!(seen.status.contains(&format!("the {side} does not answer in time")), "what to do: {told}");
    }
}

macro_rules! cut_at {
    ($(#[$attribute:meta])? $($name:ident: $state:literal, $side:ident $(, $changed:ident = $value:expr)*;)*) => {
        cut_at! { @ [$(#[$attribute])?] $($name: $state, $side, [$($changed = $value)*];)* }
    };
    (@ $attribute:tt $($name:ident: $state:literal, $side:ident, $changes:tt;)*) => {
        $(cut_at! { @@ $attribute $name, $state, $side, $changes })*
    };
    (@@ [$(#[$attribute:meta])?] $name:ident, $state:literal, $side:ident, [$($changed:ident = $value:expr)*]) => {
        $(#[$attribute])?
        #[test]
        fn $name() {
            let wanted = Cut { $($changed: $value,)* ..at($state, $side) };
            if let Some(seen) = cut(wanted) {
                judge(wanted, &seen);
            }
        }
    };
}

const SHORT: Duration = Duration::from_secs(6);
const SHORTER: Duration = Duration::from_secs(2);

cut_at! {
    clients_wait_for_a_source_that_was_cut_off_when_fenced: "FENCED", Source, lasts = SHORT;
    clients_do_not_wait_for_a_target_that_was_cut_off_when_drained: "DRAINED", Target, lasts = SHORT;
    clients_at_the_front_door_wait_for_a_source_too: "FENCED", Source, lasts = SHORT, way = Way::Front;
    clients_at_the_front_door_go_on_at_a_target_that_was_cut_off_shortly: "SEALED", Target, lasts = SHORTER, way = Way::Front;
}

cut_at! {
    #[ignore = "long: ./test long"]
    source_at_held: "HELD", Source;
    source_at_fenced: "FENCED", Source;
    source_at_drained: "DRAINED", Source;
    source_at_sealed: "SEALED", Source;
    target_at_held: "HELD", Target;
    target_at_fenced: "FENCED", Target;
    target_at_drained: "DRAINED", Target;
    target_at_sealed: "SEALED", Target;
    target_at_sealed_shortly: "SEALED", Target, lasts = SHORTER;
    front_door_source_at_held: "HELD", Source, way = Way::Front;
    front_door_source_at_sealed: "SEALED", Source, way = Way::Front;
    front_door_target_at_held: "HELD", Target, way = Way::Front;
    front_door_target_at_drained: "DRAINED", Target, way = Way::Front;
    front_door_target_at_sealed: "SEALED", Target, way = Way::Front;
    source_at_fenced_forgotten: "FENCED", Source, how = How::Forgotten;
    target_at_drained_forgotten: "DRAINED", Target, how = How::Forgotten;
    source_at_held_reset: "HELD", Source, how = How::Reset;
    target_at_drained_reset: "DRAINED", Target, how = How::Reset;
}

/// What was known before the cut does not stand: no switch begins, whoever asks for one hears why, and it is made after the heal.
#[test]
#[ignore = "long: ./test long"]
fn no_switch_begins_while_the_target_is_cut_off() {
    let Some(stage) = Stage::open_apart("writes", BOUNCER) else { return };
    let bench = stage.ours(200, "simple");
    let end_with = format!("--end-with={}", std::process::id());
    let ready = stage.rehome(&["apply", "--until", "ready", "--yes", &end_with]);
    assert_eq!(ready.code, 0, "{}\n{}", ready.stdout, ready.stderr);
    line(&stage, Target).cut();
    let began = Instant::now();
    wait_for("an unknown lag", Duration::from_secs(15), || {
        stage.rehome(&["status"]).stdout.contains("lag unknown").then_some(())
    });
    let unknown = began.elapsed().as_secs_f64();
    let refused = stage.rehome(&["switch", "--yes"]);
    let answered = began.elapsed().as_secs_f64() - unknown;
    assert_eq!(refused.code, 20, "{}\n{}", refused.stdout, refused.stderr);
    assert!(refused.stderr.contains("lag is unknown"), "{}", refused.stderr);
    let status = stage.rehome(&["status"]).stdout;
    assert!(status.contains("the target's server does not answer"), "{status}");
    stage.goes_on(&stage.source, 100);

    line(&stage, Target).heal_for_new();
    let healed = Instant::now();
    wait_for("a switch", PATIENCE, || (stage.rehome(&["switch", "--yes"]).code == 0).then_some(()));
    let switched = healed.elapsed().as_secs_f64();
    stage.goes_on(&stage.target, 100);
    let (count, longest) = bench.end();
    stage.has_all(&stage.target, count);
    eprintln!(
        "lag unknown after {unknown:.1} s, refused within {answered:.1} s, switched {switched:.1} s after the heal; the longest of {count} \
         transactions {longest:.0} ms"
    );
}
