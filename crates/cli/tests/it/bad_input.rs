//! Wrong input gets a clear error: what, where, what to do, with its exit code, and nothing half done.

use crate::harness::Place;

const GOOD: &str = r#"[migration]
name = "shop"
source = { cloud = "here" }
target = { cloud = "there" }

[[objects]]
name = "media"
source = { url = "file:///nonexistent/rehome/a" }
target = { url = "file:///nonexistent/rehome/b" }
fence = { by = "none" }
"#;

#[test]
fn no_migration_file() {
    let place = Place::new();
    insta::assert_snapshot!(place.run(&["plan"]).snapshot(&place));
}

#[test]
fn init_never_writes_over_a_file() {
    let place = Place::new();
    let first = place.run(&["init"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let written = std::fs::read_to_string(place.path("rehome.toml")).unwrap();
    insta::assert_snapshot!(place.run(&["init"]).snapshot(&place));
    assert_eq!(std::fs::read_to_string(place.path("rehome.toml")).unwrap(), written);
}

#[test]
fn a_wrong_key_is_shown_in_its_line() {
    let place = Place::new();
    place.write("rehome.toml", &GOOD.replace("fence", "fense"));
    insta::assert_snapshot!(place.run(&["plan"]).snapshot(&place));
}

#[test]
fn a_missing_bucket_is_in_the_way() {
    let place = Place::new();
    place.write("rehome.toml", GOOD);
    let ran = place.run(&["apply", "--yes"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("/nonexistent/rehome/a"), "{}", ran.stderr);
    assert!(!place.path("state/shop/journal.db").exists(), "a refused apply left a run behind");
}

#[test]
fn steering_without_a_run() {
    let place = Place::new();
    for command in ["status", "switch", "report", "pause"] {
        let ran = place.run(&[command, "--run", "nothing"]);
        assert_eq!(ran.code, 4, "{command}: {}", ran.stderr);
        assert!(ran.stderr.contains("there is no run `nothing`"), "{}", ran.stderr);
    }
}

#[test]
fn a_share_above_100_is_a_usage_error() {
    let place = Place::new();
    let ran = place.run(&["shift", "150%"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("0% to 100%"), "{}", ran.stderr);
}

#[test]
fn apply_without_a_terminal_asks_for_yes_and_changes_nothing() {
    let place = Place::new();
    let (a, b) = (place.path("a"), place.path("b"));
    std::fs::create_dir(&a).unwrap();
    std::fs::write(a.join("one"), "1").unwrap();
    let text = GOOD
        .replace("/nonexistent/rehome/a", &a.display().to_string())
        .replace("/nonexistent/rehome/b", &b.display().to_string());
    place.write("rehome.toml", &text);
    let ran = place.run(&["apply"]);
    assert_eq!(ran.code, 3, "{}\n{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("--yes"), "{}", ran.stderr);
    assert!(!b.exists());
    assert!(!place.path("state/shop/journal.db").exists());
}

#[test]
fn copy_says_what_is_wrong_with_its_stores() {
    let place = Place::new();
    for (source, expected) in [("ftp://host/folder", "ftp"), ("/nonexistent/rehome", "/nonexistent/rehome")] {
        let ran = place.run(&["copy", source, "out"]);
        assert_ne!(ran.code, 0);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    }
}

#[test]
fn json_errors_are_json() {
    let place = Place::new();
    let ran = place.run(&["--json", "status", "--run", "nothing"]);
    let error = ran.last_json();
    assert_eq!(error["type"], "error");
    assert_eq!(error["exit_code"], 4);
}
