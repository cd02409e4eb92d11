//! How the files are kept: permissions, versions, the copy, views.

use crate::walk::new_run;
use rehome_journal::{
    Actor, Error, Event, FORMAT_MAJOR, Goal, Journal, Now, Options, Phase, Reader, Register, RunView,
};
use rehome_part::{Epoch, Side, Token};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

fn begun(folder: &Path, copy_to: Option<&Path>) -> (Journal, Actor) {
    let options = Options { copy_to: copy_to.map(Path::to_path_buf) };
    let journal = Journal::create(folder, new_run(), options).unwrap();
    let token = journal.acquire("engine 1", &Now::read(), Duration::from_secs(60)).unwrap().token;
    (journal, Actor { name: "engine 1".into(), token })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn nobody_else_may_read_the_record() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("state").join("run_1");
    let (_journal, _) = begun(&folder, None);
    Register::open(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_run_is_begun_once_and_found_only_where_it_is() {
    let place = tempfile::tempdir().unwrap();
    let missing = Journal::open(&place.path().join("nowhere"), Options::default());
    assert!(matches!(missing, Err(Error::NotFound(_))));
    assert!(matches!(RunView::load(place.path()), Err(Error::NotFound(_))));
    let (journal, _) = begun(place.path(), None);
    drop(journal);
    assert!(matches!(Journal::create(place.path(), new_run(), Options::default()), Err(Error::Exists(_))));
}

#[test]
fn a_newer_format_is_refused_with_the_version_that_wrote_it_and_a_newer_minor_is_not() {
    let place = tempfile::tempdir().unwrap();
    let (journal, _) = begun(place.path(), None);
    drop(journal);
    let set = |key: &str, value: u32| {
        let connection = rusqlite::Connection::open(place.path().join("journal.db")).unwrap();
        connection.execute("UPDATE meta SET value = ?1 WHERE key = ?2", (value.to_string(), key)).unwrap();
    };
    set("format_minor", 9);
    assert!(Journal::open(place.path(), Options::default()).is_ok());
    set("format_major", FORMAT_MAJOR + 1);
    let error = Journal::open(place.path(), Options::default()).unwrap_err();
    assert!(matches!(error, Error::Newer { .. }));
    assert!(error.to_string().contains("written by rehome 0.1.0"), "{error}");
    assert!(Reader::open(place.path()).is_err());
}

#[test]
fn the_copy_is_a_whole_run_of_its_own() {
    let (place, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy = copy.path().join("elsewhere");
    let (journal, actor) = begun(place.path(), Some(&copy));
    let register = Register::open(place.path()).unwrap();
    register.propose(Epoch(2), actor.token).unwrap();
    register.decide(Epoch(2), Side::Target, actor.token).unwrap();
    journal.append(&actor, 1, &[Event::GoalSet { goal: Goal::Ready }, Event::Prepared]).unwrap();
    let health = journal.settle_copy(Duration::from_secs(30)).unwrap();
    assert_eq!((health.error, health.finished), (None, health.wanted));
    assert_eq!(mode(&copy.join("journal.db")), 0o600);
    let state = journal.state();
    drop(journal); // the machine is gone
    let view = RunView::load(&copy).unwrap();
    assert_eq!((view.phase, view.goal), (Phase::Copying, Goal::Ready));
    let again = Journal::open(&copy, Options::default()).unwrap();
    assert_eq!(again.state(), state);
    let decision = Register::open(&copy).unwrap().decision(Epoch(2)).unwrap().unwrap();
    assert_eq!(decision.owner, Side::Target);
}

#[test]
fn a_place_that_cannot_be_written_is_reported_and_stops_nothing() {
    let place = tempfile::tempdir().unwrap();
    let in_the_way = place.path().join("a-file");
    fs::write(&in_the_way, "").unwrap();
    let (journal, actor) = begun(&place.path().join("run"), Some(&in_the_way.join("copy")));
    journal.append(&actor, 1, &[Event::Prepared]).unwrap();
    let health = journal.settle_copy(Duration::from_secs(30)).unwrap();
    assert!(health.error.is_some());
    journal.append(&actor, 1, &[Event::GoalSet { goal: Goal::Ready }]).unwrap();
    assert_eq!(journal.state().goal, Goal::Ready);
}

#[test]
fn a_reader_follows_a_writer_without_disturbing_it() {
    let place = tempfile::tempdir().unwrap();
    let (journal, actor) = begun(place.path(), None);
    let mut reader = Reader::open(place.path()).unwrap();
    assert_eq!(reader.refresh().unwrap().phase, Phase::Planned);
    journal.append(&actor, 5, &[Event::Prepared]).unwrap();
    assert_eq!(reader.refresh().unwrap().phase, Phase::Copying);
    journal.append(&actor, 9, &[Event::Paused]).unwrap();
    let view = reader.refresh().unwrap().clone();
    assert_eq!(view.next_action, "rehome resume");
    assert_eq!(view.time_per_phase(105)[&Phase::Copying], 100);
    assert_eq!(reader.events_since(1, 10).unwrap().len(), 2);
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<RunView>(&text).unwrap(), view);
    assert_eq!(view.lease.unwrap().token, Token(1));
}
