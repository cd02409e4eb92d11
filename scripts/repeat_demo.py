#!/usr/bin/env python3
"""Runs `rehome demo --json` many times; every one must end well. Prints what was measured as one line of Markdown."""

import argparse
import json
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--binary", required=True)
parser.add_argument("--count", type=int, required=True)
parser.add_argument("arguments", nargs="*")
options = parser.parse_args()

totals = {key: 0 for key in ("requests", "requests_failed", "writes_acknowledged", "writes_lost", "writes_doubled", "writes_unknown")}
pauses, predicted = [], []
for number in range(1, options.count + 1):
    ended = subprocess.run([options.binary, "demo", "--json", *options.arguments], capture_output=True, text=True, timeout=600)
    lines = ended.stdout.strip().splitlines()
    summary = json.loads(lines[-1]) if lines else {}
    if ended.returncode not in (0, 21) or summary.get("type") != "summary":
        print(ended.stderr[-4000:], file=sys.stderr)
        sys.exit(f"demo {number} of {options.count} ended with {ended.returncode}: {lines[-1:]}")
    for key in totals:
        totals[key] += summary[key]
    pauses.append(summary["write_pause_ms"])
    predicted.append(summary["predicted_pause_ms"])
    print(f"{number}/{options.count}: pause {pauses[-1]} ms, {summary['requests']} requests", flush=True)

quantiles = sorted(pauses)
print(
    f"{options.count} demos: {totals}; write pause median {statistics.median(pauses):.0f} ms, least {quantiles[0]:.0f}, "
    f"most {quantiles[-1]:.0f}; predicted median {statistics.median(predicted):.0f} ms"
)
