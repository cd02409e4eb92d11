//! The checks can fail: each way of breaking the promises on purpose is found out, by the right finding.

use crate::demo::{demo, times};

/// Runs a sabotaged demo; one of `findings` must be among what was found, and the exit must not be 0.
fn found_out(name: &str, findings: &[&str]) {
    for _ in 0..times() {
        let (ran, summary) = demo(&[&format!("--sabotage={name}")]);
        assert_ne!(ran.code, 0, "{name} was not found out: {summary:#}");
        let text = format!("{}\n{}\n{}", summary["findings"], ran.stdout, ran.stderr);
        assert!(findings.iter().any(|finding| text.contains(finding)), "{name}: {summary:#}\n{}", ran.stderr);
    }
}

#[test]
fn skip_fence() {
    found_out("skip-fence", &["two-sides", "fence-not-proved"]);
}

#[test]
fn release_twice() {
    found_out("release-twice", &["doubled"]);
}

#[test]
fn release_both() {
    found_out("release-both", &["two-sides", "lost"]);
}

#[test]
fn drop_delta() {
    // Found before the commit by the comparison inside the window, or afterwards by the checker.
    found_out("drop-delta", &["lost", "compare"]);
}

#[test]
fn skip_marker() {
    found_out("skip-marker", &["marker-not-seen"]);
}
