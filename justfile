# `just` lists the recipes. Everything CI runs is in ./test; these are the short ways to parts of it.

_default:
    @just --list

# Does it compile? One crate: just check rehome-spec
check crate='':
    cargo check {{ if crate == '' { '--workspace' } else { '-p ' + crate } }} --all-targets

# All tests, or those of one crate: just test rehome-spec
test crate='':
    {{ if crate == '' { './test' } else { 'cargo nextest run -p ' + crate } }}

# Formatting and lints, as CI sees them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Licences, advisories and banned crates (cargo install cargo-deny)
deny:
    cargo deny check

# Everything that is generated and committed
generate:
    cargo run -q -- schema > docs/rehome.schema.json.new
    mv docs/rehome.schema.json.new docs/rehome.schema.json
    cargo run -q -- reference > docs/cli.md.new
    mv docs/cli.md.new docs/cli.md

# One fuzz target for a number of seconds
fuzz target='migration_file' seconds='60':
    scripts/fuzz.sh {{ target }} {{ seconds }}

# The main job, on two clouds on loopback
demo *arguments:
    cargo run --release -- demo {{ arguments }}
