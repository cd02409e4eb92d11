//! Histories: random legal ones survive any torn tail as a prefix; edited ones are refused with their sequence number.

use crate::walk::{assert_sound, candidates, legal, new_run};
use proptest::prelude::*;
use rehome_journal::{Actor, Error, Event, Journal, Now, Options, Reader, Record, RunView, Stage, State};
use rehome_part::Token;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(3_600);

fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn begun(folder: &Path) -> (Journal, Actor) {
    let journal = Journal::create(folder, new_run(), Options::default()).unwrap();
    let token = journal.acquire("engine 1", &Now::read(), LEASE).unwrap().token;
    (journal, Actor { name: "engine 1".into(), token })
}

/// Walks at random and writes what happened, several events at a time; answers everything written.
fn walk(journal: &Journal, actor: &Actor, choices: &[(u16, u8)]) -> Vec<Record> {
    let mut batch = Vec::new();
    let mut state = journal.state();
    for (choice, size) in choices {
        let options = legal(&state);
        let event = options[*choice as usize % options.len()].clone();
        let after = state.next(&event).unwrap();
        assert_sound(&state, &event, &after);
        state = after;
        batch.push(event);
        if batch.len() > *size as usize % 4 {
            assert_eq!(journal.append(actor, 7, &batch).unwrap(), state);
            batch.clear();
        }
    }
    journal.append(actor, 7, &batch).unwrap();
    journal.events_since(0, 100_000).unwrap()
}

/// A machine that lost its power: the log cut anywhere, perhaps with rubbish behind the cut.
fn torn_copy(from: &Path, to: &Path, cut: f64, rubbish: bool) {
    for name in ["journal.db", "journal.db-wal"] {
        if let Ok(mut bytes) = fs::read(from.join(name)) {
            if name.ends_with("-wal") {
                let keep = (bytes.len() as f64 * cut) as usize;
                let lost = bytes.len() - keep;
                bytes.truncate(keep);
                if rubbish {
                    bytes.extend(std::iter::repeat_n(0xa5, lost));
                }
            }
            fs::write(to.join(name), bytes).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_torn_tail_leaves_a_prefix_of_the_history_and_never_an_impossible_one(
        choices in prop::collection::vec((any::<u16>(), any::<u8>()), 1..60),
        cuts in prop::collection::vec((0.0_f64..1.0, any::<bool>()), 4),
    ) {
        let folder = place();
        let (journal, actor) = begun(folder.path());
        let written = walk(&journal, &actor, &choices);
        for (cut, rubbish) in cuts {
            let after = place();
            torn_copy(folder.path(), after.path(), cut, rubbish);
            match Journal::open(after.path(), Options::default()) {
                Ok(reopened) => {
                    let found = reopened.events_since(0, 100_000).unwrap();
                    prop_assert_eq!(&found[..], &written[..found.len()]);
                    let folded = found.iter().fold(State::default(), |s, r| s.next(&r.event).unwrap());
                    prop_assert_eq!(reopened.state(), folded);
                }
                // cut before the very first commit
                Err(Error::NotFound(_)) => {}
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
        // untouched, everything is there, and the view agrees with the writer
        drop(journal);
        let view = RunView::load(folder.path()).unwrap();
        let reopened = Journal::open(folder.path(), Options::default()).unwrap();
        prop_assert_eq!(view.last_seq, written.len() as u64);
        prop_assert_eq!(view.phase, reopened.state().phase());
        prop_assert_eq!(view.epoch, reopened.state().epoch);
    }

    #[test]
    fn an_illegal_event_is_refused_and_nothing_of_its_batch_is_written(
        choices in prop::collection::vec((any::<u16>(), any::<u8>()), 0..40),
        pick in any::<u16>(),
    ) {
        let folder = place();
        let (journal, actor) = begun(folder.path());
        let written = walk(&journal, &actor, &choices);
        let state = journal.state();
        let illegal: Vec<Event> = candidates(&state).into_iter().filter(|e| state.next(e).is_err()).collect();
        let event = illegal[pick as usize % illegal.len()].clone();
        let harmless = Event::CommandReceived { command: "status".into(), argv: vec![] };
        let refused = journal.append(&actor, 8, &[harmless, event]);
        prop_assert!(matches!(refused, Err(Error::Illegal(_))), "{refused:?}");
        prop_assert_eq!(journal.events_since(0, 100_000).unwrap(), written);
        prop_assert_eq!(journal.state(), state);
    }
}

#[test]
fn random_walks_reach_every_stage() {
    // otherwise the properties above would hold for want of histories
    let mut reached = std::collections::BTreeSet::new();
    let mut random = 0x9e37_79b9_u64;
    for _ in 0..40 {
        let NewRunEvent(created) = NewRunEvent::make();
        let mut state = State::default().next(&created).unwrap();
        for _ in 0..200 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let options = legal(&state);
            let event = &options[(random >> 33) as usize % options.len()];
            let after = state.next(event).unwrap();
            assert_sound(&state, event, &after);
            state = after;
            reached.insert(state.stage);
        }
    }
    for stage in
        [Stage::Armed, Stage::Sealed, Stage::Committed, Stage::Aborting, Stage::Reversing, Stage::Final]
    {
        assert!(reached.contains(&stage), "{stage} was never reached: {reached:?}");
    }
}

struct NewRunEvent(Event);

impl NewRunEvent {
    fn make() -> Self {
        let new = new_run();
        Self(Event::RunCreated { run: new.run, name: new.name, parts: new.parts, services: new.services })
    }
}

fn edit(folder: &Path, sql: &str) {
    rusqlite::Connection::open(folder.join("journal.db")).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn an_edited_history_is_refused_with_its_sequence_number() {
    let broken = [
        ("DELETE FROM event WHERE seq = 3", 3, "missing"),
        (
            r#"UPDATE event SET body = '{"kind":"sealed","reverse_starts":{},"boot_ms":1}' WHERE seq = 2"#,
            2,
            "sealed",
        ),
        ("UPDATE event SET body = '{\"kind\":\"nonsense\"}' WHERE seq = 4", 4, "cannot be read"),
        (r#"UPDATE event SET body = '{"kind":"copied"}' WHERE seq = 3"#, 3, "not every part"),
    ];
    for (sql, seq, what) in broken {
        let folder = place();
        let (journal, actor) = begun(folder.path());
        let remark = |text: &str| Event::Diagnostic {
            warning: false,
            source: "test".into(),
            text: text.into(),
            hint: None,
        };
        journal.append(&actor, 1, &[remark("a"), remark("b"), remark("c")]).unwrap();
        drop(journal);
        edit(folder.path(), sql);
        for error in [
            Journal::open(folder.path(), Options::default()).map(drop).unwrap_err(),
            Reader::open(folder.path()).unwrap().refresh().map(drop).unwrap_err(),
        ] {
            let Error::Impossible { seq: found, why } = &error else { panic!("{error}") };
            assert_eq!(*found, seq, "{error}");
            assert!(why.contains(what), "{error}");
        }
    }
}

#[test]
fn a_token_that_does_not_rise_is_an_impossible_history() {
    let started = |token| Event::EngineStarted { token: Token(token), version: "1".into(), pid: 1 };
    let NewRunEvent(created) = NewRunEvent::make();
    let state = State::default().next(&created).unwrap().next(&started(2)).unwrap();
    assert!(state.next(&started(2)).is_err());
    assert!(state.next(&started(1)).is_err());
    assert!(state.next(&started(3)).is_ok());
}
