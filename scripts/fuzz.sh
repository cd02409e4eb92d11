#!/usr/bin/env bash
# Runs one fuzz target for a number of seconds; cargo-fuzz is installed when it is missing. The sanitizers are unstable
# options: a nightly toolchain takes them, and where there is none the stable one is told to.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 seconds=$2
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked
cargo=(cargo)
if rustup toolchain list 2>/dev/null | grep -q '^nightly'; then
  cargo+=(+nightly)
else
  export RUSTC_BOOTSTRAP=1
fi
"${cargo[@]}" fuzz run "$target" -- -max_total_time="$seconds" -print_final_stats=1 2>&1 | tail -n 20
