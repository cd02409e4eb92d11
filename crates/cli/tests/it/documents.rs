//! What is generated must be what is committed: the command line reference and the JSON Schema.

use crate::harness::Place;
use std::path::Path;

fn compare(file: &str, command: &str) {
    let place = Place::new();
    let ran = place.run(&[command]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept.trim_end() == ran.stdout.trim_end(),
        "docs/{file} is out of date: `rehome {command} > docs/{file}`"
    );
}

#[test]
fn command_line_reference_is_up_to_date() {
    compare("cli.md", "reference");
}

#[test]
fn json_schema_is_up_to_date() {
    compare("rehome.schema.json", "schema");
}

#[test]
fn completions_and_man_pages_can_be_made() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = place.run(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("rehome"));
    }
    let ran = place.run(&["man", "pages"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(
        place.path("pages").join("rehome-switch.1").exists() || place.path("pages").join("rehome.1").exists()
    );
}
