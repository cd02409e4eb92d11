//! The live tree of a run: one line per stage of its life, wanted beside actual, and what a person would do next.

use super::{lines, service};
use crate::printer::{count, size, span, style};
use anstyle::Style;
use rehome_journal::{PartView, Phase, RunView, ServiceView, Stage};
use rehome_part::Side;

/// Everything the tree shows, as lines with colour.
pub fn draw(view: &RunView, now_ms: i64, note: &str) -> Vec<String> {
    let mut tree = vec![headline(view, now_ms)];
    let mut branches = vec![];
    branches.extend(copy(view));
    branches.extend(follow(view));
    branches.push(verify(view));
    branches.extend(shadow(view));
    branches.push(reads(view));
    branches.push(switch(view));
    branches.push(soak(view, now_ms));
    let last = branches.len() - 1;
    for (index, branch) in branches.into_iter().enumerate() {
        tree.push(format!("{}{branch}", if index == last { "└─ " } else { "├─ " }));
    }
    for service in &view.services {
        tree.push(traffic(service));
        tree.extend(service::latency(service).map(|text| paint(style::DIM, &format!("      {text}"))));
    }
    if let Some(trouble) = &view.stuck {
        let (bad, hint) = (style::BAD, style::HINT);
        tree.push(format!("   {bad}stuck{} at {}: {}", bad.render_reset(), trouble.step, trouble.why));
        tree.push(format!("   true now: {}", trouble.what_is_true));
        tree.push(format!("   {hint}how to fix:{} {}", hint.render_reset(), trouble.how_to_fix));
    } else {
        tree.extend(warnings(view));
    }
    if !note.is_empty() {
        tree.push(paint(style::DIM, &format!("   {note}")));
    }
    tree
}

/// Warnings that came within this time belong together: the cause is often not the last of them.
const TOGETHER_MS: i64 = 60_000;
const MOST_WARNINGS: usize = 3;

/// The newest warnings, unless all is well again: the last remark is one then.
fn warnings(view: &RunView) -> Vec<String> {
    let Some((newest, true, ..)) = view.remarks.last() else { return Vec::new() };
    let mut shown: Vec<&(i64, bool, String, Option<String>)> = Vec::new();
    for remark in view.remarks.iter().rev() {
        let (at, is_warning, text, _) = remark;
        if newest - at > TOGETHER_MS || shown.len() == MOST_WARNINGS {
            break;
        }
        if *is_warning && !shown.iter().any(|(_, _, other, _)| other == text) {
            shown.push(remark);
        }
    }
    let lines = shown.into_iter().rev().flat_map(|(_, _, text, hint)| {
        let hint = hint.as_ref().map(|hint| paint(style::DIM, &format!("      {hint}")));
        std::iter::once(paint(style::WARN, &format!("   {text}"))).chain(hint)
    });
    lines.collect()
}

fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{}", style.render_reset())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Waiting,
    Going,
    Done,
    Wrong,
}

fn branch(mark: Mark, name: &str, text: &str) -> String {
    let (sign, color) = match mark {
        Mark::Waiting => ("○", style::DIM),
        Mark::Going => ("●", style::HINT),
        Mark::Done => ("✔", style::GOOD),
        Mark::Wrong => ("✗", style::BAD),
    };
    let text = if mark == Mark::Waiting { paint(style::DIM, text) } else { text.to_owned() };
    format!("{} {name:<8} {text}", paint(color, sign))
}

fn headline(view: &RunView, now_ms: i64) -> String {
    let seconds = (now_ms - view.created_ms).max(0) / 1_000;
    let color = match view.phase {
        Phase::Stuck => style::BAD,
        Phase::Switching => style::WARN,
        _ => style::BOLD,
    };
    let paused = if view.paused { " (paused)" } else { "" };
    format!(
        "{}  {}{paused} · owner {} · epoch {} · {:02}:{:02}",
        paint(style::BOLD, &view.name),
        paint(color, view.phase.name()),
        view.owner,
        view.epoch,
        seconds / 60,
        seconds % 60
    )
}

fn copy(view: &RunView) -> Vec<String> {
    let one = |part: &PartView| {
        let (done, of) =
            (count(part.objects), part.total_objects.map(|total| format!(" of {}", count(total))));
        let mark = match (&part.copied, view.stage > Stage::Planned) {
            (Some(_), _) => Mark::Done,
            (None, true) => Mark::Going,
            (None, false) => Mark::Waiting,
        };
        let of = if mark == Mark::Done { String::new() } else { of.unwrap_or_default() };
        branch(mark, "copy", &format!("{}: {done}{of} objects, {}", part.name, size(part.bytes)))
    };
    view.parts.iter().map(one).collect()
}

