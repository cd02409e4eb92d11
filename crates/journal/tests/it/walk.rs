//! Random legal histories: from every state, one of the events that can happen there.

use rehome_journal::{Event, Goal, NewRun, PartInfo, Prediction, State, Trouble};
use rehome_part::{CopySummary, Epoch, Finding, Flow, Severity, Side};
use serde_json::Value;
use std::collections::BTreeMap;

pub fn new_run() -> NewRun {
    let part = |name: &str| PartInfo { name: name.into(), kind: "simulated".into() };
    NewRun {
        run: "run_1".into(),
        name: "shop".into(),
        parts: vec![part("media"), part("mail")],
        services: vec!["api".into()],
        tool_version: "0.1.0".into(),
        actor: "tester".into(),
        at_ms: 1,
        token_floor: rehome_part::Token(0),
    }
}

/// Every kind of event, fitted to the state where that makes it possible; many are illegal in any one state.
pub fn candidates(state: &State) -> Vec<Event> {
    let attempt = state.attempts.max(1);
    let flow = state.flow();
    let step = || "fence".to_owned();
    let error = || rehome_part::Error::temporary(rehome_part::ErrorKind::Network, "gone");
    let positions = || BTreeMap::from([("media".to_owned(), rehome_part::Position("7".into()))]);
    let finding = || Finding {
        id: "late-write".into(),
        severity: Severity::Warning,
        side: Some(Side::Source),
        text: "late".into(),
        remedy: None,
    };
    let trouble = Trouble {
        step: step(),
        why: "no".into(),
        what_is_true: "this".into(),
        how_to_fix: "that".into(),
        error: None,
    };
    let decided = |owner| Event::Decided { epoch: state.epoch.next(), owner, why: "test".into(), boot_ms: 5 };
    let armed = |rehearsal| Event::SwitchArmed {
        attempt: state.attempts + 1,
        epoch: state.epoch,
        flow,
        rehearsal,
        predicted: Prediction::default(),
        positions: positions(),
        boot_ms: 1,
    };
    let copied = |part: &str| Event::PartCopied { part: part.into(), summary: CopySummary::default() };
    let verified =
        |n| Event::VerifyFinished { compared: 1, bytes: 2, differences_total: n, differences: vec![] };
    vec![
        Event::GoalSet { goal: Goal::Switched },
        Event::CommandReceived { command: "switch".into(), argv: vec!["rehome".into()] },
        Event::StepIntended { step: step(), attempt, input: Value::Null },
        Event::StepDone { step: step(), attempt, output: Value::Null },
        Event::StepFailed { step: step(), attempt, error: error() },
        Event::UndoIntended { step: step(), attempt },
        Event::UndoDone { step: step(), attempt },
        Event::UndoFailed { step: step(), attempt, error: error() },
        Event::Prepared,
        Event::RunRecovered { epoch: Epoch(4), owner: Side::Target },
        copied("media"),
        copied("mail"),
        Event::Copied,
        verified(0),
        verified(0),
        verified(3),
        Event::Verified,
        Event::ShadowPassed { compared: 0, note: "none".into() },
        Event::ReadsShifted { percent: 25, service: None },
        Event::ReadsShifted { percent: 0, service: None },
        Event::CanaryPassed { note: "fine".into() },
        Event::GateAccepted { gate: "way-back".into() },
        armed(false),
        armed(false),
        armed(true),
        Event::WritesHeld { gateways: 1, waiting: 3, boot_ms: 2 },
        Event::Fenced { positions: positions(), proved: true, boot_ms: 3 },
        Event::Drained { changes: 4, marker_seen: true, boot_ms: 4 },
        Event::Sealed { reverse_starts: positions(), boot_ms: 4 },
        decided(Side::Source),
        decided(Side::Target),
        Event::OwnerOpened { epoch: state.epoch, owner: state.owner, boot_ms: 6 },
        Event::WritesReleased { epoch: state.epoch, owner: state.owner, pause_ms: Some(9), boot_ms: 7 },
        Event::ReverseFollowing { flow },
        Event::SwitchAborted { why: "test".into(), keep_verified: true },
        Event::Paused,
        Event::Resumed,
        Event::CancelBegan,
        Event::Cancelled,
        Event::CompleteBegan,
        Event::Completed,
        Event::Stuck { trouble },
        Event::Freed { step: step() },
        Event::FindingSeen { part: "media".into(), finding: finding() },
        Event::Diagnostic { warning: true, source: "test".into(), text: "hm".into(), hint: None },
    ]
}

/// The legal events of a state. Those that lead on come several times, so that random choices get far.
pub fn legal(state: &State) -> Vec<Event> {
    let mut events = Vec::new();
    for event in candidates(state) {
        let Ok(after) = state.next(&event) else { continue };
        let gives_up = matches!(
            event,
            Event::CancelBegan
                | Event::Cancelled
                | Event::Decided { owner: Side::Source, .. }
                | Event::ReadsShifted { .. }
        );
        let leads_on = after.stage > state.stage || after.ending != state.ending;
        let times = if leads_on && !gives_up { 8 } else { 1 };
        events.extend(std::iter::repeat_n(event, times));
    }
    events
}

/// What must hold across every single step, whatever the history.
pub fn assert_sound(before: &State, event: &Event, after: &State) {
    use rehome_journal::Stage;
    if matches!(event, Event::RunRecovered { .. }) {
        assert_eq!(before.stage, Stage::Planned);
    } else if before.owner != after.owner || before.epoch != after.epoch {
        assert!(matches!(event, Event::Decided { .. }), "{event:?} changed the owner");
        assert_eq!(after.epoch, before.epoch.next(), "epochs go one by one");
    }
    if after.stage == Stage::Committed && before.stage != Stage::Committed {
        assert_eq!(before.stage, Stage::Sealed, "a commit without a seal");
        assert!(!before.attempt.as_ref().unwrap().rehearsal, "a rehearsal committed");
        assert_ne!(before.owner, after.owner);
    }
    if after.stage.in_switch() {
        let attempt = after.attempt.as_ref().expect("a switch has its attempt");
        assert!(after.epoch >= attempt.epoch);
        assert!(!after.paused && after.ending.is_none());
    } else {
        assert_eq!(after.attempt, None);
    }
    if !before.stage.in_switch() && after.stage.in_switch() {
        assert!(before.verified, "armed without a comparison that stands");
    }
    if after.stage == Stage::Cancelled {
        assert_eq!(after.owner, Side::Source, "cancelled while the target owned the data");
    }
    if after.stage == Stage::Final {
        assert_eq!(after.owner, Side::Target);
    }
    assert!(after.epoch >= Epoch::FIRST && after.flow() == Flow::leaving(after.owner));
}
