use std::path::Path;

#[test]
fn the_committed_schema_is_the_one_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/rehome.schema.json");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == rehome_spec::schema_json(),
        "docs/rehome.schema.json is not what the code says; make it again:\n    cargo run -p rehome-spec --example schema > docs/rehome.schema.json"
    );
}
