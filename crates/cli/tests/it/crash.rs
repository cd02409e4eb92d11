//! Processes are killed and stopped at every state of a run: it ends the same, with nothing lost, nothing doubled and no
//! request failed, unless the gateway itself was killed.

use crate::demo::{assert_promises, demo, times};

/// A demo with these arguments ends switched, with its promises kept.
pub fn survives(arguments: &[&str], failed: u64) {
    for _ in 0..times() {
        let (ran, summary) = demo(arguments);
        assert_promises(&ran, &summary, failed);
        assert_eq!(summary["phase"], "switched", "{summary:#}\n{}", ran.stderr);
    }
}

macro_rules! killed {
    ($($(#[$attribute:meta])? $name:ident: $argument:literal;)*) => {
        $(#[test]
        $(#[$attribute])?
        fn $name() {
            survives(&$argument.split(' ').collect::<Vec<_>>(), 0);
        })*
    };
}

// The engine dies exactly at a journal write, before it is made: the guard, or the next `apply`, goes on.
killed! {
    engine_while_preparing: "--fault=kill@before:journal:prepared";
    engine_while_copying: "--fault=kill@before:journal:copied";
    engine_while_following: "--fault=kill@before:journal:verified";
    engine_while_shifting: "--fault=kill@before:journal:reads_shifted";
    engine_before_armed: "--fault=kill@before:journal:switch_armed";
    engine_before_held: "--fault=kill@before:journal:writes_held";
    engine_before_fenced: "--fault=kill@before:journal:fenced";
    engine_before_drained: "--fault=kill@before:journal:drained";
    engine_before_sealed: "--fault=kill@before:journal:sealed";
    engine_after_the_decision: "--fault=kill@before:journal:decided";
    engine_before_opened: "--fault=kill@before:journal:owner_opened";
    engine_before_released: "--fault=kill@before:journal:writes_released";
    engine_before_reversing: "--fault=kill@before:journal:reverse_following";
}

// The same with a database in the move.
killed! {
    #[ignore = "long: ./test long"]
    engine_with_a_database_before_held: "--postgres --fault=kill@before:journal:writes_held";
    engine_with_a_database_before_fenced: "--postgres --fault=kill@before:journal:fenced";
    #[ignore = "long: ./test long"]
    engine_with_a_database_before_drained: "--postgres --fault=kill@before:journal:drained";
    engine_with_a_database_before_sealed: "--postgres --fault=kill@before:journal:sealed";
    engine_with_a_database_after_the_decision: "--postgres --fault=kill@before:journal:decided";
    #[ignore = "long: ./test long"]
    engine_with_a_database_before_opened: "--postgres --fault=kill@before:journal:owner_opened";
    #[ignore = "long: ./test long"]
    engine_with_a_database_before_reversing: "--postgres --fault=kill@before:journal:reverse_following";
    guard_and_engine_with_a_database_at_fenced: "--postgres --mischief=both-kill@FENCED";
}

// From outside, when the journal shows the state.
killed! {
    guard_at_held: "--mischief=guard-kill@HELD";
    both_at_fenced: "--mischief=both-kill@FENCED";
    both_at_committed: "--mischief=both-kill@COMMITTED";
    engine_stopped_past_its_lease: "--mischief=engine-stop@FENCED";
}

/// The gateway dies with the requests that are open on it, and with no other: until its service manager has started it again,
/// connections are refused, and clients try again. Sixteen clients have at most sixteen requests open.
#[test]
fn gateway_at_held() {
    for _ in 0..times() {
        let (ran, summary) = demo(&["--mischief=gateway-kill@HELD"]);
        assert_promises(&ran, &summary, 16);
        assert_eq!(
            summary["requests_failed"], summary["requests_open_at_kill"],
            "{summary:#}\n{}",
            ran.stderr
        );
        assert_eq!(summary["phase"], "switched", "{summary:#}\n{}", ran.stderr);
    }
}
