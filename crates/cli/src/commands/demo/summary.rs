//! The end of the demo: figures, findings, and the exit code that follows from them.

use super::DemoArgs;
use super::faults::Outage;
use crate::exit::Exit;
use crate::printer::{Printer, count, size, span, style};
use crate::view::{lines, report};
use rehome_journal::RunView;
use rehome_testkit::load::LoadLog;
use rehome_testkit::oracle::{Breach, Verdict};
use rehome_testkit::world::Manifest;
use serde::Serialize;
use std::collections::BTreeMap;

/// The last line of `rehome demo --json`. Fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Summary {
    #[serde(rename = "type")]
    kind: &'static str,
    ui: &'static str,
    ok: bool,
    phase: String,
    objects: u64,
    bytes: u64,
    requests: u64,
    requests_by_cloud: BTreeMap<String, u64>,
    requests_failed: u64,
    /// Of these, the ones that were open on a gateway at the moment it was killed on purpose.
    requests_open_at_kill: u64,
    /// Connections that were refused and tried again, while no gateway listened; no byte of a request had left.
    connections_refused: u64,
    writes_acknowledged: u64,
    writes_lost: u64,
    writes_doubled: u64,
    writes_unknown: u64,
    read_your_writes_violations: u64,
    /// Of the last switch, by the engine's clock: from the hold's request to the last gateway's release.
    write_pause_ms: u64,
    /// As the clients saw it: the longest any write waited for its answer.
    longest_write_ms: f64,
    predicted_pause_ms: f64,
    floor_pause_ms: f64,
    round_trips: u32,
    round_trip_ms: f64,
    /// What the pause may be by the design's own bound: in flight + n x RTT + 150 ms.
    allowed_pause_ms: f64,
    pause_within_bound: bool,
    one_writable_side_proved: bool,
    switches: usize,
    seconds_per_phase: BTreeMap<&'static str, f64>,
    /// Writes past the gateway, straight to the source: acknowledged before the fence (and moved), and refused after it.
    straggler_acknowledged: u64,
    straggler_refused: u64,
    findings: Vec<String>,
}

/// What was seen from outside while the run went on.
#[derive(Debug)]
pub struct Seen<'a> {
    pub logs: &'a [LoadLog],
    pub straggler: &'a LoadLog,
    pub verdicts: &'a [Verdict],
    /// What the run did not prove although it could have.
    pub unproved: Vec<String>,
    /// The gateway's death, when it was killed on purpose.
    pub outage: Option<Outage>,
}

pub fn of(args: &DemoArgs, view: &RunView, seen: &Seen<'_>, manifest: &Manifest) -> Summary {
    let Seen { logs, straggler, verdicts, unproved, outage } = seen;
    let mut by_cloud = BTreeMap::new();
    for (cloud, requests) in logs.iter().flat_map(|log| &log.counts.by_cloud) {
        *by_cloud.entry(cloud.clone()).or_insert(0) += requests;
    }
    let last = verdicts.last().cloned().unwrap_or_default();
    let switch = view.last_switch.as_ref();
    let sum = |of: fn(&LoadLog) -> u64| logs.iter().map(of).sum::<u64>();
    let prediction = switch.map(|report| report.predicted.clone()).unwrap_or_default();
    let (round_trips, round_trip_ms) = switch.map_or((0, 0.0), |report| (report.round_trips, report.rtt_ms));
    let allowed_pause_ms =
        prediction.in_flight_ms + f64::from(round_trips) * round_trip_ms.max(args.rtt as f64) + 150.0;
    let write_pause_ms = switch.and_then(|report| report.pause_ms).unwrap_or(0);
    let findings = verdicts.iter().flat_map(|verdict| &verdict.violations);
    let findings: Vec<String> = findings
        .map(|finding| format!("{}: {}: {}", name(finding.breach), finding.what, finding.text))
        .chain(unproved.iter().cloned())
        .collect();
    Summary {
        kind: "summary",
        ui: "1.0",
        ok: findings.is_empty() && sum(|log| log.counts.failed) == 0,
        phase: view.phase.name().to_owned(),
        objects: manifest.objects.len() as u64,
        bytes: manifest.bytes(),
        requests: sum(|log| log.counts.requests),
        requests_by_cloud: by_cloud,
        requests_failed: sum(|log| log.counts.failed),
        requests_open_at_kill: outage.map_or(0, |outage| open_at(logs, outage)),
        connections_refused: sum(|log| log.counts.connections_refused),
        writes_acknowledged: last.writes_acknowledged,
        writes_lost: verdicts.iter().map(|verdict| verdict.writes_lost).max().unwrap_or(0),
        writes_doubled: verdicts.iter().map(|verdict| verdict.writes_doubled).max().unwrap_or(0),
        writes_unknown: sum(|log| log.counts.writes_unknown),
        read_your_writes_violations: last.read_your_writes_violations,
        write_pause_ms,
        longest_write_ms: logs.iter().map(|log| log.counts.longest_write_ms).fold(0.0, f64::max),
        predicted_pause_ms: prediction.total_ms,
        floor_pause_ms: switch.map_or(0.0, |report| report.floor_ms),
        round_trips,
        round_trip_ms,
        allowed_pause_ms,
        pause_within_bound: write_pause_ms as f64 <= allowed_pause_ms,
        one_writable_side_proved: switch.is_some_and(|report| report.one_writable_side_proved),
        switches: view.switches.len(),
        seconds_per_phase: report::seconds_per_phase(view),
        straggler_acknowledged: straggler.counts.writes_acknowledged,
        straggler_refused: straggler.counts.writes_unknown + straggler.counts.writes_refused,
        findings,
    }
}

