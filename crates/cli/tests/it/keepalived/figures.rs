//! How long the shared address is without an answer, by what happened. Long: `REHOME_LONG=1`, with `--nocapture` to read it; the
//! bars are generous, since a busy machine is no fault of the pair.

use super::load::Gap;
use super::rig::{Rig, Setup};
use super::{under_load, written_once};
use rustix::process::{Signal, kill_process};
use std::time::{Duration, Instant};

const PACE: Duration = Duration::from_millis(2);
/// Watched before and after each event.
const BEFORE: Duration = Duration::from_millis(1_500);
const AFTER: Duration = Duration::from_millis(3_500);

#[derive(Clone, Copy, PartialEq)]
enum Event {
    HandOver,
    GatewayKilled,
    GatewayStopped,
    KeepalivedStopped,
    KeepalivedKilled,
    KeepalivedEnded,
    CablePulled,
}

const EVENTS: [(Event, &str, Setup); 10] = [
    (Event::HandOver, "planned hand-over", Setup { advert_ms: 300, keep: true }),
    (Event::HandOver, "the same, addresses not kept", Setup { advert_ms: 300, keep: false }),
    (Event::HandOver, "the same, advert 1 s, not kept", Setup { advert_ms: 1_000, keep: false }),
    (Event::KeepalivedEnded, "keepalived ended (SIGTERM)", Setup { advert_ms: 300, keep: true }),
    (Event::GatewayKilled, "gateway killed (SIGKILL)", Setup { advert_ms: 300, keep: true }),
    (Event::GatewayStopped, "gateway hangs (SIGSTOP)", Setup { advert_ms: 300, keep: true }),
    (Event::KeepalivedStopped, "keepalived stopped (SIGSTOP)", Setup { advert_ms: 300, keep: true }),
    (Event::KeepalivedKilled, "keepalived killed (SIGKILL)", Setup { advert_ms: 300, keep: true }),
    (Event::CablePulled, "cable pulled", Setup { advert_ms: 300, keep: true }),
    (Event::CablePulled, "cable pulled, advert 1 s", Setup { advert_ms: 1_000, keep: true }),
];

#[test]
fn figures() {
    if std::env::var_os("REHOME_LONG").is_none() {
        eprintln!("SKIPPED: the figures of the pair take minutes; set REHOME_LONG=1");
        return;
    }
    let rounds = std::env::var("REHOME_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    eprintln!(
        "| event | silence, ms: median (all) | quiet, ms | probes failed | delayed 1 s | kept connections failed |"
    );
    eprintln!("|---|---|---|---|---|---|");
    for (event, name, setup) in EVENTS {
        let mut measured = Vec::new();
        for _ in 0..rounds {
            let Some(one) = measure(event, setup) else { return };
            measured.push(one);
        }
        show(name, &measured);
    }
}

struct Measured {
    event: Gap,
    quiet: Gap,
    kept_failed: usize,
}

fn show(name: &str, measured: &[Measured]) {
    let millis = |gap: &Gap| (gap.silence.as_secs_f64() * 1e3).round() as u64;
    let mut silences: Vec<u64> = measured.iter().map(|one| millis(&one.event)).collect();
    silences.sort_unstable();
    let mut quiet: Vec<u64> = measured.iter().map(|one| millis(&one.quiet)).collect();
    quiet.sort_unstable();
    let all: Vec<String> = silences.iter().map(ToString::to_string).collect();
    let sum = |of: fn(&Measured) -> usize| measured.iter().map(of).sum::<usize>();
    eprintln!(
        "| {name} | {} ({}) | {} | {} of {} | {} | {} |",
        silences[silences.len() / 2],
        all.join(", "),
        quiet[quiet.len() / 2],
        sum(|one| one.event.failed),
        sum(|one| one.event.probes),
        sum(|one| one.event.delayed),
        sum(|one| one.kept_failed),
    );
}

fn measure(event: Event, setup: Setup) -> Option<Measured> {
    let mut rig = Rig::start(setup)?;
    // Taken out before, so that the events need no exclusive hold of the rig.
    let gateway = (event == Event::GatewayKilled).then(|| rig.nodes[0].gateway.take()).flatten();
    let keepalived = (event == Event::KeepalivedEnded).then(|| rig.nodes[0].keepalived.take()).flatten();
    let vrrp = rig.vrrp(0);
    let (moments, probes, written) = under_load(&rig, PACE, || {
        let begun = Instant::now();
        std::thread::sleep(BEFORE);
        let happened = Instant::now();
        match event {
            Event::HandOver => {
                let moved = rig.entry(0, "hand-over", &["--yes", "--window", "1"]);
                assert_eq!(moved.code, 0, "{}", moved.stderr);
            }
            Event::GatewayKilled => {
                let mut child = gateway.unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
            }
            Event::GatewayStopped => rig.signal_gateway(0, Signal::STOP),
            Event::KeepalivedStopped => kill_process(vrrp, Signal::STOP).unwrap(),
            Event::KeepalivedKilled => rig.kill_both_of_keepalived(0),
            Event::KeepalivedEnded => {
                let mut child = keepalived.unwrap();
                kill_process(super::rig::pid_of(&child), Signal::TERM).unwrap();
                child.wait().unwrap();
            }
            Event::CablePulled => rig.lab.cable("one", false).unwrap(),
        }
        std::thread::sleep(AFTER);
        (begun, happened, Instant::now())
    });
    assert!(rig.has(1), "the second node has the addresses");
    written_once(&rig, &written);
    let (begun, happened, ended) = moments;
    let settled = Duration::from_millis(300);
    Some(Measured {
        event: Gap::of(&probes, happened, ended),
        quiet: Gap::of(&probes, begun + settled, happened),
        kept_failed: written.failed.len(),
    })
}
