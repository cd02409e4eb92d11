#!/usr/bin/env bash
# A sparse object of more than 5 GiB (too large for one put) through our S3 driver into a real S3 server and back, then compared.
set -euo pipefail
rehome=$1
tools=$(cd "$(dirname "$0")/.." && pwd)/.tools/bin
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT
mkdir -p "$work/in" "$work/store/big" "$work/out"
truncate -s $((5 * 1024 * 1024 * 1024 + 12345)) "$work/in/sparse.bin"
printf 'end' | dd of="$work/in/sparse.bin" bs=1 seek=$((5 * 1024 * 1024 * 1024 + 12000)) conv=notrunc status=none
export AWS_ACCESS_KEY_ID=longaccesskey AWS_SECRET_ACCESS_KEY=longsecretkey
"$tools/rclone" serve s3 --addr 127.0.0.1:0 --auth-key "$AWS_ACCESS_KEY_ID,$AWS_SECRET_ACCESS_KEY" "$work/store" > "$work/log" 2>&1 &
server=$!
for _ in $(seq 100); do
  address=$(sed -n 's/.*http:\/\/\(127.0.0.1:[0-9]*\).*/\1/p' "$work/log" | head -n 1)
  [ -n "$address" ] && break
  sleep 0.1
done
export REHOME_STATE=$work/state
"$rehome" copy "$work/in" s3://big --target-endpoint "http://$address"
"$rehome" copy s3://big "$work/out" --source-endpoint "http://$address"
cmp "$work/in/sparse.bin" "$work/out/sparse.bin"
echo "5 GiB + 12,345 bytes copied into a store and back: equal"