/// Failed requests that were under way when the gateway died.
fn open_at(logs: &[LoadLog], outage: Outage) -> u64 {
    let failures = logs.iter().flat_map(|log| &log.failures);
    failures.filter(|failure| outage.hit(failure.started_nanos, failure.at_nanos)).count() as u64
}

fn name(breach: Breach) -> String {
    serde_json::to_value(breach).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// Promises broken count more than how the run ended.
pub fn exit(summary: &Summary, ended: Exit) -> Exit {
    if !summary.findings.is_empty() {
        return Exit::Differences;
    }
    match ended {
        Exit::Done if summary.ok => Exit::Done,
        Exit::Done => Exit::Failed,
        other => other,
    }
}

pub fn show(printer: &Printer, summary: &Summary, view: &RunView, seen: &Seen<'_>) {
    let Seen { logs, verdicts, .. } = seen;
    if printer.json {
        return printer.json(summary);
    }
    let (bold, good, bad) = (style::BOLD, style::GOOD, style::BAD);
    let say =
        |name: &str, text: String| printer.line(&format!("  {bold}{name:<9}{} {text}", bold.render_reset()));
    let zero = |number: u64| {
        let color = if number == 0 { good } else { bad };
        format!("{color}{}{}", count(number), color.render_reset())
    };
    printer.line("");
    say("moved", format!("{} objects, {}", count(summary.objects), size(summary.bytes)));
    let by: Vec<String> = summary
        .requests_by_cloud
        .iter()
        .map(|(cloud, requests)| format!("{} by {cloud}", count(*requests)))
        .collect();
    say(
        "requests",
        format!("{} ({}), {} failed", count(summary.requests), by.join(", "), zero(summary.requests_failed)),
    );
    say(
        "writes",
        format!(
            "{} acknowledged, checked one by one: {} lost, {} doubled, {} unknown",
            count(summary.writes_acknowledged),
            zero(summary.writes_lost),
            zero(summary.writes_doubled),
            zero(summary.writes_unknown)
        ),
    );
    say(
        "straggler",
        format!(
            "{} writes past the gateway were acknowledged before the fence and moved, {} refused after it",
            count(summary.straggler_acknowledged),
            count(summary.straggler_refused)
        ),
    );
    let compared = verdicts.last().map_or(0, |verdict| verdict.objects_compared);
    say(
        "checked",
        format!(
            "{} objects byte by byte, {} stale reads after own writes",
            count(compared),
            zero(summary.read_your_writes_violations)
        ),
    );
    for report in &view.switches {
        say("switch", lines::outcome(report));
    }
    say(
        "clients",
        format!(
            "longest write {}, writes p99 {}",
            span(summary.longest_write_ms / 1e3),
            span(worst_p99(logs) / 1e3)
        ),
    );
    let phases: Vec<String> = summary
        .seconds_per_phase
        .iter()
        .map(|(phase, seconds)| format!("{phase} {}", span(*seconds)))
        .collect();
    say("time", phases.join(" · "));
    for failure in logs.iter().flat_map(|log| &log.failures).take(5) {
        printer.line(&format!(
            "  {bad}failed{} {} of {}: {}",
            bad.render_reset(),
            failure.request,
            failure.client,
            failure.why
        ));
    }
    for finding in summary.findings.iter().take(20) {
        printer.line(&format!("  {bad}finding{} {finding}", bad.render_reset()));
    }
    let (color, text) = if summary.ok {
        (good, "the checker agrees: nothing lost, nothing doubled, nobody noticed")
    } else {
        (bad, "the checker does NOT agree")
    };
    printer.line(&format!("{color}{text}{}", color.render_reset()));
}

fn worst_p99(logs: &[LoadLog]) -> f64 {
    logs.iter().map(|log| log.write_times.p99_ms).fold(0.0, f64::max)
}
