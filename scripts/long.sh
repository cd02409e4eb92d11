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
[ -e "$results" ] || printf '# Long proofs, %s\n\nMade by `./test long` on %s cores.\n' \
  "$(date +%F)" "$(nproc)" > "$results"

say() { printf '\n== %s\n' "$*" >&2; }

# stage NAME COMMAND…: runs it once; the end of its output is the result.
stage() {
  local name=$1 shown=12
  shift
  [ "$1" = demos ] && shown=1
  [ "$1" = cuts ] && shown=20
  if [ -e "$marks/$name" ]; then
    say "$name: done before"
    return
  fi
  say "$name"
  local begun=$SECONDS
  if "$@" > "$marks/$name.log" 2>&1; then
    printf '\n## %s\n\n`%s`, commit %s: %s s\n\n```text\n%s\n```\n' "$name" "$*" "$(git rev-parse --short HEAD)" \
      "$((SECONDS - begun))" "$(tail -n "$shown" "$marks/$name.log")" >> "$results"
    mv "$marks/$name.log" "$marks/$name"
  else
    printf '\n## %s\n\n`%s`: FAILED after %s s\n\n%s\n' "$name" "$*" "$((SECONDS - begun))" "$(tail -n 5 "$marks/$name.log")" >> "$results"
    say "$name failed: $marks/$name.log"
    exit 1
  fi
}

# demos COUNT AT_ONCE ARGUMENTS…: that many demos, each must end well; prints the sums and the spread of the pause.
demos() {
  local count=$1 at_once=$2
  shift 2
  scripts/repeat_demo.py --binary "$rehome" --count "$count" --at-once "$at_once" -- "$@"
}

# cuts: the network to a database server is cut in every state of a switch, on each side; one line for each.
cuts() {
  REHOME_REQUIRE_TOOLS=1 cargo nextest run --profile long -p rehome-cli --run-ignored all --success-output final -E 'test(/^cut::/)' 2>&1 |
    tee "$marks/cuts.log" | grep -E 'clients went on|Summary|FAIL'
}

cargo build --release --quiet
# One at a time: what a switch costs.
stage pause-rtt-0 demos 10 1 --objects 500 --duration 8 --reverse
stage pause-rtt-20 demos 10 1 --objects 500 --duration 8 --rtt 20 --reverse
stage pause-rtt-80 demos 10 1 --objects 500 --duration 8 --rtt 80 --reverse
stage pause-postgres-0 demos 10 1 --postgres --objects 200 --duration 8 --reverse
stage pause-postgres-20 demos 10 1 --postgres --objects 200 --duration 8 --rtt 20 --reverse
stage pause-postgres-80 demos 10 1 --postgres --objects 200 --duration 8 --rtt 80 --reverse
# Clients of a database under pgbench: twenty times there and back each way, and a hundred switches under the same connections.
stage clients-20 env REHOME_LONG=20 cargo nextest run --profile long -p rehome-cli --no-capture -E 'test(/^(bouncer|front_door)::there_and_back_(under|with)/)'
stage clients-100-switches env REHOME_ROUNDS=50 cargo nextest run --profile long -p rehome-cli --no-capture -E 'test(/^(bouncer|front_door)::there_and_back_again/)'
stage bench-small env RCLONE=.tools/bin/rclone crates/objects/benches/copy-vs-rclone.sh 20000 4096 3
stage bench-large env RCLONE=.tools/bin/rclone crates/objects/benches/copy-vs-rclone.sh 8 268435456 3
stage bench-database-copy crates/databases/benches/copy.py "$rehome"
# Several at a time on few cores: nothing may be lost on a busy machine either.
stage demo-forward demos 50 3 --objects 500 --duration 8
stage demo-reverse demos 50 3 --objects 500 --duration 8 --reverse
stage demo-rtt-20 demos 20 3 --objects 500 --duration 8 --rtt 20 --reverse
stage demo-rtt-80 demos 20 3 --objects 500 --duration 8 --rtt 80 --reverse
stage crash-matrix env REHOME_LONG=20 cargo nextest run --profile long -p rehome-cli --run-ignored all -E 'test(/^crash::/)'
stage cut-matrix cuts
stage sabotage-matrix env REHOME_LONG=10 cargo nextest run --profile long -p rehome-cli -E 'test(/^sabotage::/)'
stage gateway-220000-requests env REHOME_LONG=1 cargo nextest run -p rehome-gateway -E 'test(weights_move_under)'
stage postgres-versions scripts/postgres_versions.sh
stage postgres-version-matrix env REHOME_LONG=1 cargo nextest run --profile long -p rehome-databases -E 'test(/^versions::/)'
stage five-gibibytes scripts/five_gibibytes.sh "$rehome"
stage fuzz-migration-file scripts/fuzz.sh migration_file 600
stage fuzz-control-protocol scripts/fuzz.sh control_protocol 300
say "all stages are done; commit $results"
