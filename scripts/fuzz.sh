#!/usr/bin/env bash
# Runs one fuzz target for a number of seconds. Needs a nightly toolchain; cargo-fuzz is installed when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 seconds=$2
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -print_final_stats=1 2>&1 | tail -n 20
