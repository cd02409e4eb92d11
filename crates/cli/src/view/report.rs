//! The report of a run: what was moved, how long writes waited beside what was predicted, time per phase.

use super::{lines, service};
use crate::printer::{Printer, count, size, span, style};
use rehome_journal::{Phase, RunView};
use serde::Serialize;
use std::collections::BTreeMap;

/// What `rehome report --json` prints.
#[derive(Debug, Serialize)]
pub struct Report<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    ui: &'static str,
    run: &'a str,
    phase: Phase,
    objects: u64,
    bytes: u64,
    write_pause_ms: Option<u64>,
    predicted_pause_ms: Option<f64>,
    floor_ms: Option<f64>,
    one_writable_side_proved: Option<bool>,
    seconds_per_phase: BTreeMap<&'static str, f64>,
    view: &'a RunView,
}

pub fn of(view: &RunView) -> Report<'_> {
    let last = view.last_switch.as_ref();
    Report {
        kind: "report",
        ui: "1.0",
        run: &view.run,
        phase: view.phase,
        objects: view.parts.iter().map(|part| part.objects).sum(),
        bytes: view.parts.iter().map(|part| part.bytes).sum(),
        write_pause_ms: last.and_then(|report| report.pause_ms),
        predicted_pause_ms: last.map(|report| report.predicted.total_ms),
        floor_ms: last.map(|report| report.floor_ms),
        one_writable_side_proved: last.map(|report| report.one_writable_side_proved),
        seconds_per_phase: seconds_per_phase(view),
        view,
    }
}

pub fn seconds_per_phase(view: &RunView) -> BTreeMap<&'static str, f64> {
    view.time_per_phase(view.updated_ms)
        .into_iter()
        .map(|(phase, ms)| (phase.name(), ms as f64 / 1e3))
        .collect()
}

pub fn show(printer: &Printer, view: &RunView) {
    if printer.json {
        return printer.json(&of(view));
    }
    let bold = style::BOLD;
    printer.line(&format!(
        "{bold}{}{}: {} · owner {} · epoch {}",
        view.name,
        bold.render_reset(),
        view.phase,
        view.owner,
        view.epoch
    ));
    for part in &view.parts {
        let (kept, losses) =
            part.copied.as_ref().map_or((0, 0), |summary| (summary.kept, super::lost(&summary.losses)));
        printer.line(&format!(
            "  {:<10} {} objects, {} (kept {}, {} not carried whole), {} changes followed",
            part.name,
            count(part.objects),
            size(part.bytes),
            count(kept),
            count(losses),
            count(part.follow.changes_applied)
        ));
        let losses = part.copied.iter().flat_map(|summary| &summary.losses);
        for finding in losses.chain(&part.findings) {
            printer.line(&format!("    {}", crate::commands::doctor::line(finding)));
        }
    }
    for service in &view.services {
        printer.line(&format!(
            "  {:<10} {} requests to the source, {} to the target; failed {} and {}, refused {}, outcome unknown {}",
            service.name,
            count(service.source_requests),
            count(service.target_requests),
            count(service.source_failed),
            count(service.target_failed),
            count(service.refused),
            count(service.writes_unknown)
        ));
        let more = service::latency(service).into_iter().chain(service::before(view, &service.name));
        more.for_each(|text| printer.line(&format!("             {text}")));
    }
    for line in view.shadow.iter().flat_map(service::shadow) {
        printer.line(&format!("  {:<10} {line}", "compared"));
    }
    for report in &view.switches {
        printer.line(&format!("  {:<10} {}", format!("switch {}", report.attempt), lines::outcome(report)));
        let states: Vec<String> =
            report.states.iter().map(|state| format!("{} {} ms", state.state, state.ms)).collect();
        if !states.is_empty() {
            printer.line(&format!("             {}", states.join(" · ")));
        }
        if !report.one_writable_side_proved {
            printer.line("             one writable side: not proven");
        }
    }
    let phases: Vec<String> = seconds_per_phase(view)
        .into_iter()
        .map(|(phase, seconds)| format!("{phase} {}", span(seconds)))
        .collect();
    printer.line(&format!("  {:<10} {}", "time", phases.join(" · ")));
    if let Some(trouble) = &view.stuck {
        printer.line(&format!("  stuck at {}: {}", trouble.step, trouble.why));
        printer.line(&format!("    true now: {}", trouble.what_is_true));
        printer.line(&format!("    how to fix: {}", trouble.how_to_fix));
    }
}
