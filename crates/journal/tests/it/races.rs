//! Races: leases, tokens, and the one decision, from several threads and connections at once.

use crate::walk::new_run;
use rehome_journal::{Actor, Error, Event, Goal, Journal, Now, Options, Register};
use rehome_part::{Epoch, Side, Token};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(2);

fn at(boot_ms: u64) -> Now {
    Now { boot_id: "boot-1".into(), boot_ms }
}

fn begun(folder: &Path) -> Journal {
    Journal::create(folder, new_run(), Options::default()).unwrap()
}

fn open(folder: &Path) -> Journal {
    Journal::open(folder, Options::default()).unwrap()
}

fn goal(goal: Goal) -> [Event; 1] {
    [Event::GoalSet { goal }]
}

#[test]
fn a_lease_is_taken_over_only_when_it_has_ended_and_then_with_a_higher_token() {
    let place = tempfile::tempdir().unwrap();
    let (first, second) = (begun(place.path()), open(place.path()));
    let ours = first.acquire("engine 1", &at(1_000), LEASE).unwrap();
    let held = second.acquire("guard 2", &at(2_999), LEASE).unwrap_err();
    assert!(matches!(&held, Error::Held(lease) if lease.holder == "engine 1"), "{held}");
    first.renew(ours.token, &at(2_900), LEASE).unwrap();
    assert!(second.acquire("guard 2", &at(4_899), LEASE).is_err());
    let theirs = second.acquire("guard 2", &at(4_900), LEASE).unwrap();
    assert!(theirs.token > ours.token);

    // the first wakes up: nothing of it is taken any more
    let actor = Actor { name: "engine 1".into(), token: ours.token };
    let late = first.append(&actor, 1, &goal(Goal::Switched)).unwrap_err();
    assert!(late.is_lost(), "{late}");
    assert!(first.renew(ours.token, &at(4_950), LEASE).unwrap_err().is_lost());
    assert!(first.release(ours.token).unwrap_err().is_lost());
    let guard = Actor { name: "guard 2".into(), token: theirs.token };
    assert_eq!(second.append(&guard, 1, &goal(Goal::Ready)).unwrap().goal, Goal::Ready);
    assert_eq!(first.catch_up().unwrap().goal, Goal::Ready);
}

#[test]
fn a_reboot_voids_every_time_that_was_written_before() {
    let place = tempfile::tempdir().unwrap();
    let journal = begun(place.path());
    journal.acquire("engine 1", &at(9_000_000), LEASE).unwrap();
    journal.beat_guard("guard 2", &at(9_000_000)).unwrap();
    let rebooted = Now { boot_id: "boot-2".into(), boot_ms: 10 };
    assert!(!journal.guard().unwrap().unwrap().is_alive(&rebooted, LEASE));
    assert!(journal.acquire("engine 3", &rebooted, LEASE).is_ok());
}

#[test]
fn a_released_lease_need_not_be_waited_for() {
    let place = tempfile::tempdir().unwrap();
    let journal = begun(place.path());
    let lease = journal.acquire("engine 1", &at(1_000), LEASE).unwrap();
    journal.release(lease.token).unwrap();
    assert_eq!(journal.acquire("engine 2", &at(1_001), LEASE).unwrap().token, Token(lease.token.0 + 1));
}

/// Runs the same on many threads at once and gives back what each came to.
fn at_once<T: Send + 'static>(count: usize, work: impl Fn(usize) -> T + Send + Sync + 'static) -> Vec<T> {
    let (work, start) = (Arc::new(work), Arc::new(Barrier::new(count)));
    let threads: Vec<_> = (0..count)
        .map(|n| {
            let (work, start) = (Arc::clone(&work), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                work(n)
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn of_many_who_want_an_ended_lease_one_gets_it() {
    let place = tempfile::tempdir().unwrap();
    drop(begun(place.path()));
    let folder = place.path().to_path_buf();
    for round in 1..=5_u64 {
        let folder = folder.clone();
        let won = at_once(6, move |n| {
            open(&folder).acquire(&format!("engine {n}"), &at(round * 10_000), LEASE).is_ok()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1);
    }
    assert_eq!(open(&folder).lease().unwrap().unwrap().token, Token(5));
}

#[test]
fn an_epoch_is_decided_once_whoever_asks() {
    let place = tempfile::tempdir().unwrap();
    let register = Register::open(place.path()).unwrap();
    for epoch in (2..12).map(Epoch) {
        register.propose(epoch, Token(1)).unwrap();
        let folder = place.path().to_path_buf();
        let answers = at_once(8, move |n| {
            let owner = if n % 2 == 0 { Side::Source } else { Side::Target };
            Register::open(&folder).unwrap().decide(epoch, owner, Token(1)).unwrap().owner
        });
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
        assert_eq!(register.decision(epoch).unwrap().unwrap().owner, answers[0]);
        assert_eq!(register.newest().unwrap().unwrap().epoch, epoch);
    }
}

#[test]
fn a_lower_token_decides_nothing_even_when_nobody_decided_yet() {
    let place = tempfile::tempdir().unwrap();
    let register = Register::open(place.path()).unwrap();
    register.propose(Epoch(2), Token(1)).unwrap();
    register.raise(Token(2)).unwrap(); // the guard took over
    let late = register.decide(Epoch(2), Side::Target, Token(1)).unwrap_err();
    assert!(late.is_lost(), "{late}");
    assert_eq!(register.decision(Epoch(2)).unwrap(), None);
    assert_eq!(register.decide(Epoch(2), Side::Source, Token(2)).unwrap().owner, Side::Source);
    // asking again with the other answer reads back what stands
    assert_eq!(register.decide(Epoch(2), Side::Target, Token(3)).unwrap().owner, Side::Source);
    assert!(matches!(register.decide(Epoch(7), Side::Target, Token(3)), Err(Error::NotProposed(Epoch(7)))));
}
