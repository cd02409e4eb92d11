//! The demo as the proof: the same `plan` and `apply` as a user's, with an independent checker behind it.

use crate::harness::{Place, Ran};
use serde_json::Value;

/// Repetitions: one in CI, more in `./test long`.
pub fn times() -> u32 {
    std::env::var("REHOME_LONG").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// A short demo; `more` are its arguments.
pub fn demo(more: &[&str]) -> (Ran, Value) {
    let place = Place::new();
    let mut arguments = vec!["demo", "--json", "--objects", "150", "--duration", "6", "--rate", "200"];
    arguments.extend(more);
    let ran = place.run(&arguments);
    let summary = ran.last_json();
    assert_eq!(summary["type"], "summary", "{}", ran.stderr);
    (ran, summary)
}

/// Nothing lost, nothing doubled; `failed` requests at most.
pub fn assert_promises(ran: &Ran, summary: &Value, failed: u64) {
    let told = format!("{summary:#}\n{}", ran.stderr);
    assert_eq!(summary["writes_lost"], 0, "{told}");
    assert_eq!(summary["writes_doubled"], 0, "{told}");
    assert_eq!(summary["read_your_writes_violations"], 0, "{told}");
    assert_eq!(summary["findings"].as_array().map(Vec::len), Some(0), "{told}");
    assert!(summary["requests_failed"].as_u64().unwrap() <= failed, "{told}");
    assert!(summary["writes_acknowledged"].as_u64().unwrap() > 50, "{told}");
    if failed == 0 {
        assert_eq!(ran.code, 0, "{told}");
    }
}

#[test]
fn there() {
    let (ran, summary) = demo(&[]);
    assert_promises(&ran, &summary, 0);
    assert_eq!(summary["phase"], "switched");
    assert_eq!(summary["one_writable_side_proved"], true);
    assert!(summary["write_pause_ms"].as_u64().unwrap() > 0);
    assert!(summary["predicted_pause_ms"].as_f64().unwrap() > 0.0);
    assert!(summary["requests_by_cloud"]["A"].as_u64().unwrap() > 0);
    assert!(summary["requests_by_cloud"]["B"].as_u64().unwrap() > 0);
    assert!(summary["straggler_acknowledged"].as_u64().unwrap() > 0);
    assert!(summary["straggler_refused"].as_u64().unwrap() > 0);
    let first: Value = serde_json::from_str(ran.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(first["type"], "version");
}

#[test]
fn and_back() {
    let (ran, summary) = demo(&["--reverse"]);
    assert_promises(&ran, &summary, 0);
    assert_eq!(summary["phase"], "reversed");
    assert_eq!(summary["switches"], 2);
}

#[test]
fn twenty_milliseconds_apart() {
    let (ran, summary) = demo(&["--rtt", "20"]);
    assert_promises(&ran, &summary, 0);
    assert!(summary["round_trip_ms"].as_f64().unwrap() >= 20.0, "{summary:#}");
}
