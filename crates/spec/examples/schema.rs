//! Prints the JSON Schema of the migration file: `cargo run -p rehome-spec --example schema > docs/rehome.schema.json`.

use std::io::Write;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(rehome_spec::schema_json().as_bytes())
}
