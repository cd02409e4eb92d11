//! The demo with its orders in PostgreSQL: a bucket and a database move in one switch. The same promises, under the same deaths.

use crate::crash::survives;
use crate::demo::{assert_promises, demo, times};
use rehome_testkit::postgres::programs_or_skip;
use serde_json::Value;

/// A demo with a database; `None` where there is no PostgreSQL.
fn with_database(more: &[&str]) -> Option<(crate::harness::Ran, Value)> {
    programs_or_skip()?;
    let mut arguments = vec!["--postgres"];
    arguments.extend(more);
    Some(demo(&arguments))
}

#[test]
fn there_and_back() {
    for _ in 0..times() {
        let Some((ran, summary)) = with_database(&["--reverse"]) else { return };
        assert_promises(&ran, &summary, 0);
        assert_eq!(summary["phase"], "reversed");
        assert_eq!(summary["switches"], 2);
        assert_eq!(summary["one_writable_side_proved"], true, "{summary:#}");
        assert!(summary["straggler_acknowledged"].as_u64().unwrap() > 0, "{summary:#}");
        assert!(summary["straggler_refused"].as_u64().unwrap() > 0, "{summary:#}");
    }
}

#[test]
fn twenty_milliseconds_apart() {
    let Some((ran, summary)) = with_database(&["--rtt", "20"]) else { return };
    assert_promises(&ran, &summary, 0);
    assert!(summary["round_trip_ms"].as_f64().unwrap() >= 20.0, "{summary:#}");
}

macro_rules! killed {
    ($($name:ident: $argument:literal;)*) => {
        $(#[test]
        fn $name() {
            if programs_or_skip().is_some() {
                survives(&["--postgres", $argument], 0);
            }
        })*
    };
}

killed! {
    engine_while_preparing: "--fault=kill@before:journal:prepared";
    engine_while_copying: "--fault=kill@before:journal:copied";
    engine_while_following: "--fault=kill@before:journal:verified";
    engine_before_armed: "--fault=kill@before:journal:switch_armed";
    engine_before_held: "--fault=kill@before:journal:writes_held";
    engine_before_fenced: "--fault=kill@before:journal:fenced";
    engine_before_drained: "--fault=kill@before:journal:drained";
    engine_before_sealed: "--fault=kill@before:journal:sealed";
    engine_after_the_decision: "--fault=kill@before:journal:decided";
    engine_before_opened: "--fault=kill@before:journal:owner_opened";
    engine_before_released: "--fault=kill@before:journal:writes_released";
    engine_before_reversing: "--fault=kill@before:journal:reverse_following";
    both_at_fenced: "--mischief=both-kill@FENCED";
    both_at_sealed: "--mischief=both-kill@SEALED";
    both_at_committed: "--mischief=both-kill@COMMITTED";
}

/// The checks can fail: a fence that was left out is found out.
#[test]
fn without_its_fence() {
    let Some((ran, summary)) = with_database(&["--sabotage=skip-fence"]) else { return };
    assert_ne!(ran.code, 0, "{summary:#}");
    let findings = summary["findings"].to_string();
    assert!(findings.contains("fence-not-proved") && findings.contains("lost"), "{summary:#}");
}
