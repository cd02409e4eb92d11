#!/usr/bin/env bash
# The long proofs: hundreds of repetitions, 5 GiB objects, fuzzing, benches. Every stage that ended well leaves a mark, so a run
# that was ended goes on with the next one; `--again` forgets the marks. Results go to docs/results/DATE.md, dated, to be committed.
set -euo pipefail
cd "$(dirname "$0")/.."

marks=target/long
results=docs/results/$(date +%F).md
rehome=$PWD/target/release/rehome
[ "${1:-}" = --again ] && rm -rf "$marks"
mkdir -p "$marks" "$(dirname "$results")"
[ -e "$results" ] || printf '# Long proofs, %s\n\nMade by `./test long` on %s cores, %s.\n' \
  "$(date +%F)" "$(nproc)" "$(uname -sr)" > "$results"

say() { printf '\n== %s\n' "$*" >&2; }

# stage NAME COMMAND…: runs it once; its last line of output is the result.
stage() {
  local name=$1
  shift
  if [ -e "$marks/$name" ]; then
    say "$name: done before"
    return
  fi
  say "$name"
  local begun=$SECONDS
  if "$@" > "$marks/$name.log" 2>&1; then
    printf '\n## %s\n\n`%s`: %s s\n\n%s\n' "$name" "$*" "$((SECONDS - begun))" "$(tail -n 12 "$marks/$name.log")" >> "$results"
    mv "$marks/$name.log" "$marks/$name"
  else
    printf '\n## %s\n\n`%s`: FAILED after %s s\n\n%s\n' "$name" "$*" "$((SECONDS - begun))" "$(tail -n 5 "$marks/$name.log")" >> "$results"
    say "$name failed: $marks/$name.log"
    exit 1
  fi
}

# demos COUNT ARGUMENTS…: that many demos, each must end well; prints the sums and the spread of the pause.
demos() {
  local count=$1
  shift
  scripts/repeat_demo.py --binary "$rehome" --count "$count" -- "$@"
}

cargo build --release --quiet
stage demo-forward demos 50 --objects 500 --duration 12
stage demo-reverse demos 50 --objects 500 --duration 12 --reverse
stage demo-rtt-20 demos 20 --objects 500 --duration 15 --rtt 20 --reverse
stage demo-rtt-80 demos 20 --objects 500 --duration 20 --rtt 80 --reverse
stage crash-matrix env REHOME_LONG=20 cargo nextest run -p rehome-cli -E 'test(/^crash::/)'
stage sabotage-matrix env REHOME_LONG=10 cargo nextest run -p rehome-cli -E 'test(/^sabotage::/)'
stage five-gibibytes scripts/five_gibibytes.sh "$rehome"
stage fuzz-migration-file scripts/fuzz.sh migration_file 600
stage bench-small env RCLONE=.tools/bin/rclone crates/objects/benches/copy-vs-rclone.sh 20000 4096 5
stage bench-large env RCLONE=.tools/bin/rclone crates/objects/benches/copy-vs-rclone.sh 8 268435456 3
say "all stages are done; commit $results"