fn follow(view: &RunView) -> Vec<String> {
    let one = |part: &PartView| {
        let Some(flow) = part.flow else {
            return branch(Mark::Waiting, "follow", &part.name);
        };
        let lag = part.follow.lag_seconds.map_or_else(|| "unknown".to_owned(), span);
        let behind =
            part.follow.backlog.map(|backlog| format!(", {} behind", count(backlog))).unwrap_or_default();
        let text = format!(
            "{}: {flow}, lag {lag}{behind}, {} changes applied",
            part.name,
            count(part.follow.changes_applied)
        );
        branch(if view.stage.is_final() { Mark::Done } else { Mark::Going }, "follow", &text)
    };
    view.parts.iter().map(one).collect()
}

fn verify(view: &RunView) -> String {
    match view.verified {
        None if view.stage == Stage::Streaming => branch(Mark::Going, "verify", "comparing both sides"),
        None => branch(Mark::Waiting, "verify", "an independent comparison of both sides"),
        Some((compared, _, 0)) => {
            branch(Mark::Done, "verify", &format!("{} objects compared, equal", count(compared)))
        }
        Some((compared, _, different)) => branch(
            Mark::Wrong,
            "verify",
            &format!("{} objects compared, {} differ", count(compared), count(different)),
        ),
    }
}

/// Nothing where there is no service to compare.
fn shadow(view: &RunView) -> Option<String> {
    if view.services.is_empty() {
        return None;
    }
    let found: Vec<String> =
        view.shadow.iter().filter_map(|report| service::shadow(report).into_iter().next()).collect();
    let unmet = view.gates.iter().any(|gate| gate.name == "shadow" && !gate.is_met());
    let mark = match view.stage {
        stage if stage < Stage::Verified => Mark::Waiting,
        Stage::Verified if unmet => Mark::Wrong,
        Stage::Verified => Mark::Going,
        _ => Mark::Done,
    };
    let text = match (found.is_empty(), mark) {
        (false, _) => found.join("; "),
        (true, Mark::Done) => "nothing was compared".into(),
        (true, _) => "reads compared with the target's answers".into(),
    };
    Some(branch(mark, "compare", &text))
}

fn reads(view: &RunView) -> String {
    let other = view.owner.other();
    let actual = view.services.iter().map(|service| service.weight_actual).max().unwrap_or(0);
    match view.stage {
        Stage::ReadCanary => branch(
            Mark::Going,
            "reads",
            &format!("{} % wanted, {actual} % actual to the {other}", view.read_percent),
        ),
        stage if stage < Stage::ReadCanary => branch(Mark::Waiting, "reads", "a growing share to the target"),
        _ => branch(Mark::Done, "reads", &format!("all from the {}", view.owner)),
    }
}

const STATES: [(Stage, &str); 7] = [
    (Stage::Armed, "armed"),
    (Stage::Held, "held"),
    (Stage::Fenced, "fenced"),
    (Stage::Drained, "drained"),
    (Stage::Sealed, "sealed"),
    (Stage::Committed, "committed"),
    (Stage::Open, "open"),
];

fn switch(view: &RunView) -> String {
    if view.stage.in_switch() {
        let states = STATES.map(|(stage, name)| {
            let reached = stage <= view.stage && view.stage <= Stage::Open;
            paint(if reached { style::GOOD } else { style::DIM }, name)
        });
        let undoing = if view.stage > Stage::Open { " · taking it back" } else { "" };
        return branch(Mark::Going, "switch", &format!("{}{undoing}", states.join(" ")));
    }
    match &view.last_switch {
        Some(report) => {
            let done = matches!(report.outcome, rehome_journal::SwitchOutcome::Aborted { .. });
            branch(if done { Mark::Wrong } else { Mark::Done }, "switch", &lines::outcome(report))
        }
        None => branch(Mark::Waiting, "switch", &STATES.map(|(_, name)| name).join(" ")),
    }
}

fn soak(view: &RunView, now_ms: i64) -> String {
    let Some(since) = view.switched_at_ms.filter(|_| !view.stage.in_switch()) else {
        return branch(Mark::Waiting, "soak", "the way back stays ready until you say `complete`");
    };
    let lag = view
        .parts
        .iter()
        .map(|part| part.follow.lag_seconds)
        .try_fold(0f64, |most, lag| lag.map(|lag| most.max(lag)));
    let ready =
        lag.map_or_else(|| "not ready: lag unknown".to_owned(), |lag| format!("ready: lag {}", span(lag)));
    let back = if view.owner == Side::Target { "reverse" } else { "switch" };
    let text = format!("{}, {back} {ready}", span((now_ms - since).max(0) as f64 / 1e3));
    branch(if view.stage.is_final() { Mark::Done } else { Mark::Going }, "soak", &text)
}

fn traffic(service: &ServiceView) -> String {
    let failed = service.source_failed + service.target_failed + service.refused;
    let failed = if failed == 0 {
        "0 failed".to_owned()
    } else {
        paint(style::BAD, &format!("{} failed", count(failed)))
    };
    format!(
        "   {}: {} requests to the source, {} to the target, {failed}, {} writes",
        paint(style::BOLD, &service.name),
        count(service.source_requests),
        count(service.target_requests),
        count(service.writes)
    )
}
