//! Events as sentences: plain lines where there is no terminal, and the `message` of each JSON line.

use crate::printer::{count, size, span};
use rehome_journal::{Event, Record, SwitchOutcome, SwitchReport, Verdict};

/// What happened, for a person; `None` where nobody wants to read it (samples).
pub fn describe(event: &Event) -> Option<String> {
    switch(event).or_else(|| life(event))
}

/// As [`describe`], but never nothing: the kind of the event stands in.
pub fn message(event: &Event) -> String {
    describe(event).unwrap_or_else(|| event.kind().replace('_', " "))
}

/// `12:04:31  closed the source …`
pub fn line(record: &Record) -> Option<String> {
    let text = describe(&record.event)?;
    let at = jiff::Timestamp::from_millisecond(record.at_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let clock = at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    Some(format!("{clock}  {text}"))
}

fn life(event: &Event) -> Option<String> {
    Some(match event {
        Event::RunCreated { run, parts, services, .. } => {
            format!("run {run} begins: {} parts, {} services", parts.len(), services.len())
        }
        Event::EngineStarted { token, pid, .. } => format!("engine started (pid {pid}, token {})", token.0),
        Event::GoalSet { goal } => format!("goal: {}", format!("{goal:?}").to_lowercase()),
        Event::CommandReceived { command, .. } => format!("command: {command}"),
        Event::StepFailed { step, error, .. } => format!("{step} failed: {error}"),
        Event::UndoFailed { step, error, .. } => format!("taking {step} back failed: {error}"),
        Event::Prepared => "the target is made, and closed to every writer but rehome".into(),
        Event::PartCopied { part, summary } => format!(
            "{part}: copied {} objects, {} (kept {}, {} not carried whole)",
            count(summary.objects),
            size(summary.bytes),
            count(summary.kept),
            count(super::lost(&summary.losses))
        ),
        Event::Copied => "first copy finished; following changes".into(),
        Event::VerifyFinished { compared, differences_total, .. } => {
            format!("compared {} objects: {} differ", count(*compared), count(*differences_total))
        }
        Event::Verified => "verified: both sides are equal".into(),
        Event::ShadowPassed { note, .. } => note.clone(),
        Event::ReadsShifted { percent, service } => {
            let of = service.as_ref().map_or_else(|| "reads".to_owned(), |name| format!("reads of {name}"));
            format!("{percent} % of {of} to the other side")
        }
        Event::Paused => "paused".into(),
        Event::Resumed => "going on".into(),
        Event::CancelBegan => "cancelling: taking back what was made".into(),
        Event::Cancelled => "cancelled: the source is as it was".into(),
        Event::CompleteBegan => "completing".into(),
        Event::Completed => "completed: the migration is over".into(),
        Event::Stuck { trouble } => format!(
            "STUCK at {}: {}. True now: {}. How to fix: {}",
            trouble.step, trouble.why, trouble.what_is_true, trouble.how_to_fix
        ),
        Event::Freed { step } => format!("{step} goes on again"),
        Event::FindingSeen { part, finding } => format!("{part}: {}: {}", finding.id, finding.text),
        Event::Diagnostic { warning, text, hint, .. } => {
            let kind = if *warning { "warning: " } else { "" };
            let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{kind}{text}{hint}")
        }
        _ => return None,
    })
}

fn switch(event: &Event) -> Option<String> {
    Some(match event {
        Event::GateChecked { gate } if gate.verdict != Verdict::Pass && !gate.accepted => {
            let verdict = if gate.verdict == Verdict::Fail { "not met" } else { "no data" };
            format!("gate {}: {verdict} ({}, wanted {})", gate.name, gate.value, gate.limit)
        }
        Event::GateAccepted { gate } => format!("gate {gate} accepted by name"),
        Event::SwitchArmed { epoch, flow, rehearsal, predicted, .. } => format!(
            "ARMED: {}switch {flow}, ending epoch {epoch}; predicted pause {} ({} round trips of {:.1} ms)",
            if *rehearsal { "rehearsing a " } else { "" },
            span(predicted.total_ms / 1e3),
            predicted.round_trips,
            predicted.rtt_ms
        ),
        Event::WritesHeld { gateways, waiting, .. } => {
            format!("HELD: {gateways} gateways hold writes, none in flight, {waiting} waiting")
        }
        Event::Fenced { proved, .. } => {
            let proof = if *proved { "proved by refused writes" } else { "not proved" };
            format!("FENCED: the old owner refuses writes ({proof})")
        }
        Event::Drained { changes, .. } => {
            format!("DRAINED: {} last changes applied, marker seen", count(*changes))
        }
        Event::Sealed { .. } => "SEALED: the way back is marked".into(),
        Event::Decided { epoch, owner, why, .. } => {
            format!("DECIDED: the {owner} owns epoch {epoch} ({why})")
        }
        Event::OwnerOpened { owner, .. } => format!("OPEN: the {owner} takes writes"),
        Event::WritesReleased { owner, pause_ms, .. } => match pause_ms {
            Some(ms) => format!("writes released to the {owner} after {}", span(*ms as f64 / 1e3)),
            None => format!("writes released to the {owner}"),
        },
        Event::ReverseFollowing { flow } => format!("following {flow}: the way back is ready"),
        Event::SwitchAborted { why, .. } => {
            format!("switch given up: {why}; nothing is lost, following goes on")
        }
        Event::SwitchReported { report } => outcome(report),
        _ => return None,
    })
}

/// One attempt in a sentence.
pub fn outcome(report: &SwitchReport) -> String {
    let pause = report.pause_ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms} ms"));
    let what = match &report.outcome {
        SwitchOutcome::Committed => format!("switched to the {}", report.owner),
        SwitchOutcome::Rehearsed => "rehearsed a switch".into(),
        SwitchOutcome::Aborted { why } => format!("gave the switch up ({why})"),
    };
    format!(
        "{what}: write pause {pause}, predicted {:.0} ms, floor {:.0} ms, n = {} round trips of {:.1} ms",
        report.predicted.total_ms, report.floor_ms, report.round_trips, report.rtt_ms
    )
}
