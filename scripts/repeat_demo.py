#!/usr/bin/env python3
"""Runs `rehome demo --json` many times, some at once; every one must end well. Prints what was measured as one line of Markdown."""

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

parser = argparse.ArgumentParser()
parser.add_argument("--binary", required=True)
parser.add_argument("--count", type=int, required=True)
parser.add_argument("--at-once", type=int, default=1)
parser.add_argument("arguments", nargs="*")
options = parser.parse_args()


def demo(number):
    ended = subprocess.run([options.binary, "demo", "--json", *options.arguments], capture_output=True, text=True, timeout=600)
    lines = ended.stdout.strip().splitlines()
    summary = json.loads(lines[-1]) if lines else {}
    if ended.returncode not in (0, 21) or summary.get("type") != "summary":
        raise RuntimeError(f"demo {number} ended with {ended.returncode}: {lines[-1:]}\n{ended.stderr[-4000:]}")
    print(f"{number}/{options.count}: pause {summary['write_pause_ms']} ms, {summary['requests']} requests", flush=True)
    return summary


with ThreadPoolExecutor(options.at_once) as pool:
    jobs = [pool.submit(demo, number) for number in range(1, options.count + 1)]
    try:
        summaries = [job.result() for job in jobs]
    except Exception as error:
        pool.shutdown(cancel_futures=True)
        sys.exit(str(error))

sums = ("requests", "requests_failed", "writes_acknowledged", "writes_lost", "writes_doubled", "writes_unknown")
totals = ", ".join(f"{key.replace('_', ' ')} {sum(summary[key] for summary in summaries):,}" for key in sums)
pauses = sorted(summary["write_pause_ms"] for summary in summaries)
predicted = statistics.median(summary["predicted_pause_ms"] for summary in summaries)
within = sum(summary["pause_within_bound"] for summary in summaries)
trips = sorted({summary["round_trips"] for summary in summaries})
print(
    f"{len(summaries)} demos, {options.at_once} at once: {totals}; write pause median {statistics.median(pauses):.0f} ms, "
    f"least {pauses[0]}, most {pauses[-1]}; predicted median {predicted:.0f} ms; n = {', '.join(map(str, trips))}; "
    f"{within} of {len(summaries)} within in-flight + n x RTT + 150 ms"
)
