#!/bin/sh
# Copies one local S3 server to another with rehome and with rclone, turn by turn, and prints one line of JSON per run.
# usage: benches/copy-vs-rclone.sh [COUNT SIZE [ROUNDS]]      e.g. 20000 4096 3, or 8 268435456 3
# needs: rclone in PATH (or RCLONE), cargo; uses loopback ports that the kernel chooses.
set -eu
cd "$(dirname "$0")/../../.."
count=${1:-2000} size=${2:-4096} rounds=${3:-3}
rclone=${RCLONE:-rclone}
export BENCH_ACCESS_KEY=benchbenchbench BENCH_SECRET_KEY=benchbenchbenchsecret
work=$(mktemp -d)
started=""
finish() { for pid in $started; do kill "$pid" 2>/dev/null || true; done; rm -rf "$work"; }
trap finish EXIT INT TERM

cargo build --release -q -p rehome-objects --example mover_bench
bench=${CARGO_TARGET_DIR:-target}/release/examples/mover_bench

# Starts a server on a folder; its address goes into the file $2.
serve() {
    mkdir -p "$work/$1" && : >"$work/$1.log"
    "$rclone" serve s3 --addr 127.0.0.1:0 --auth-key "$BENCH_ACCESS_KEY,$BENCH_SECRET_KEY" "$work/$1" 2>"$work/$1.log" &
    started="$started $!"
    tries=0
    until address=$(sed -n 's/.*\(http:\/\/127\.0\.0\.1:[0-9][0-9]*\).*/\1/p' "$work/$1.log" | head -n 1) && [ -n "$address" ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 200 ] || { echo "the server on $1 does not start" >&2; cat "$work/$1.log" >&2; exit 1; }
        sleep 0.05
    done
    echo "${address%/}" >"$work/$1.address"
}
serve a
serve b
a=$(cat "$work/a.address") b=$(cat "$work/b.address")
"$bench" seed s3://from "$a" "$count" "$size"

cat >"$work/rclone.conf" <<CONF
[a]
type = s3
provider = Other
endpoint = $a
access_key_id = $BENCH_ACCESS_KEY
secret_access_key = $BENCH_SECRET_KEY
[b]
type = s3
provider = Other
endpoint = $b
access_key_id = $BENCH_ACCESS_KEY
secret_access_key = $BENCH_SECRET_KEY
CONF

round=1
while [ "$round" -le "$rounds" ]; do
    mkdir -p "$work/b/ours$round" "$work/b/theirs$round"
    "$bench" copy s3://from "$a" "s3://ours$round" "$b"
    "$bench" run "$rclone" --config "$work/rclone.conf" copy --transfers 32 --checkers 32 -q a:from "b:theirs$round"
    "$rclone" --config "$work/rclone.conf" check -q a:from "b:ours$round"
    rm -rf "$work/b/ours$round" "$work/b/theirs$round"
    round=$((round + 1))
done
