//! What `rehome demo --keep` leaves behind is an ordinary run: it is looked at, reversed and completed like any other.

use crate::harness::{Place, Ran};
use rustix::process::{Pid, Signal, kill_process};

/// The kept processes, ended by the ids that the demo told.
struct Kept(Vec<i32>);

impl Drop for Kept {
    fn drop(&mut self) {
        for pid in self.0.iter().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn told(ran: &Ran) -> Kept {
    let pid = |line: &str| line.rsplit_once(" pid ").and_then(|(_, pid)| pid.trim().parse().ok());
    Kept(ran.stderr.lines().filter_map(pid).collect())
}

#[test]
fn a_kept_demo_is_an_ordinary_run() {
    let place = Place::new();
    let ran = place.run(&[
        "demo",
        "--objects",
        "60",
        "--duration",
        "4",
        "--rate",
        "100",
        "--keep",
        "kept",
        "--json",
    ]);
    let kept = told(&ran);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(kept.0.len(), 5, "four processes of the clouds and the gateway: {}", ran.stderr);
    let run = |words: &[&str]| {
        let mut all = vec!["--state", "kept/state", "--file", "kept/rehome.toml"];
        all.extend(words);
        place.run(&all)
    };

    let status = run(&["status"]);
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(
        status.stdout.contains("switched") && status.stdout.contains("owner target"),
        "{}",
        status.stdout
    );
    assert!(run(&["runs", "-q"]).stdout.contains("shop"));
    assert_eq!(run(&["report", "--json"]).last_json()["one_writable_side_proved"], true);
    assert_eq!(run(&["doctor"]).code, 0, "{}", run(&["doctor"]).stdout);

    let refused = run(&["cancel", "--yes"]);
    assert_eq!(refused.code, 1, "the target owns the data: {}", refused.stdout);
    assert_eq!(run(&["reverse", "--yes"]).code, 21);
    for words in [&["verify"][..], &["pause"], &["resume"], &["shift", "25%"], &["shift", "0"]] {
        let steered = run(words);
        assert_eq!(steered.code, 0, "{words:?}: {}", steered.stderr);
    }
    let rehearsed = run(&["switch", "--rehearse", "--json"]).last_json();
    assert_eq!(rehearsed["outcome"]["outcome"], "rehearsed", "{rehearsed:#}");
    assert_eq!(
        run(&["status", "--json"]).last_json()["view"]["owner"],
        "source",
        "a rehearsal moves nothing"
    );
    assert_eq!(run(&["switch", "--yes"]).code, 0);
    let completed = run(&["complete", "--yes"]);
    assert_eq!(completed.code, 0, "{}", completed.stderr);
    assert!(completed.stderr.contains("take the gateway out of the path"), "{}", completed.stderr);
    let status = run(&["status"]);
    assert!(status.stdout.contains("completed"), "{}", status.stdout);
    let over = run(&["switch", "--yes"]);
    assert_eq!(over.code, 1, "{}", over.stderr);
    assert!(over.stderr.contains("completed"), "{}", over.stderr);
}
