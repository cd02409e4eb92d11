//! How long the shared address is without an answer, by what happened. Long: `REHOME_LONG=1`, with `--nocapture` to read it;
//! `REHOME_ROUNDS` and `REHOME_EVENTS` (a part of a name) choose. Nothing here is a bar: a busy machine is no fault of the pair.

use super::load::Gap;
use super::rig::{Rig, Setup};
use super::{under_load, written_once};
use rustix::process::{Signal, kill_process};
use std::time::{Duration, Instant};

const PACE: Duration = Duration::from_millis(2);
/// Loaded before and after each event.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_millis(3_500);

#[derive(Clone, Copy, PartialEq)]
enum Event {
    HandOver,
    /// New connections do not wait outside.
    HandOverAtOnce,
    GatewayKilled,
    GatewayStopped,
    KeepalivedStopped,
    KeepalivedKilled,
    KeepalivedEnded,
    CablePulled,
}

const EVENTS: [(Event, &str, Setup); 11] = [
    (Event::HandOver, "planned hand-over", Setup { advert_ms: 300, keep: true }),
    (Event::HandOverAtOnce, "the same, --still 0", Setup { advert_ms: 300, keep: true }),
    (Event::HandOverAtOnce, "the same, addresses not kept", Setup { advert_ms: 300, keep: false }),
    (Event::HandOverAtOnce, "the same, advert 1 s, not kept", Setup { advert_ms: 1_000, keep: false }),
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
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    eprintln!("{rounds} rounds each; load {load}");
    eprintln!(
        "| event | outage, ms: median (all) | probes failed | delayed 1 s | writes on kept connections failed |"
    );
    eprintln!("|---|---|---|---|---|");
    let only = std::env::var("REHOME_EVENTS").unwrap_or_default();
    for (event, name, setup) in EVENTS.into_iter().filter(|(_, name, _)| name.contains(&only)) {
        let mut measured = Vec::new();
        for round in 0..rounds {
            // The check asks every second: the rounds come at different moments of that second.
            let before = BEFORE + Duration::from_millis(110) * round;
            let Some(one) = measure(event, setup, before) else { return };
            measured.push(one);
        }
        show(name, &measured);
    }
}

struct Measured {
    gap: Gap,
    kept: usize,
    kept_failed: usize,
}

fn show(name: &str, measured: &[Measured]) {
    let mut outages: Vec<u128> = measured.iter().map(|one| one.gap.outage.as_millis()).collect();
    outages.sort_unstable();
    let all: Vec<String> = outages.iter().map(ToString::to_string).collect();
    let sum = |of: fn(&Measured) -> usize| measured.iter().map(of).sum::<usize>();
    eprintln!(
        "| {name} | {} ({}) | {} of {} | {} | {} of {} |",
        outages[outages.len() / 2],
        all.join(", "),
        sum(|one| one.gap.failed),
        sum(|one| one.gap.probes),
        sum(|one| one.gap.delayed),
        sum(|one| one.kept_failed),
        sum(|one| one.kept),
    );
}

fn measure(event: Event, setup: Setup, before: Duration) -> Option<Measured> {
    let mut rig = Rig::start(setup)?;
    // Taken out before, so that the events need no exclusive hold of the rig.
    let gateway = (event == Event::GatewayKilled).then(|| rig.nodes[0].gateway.take()).flatten();
    let keepalived = (event == Event::KeepalivedEnded).then(|| rig.nodes[0].keepalived.take()).flatten();
    let vrrp = rig.vrrp(0);
    let (moments, probes, written) = under_load(&rig, PACE, || {
        std::thread::sleep(before);
        let happened = Instant::now();
        match event {
            Event::HandOver | Event::HandOverAtOnce => {
                let still = if event == Event::HandOver { "20" } else { "0" };
                let moved = rig.entry(0, "hand-over", &["--yes", "--window", "1", "--still", still]);
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
        (happened, Instant::now())
    });
    assert!(rig.has(1), "the second node has the addresses");
    written_once(&rig, &written);
    let (happened, ended) = moments;
    Some(Measured {
        gap: Gap::of(&probes, happened, ended),
        kept: written.acknowledged.len() + written.failed.len(),
        kept_failed: written.failed.len(),
    })
}
