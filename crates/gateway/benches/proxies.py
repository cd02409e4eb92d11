#!/usr/bin/env python3
"""Measures `rehome gateway` beside nginx and HAProxy, turn by turn in every round, and prints medians and spread as Markdown.

    crates/gateway/benches/proxies.py target/dist/rehome [--rounds 10] [--seconds 5] [--tls] [--headers] [--workers 1]

Needs nginx, haproxy, wrk and openssl (Debian's packages). Everything listens on loopback, on ports the kernel chose. Same
number of threads, keep-alive on both sides and no access log for all three; the upstream is nginx with a file of 1 and of 100 KiB.
CPU is what the proxy's own processes used, by the kernel's account, over the requests that wrk counted.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
from processes import family, free_port, start, started, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("binary", type=Path)
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--seconds", type=int, default=5)
parser.add_argument("--connections", type=int, default=64)
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--tls", action="store_true")
parser.add_argument("--headers", action="store_true", help="the others add the headers that rehome always adds")
parser.add_argument("--only", default="", help="names of proxies, comma-separated")
options = parser.parse_args()
binary = options.binary.resolve()
# Where a request came from and what it is called, for the upstream and in the answer: what rehome says of every request.
NGINX_SAYS = """
      proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Request-ID $request_id; proxy_set_header Via "1.1 nginx";
      add_header X-Request-ID $request_id; add_header Via "1.1 nginx";"""
HAPROXY_SAYS = """
  http-request set-var(txn.id) uuid()
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(Host)]
  http-request set-header X-Request-ID %[var(txn.id)]
  http-request set-header Via "1.1 haproxy"
  http-response set-header X-Request-ID %[var(txn.id)]
  http-response set-header Via "1.1 haproxy"
"""
SIZES = {"1k": 1 << 10, "100k": 100 << 10}


def cpu_seconds(pid):
    ticks = 0
    for member in family(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def nginx(folder, port, body, workers=1):
    folder.mkdir()
    (folder / "nginx.conf").write_text(f"""
worker_processes {workers}; pid {folder}/pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  {body.replace("PORT", str(port))}
}}
""")
    return start("nginx", "-p", folder, "-c", folder / "nginx.conf")


def proxies(work, upstream, certificate, key):
    """Name, port and process of each."""
    tls = options.tls
    found = []

    port = free_port()
    secure = f"ssl_certificate {certificate}; ssl_certificate_key {key};" if tls else ""
    found.append(("nginx", port, nginx(work / "nginx", port, f"""
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; keepalive_timeout 3600s; }}
  server {{ listen 127.0.0.1:PORT {'ssl' if tls else ''} reuseport; {secure}
    location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; {NGINX_SAYS if options.headers else ""} }} }}""", options.workers)))

    port = free_port()
    pair = work / "both.pem"
    pair.write_text(certificate.read_text() + key.read_text())
    config = work / "haproxy.cfg"
    config.write_text(f"""
global
  nbthread {options.workers}
  maxconn 4000
defaults
  mode http
  timeout client 3600s
  timeout server 3600s
  timeout connect 5s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} {f'ssl crt {pair}' if tls else ''}
  default_backend b
{HAPROXY_SAYS if options.headers else ""}
backend b
  server s 127.0.0.1:{upstream}
""")
    found.append(("haproxy", port, start("haproxy", "-db", "-f", config)))

    port = free_port()
    migration = work / "rehome.toml"
    secure = f'tls = [{{ chain = "{certificate}", key = "file:{key}" }}]' if tls else ""
    migration.write_text(f"""
[migration]
name = "bench"
source = {{ cloud = "a" }}
target = {{ cloud = "b" }}
[switch]
hold = {{ connections = 4000 }}
[[services]]
name = "api"
listen = "127.0.0.1:{port}"
source = "http://127.0.0.1:{upstream}"
target = "http://127.0.0.1:{free_port()}"
{secure}
""")
    threads = {**os.environ, "REHOME_WORKERS": str(options.workers), "TOKIO_WORKER_THREADS": str(options.workers)}
    process = start(binary, "--state", work / "state", "--file", migration, "gateway", env=threads)
    found.append(("rehome", port, process))
    return [proxy for proxy in found if not options.only or proxy[0] in options.only.split(",")]


def seconds(text):
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


def measure(port, process, path):
    scheme = "https" if options.tls else "http"
    before = cpu_seconds(process.pid)
    ran = subprocess.run(
        ["wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "--latency", f"{scheme}://127.0.0.1:{port}/{path}"],
        capture_output=True, text=True, check=True,
    ).stdout
    used = cpu_seconds(process.pid) - before
    bad = re.search(r"Socket errors.*|Non-2xx.*", ran)
    if bad:
        raise SystemExit(f"{path} on {port}: {bad.group(0)}")
    requests = int(re.search(r"(\d+) requests in", ran).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", ran).group(1))
    p99 = seconds(re.search(r"(?m)^\s+99%\s+(\S+)", ran).group(1))
    return rate, p99 * 1e3, used / requests * 1e6


def row(name, values):
    def cell(index, digits):
        column = [value[index] for value in values]
        return f"{statistics.median(column):,.{digits}f} ({min(column):,.{digits}f} to {max(column):,.{digits}f})"

    return f"| {name} | {cell(0, 0)} | {cell(1, 1)} | {cell(2, 1)} |"


def main(work):
    upstream = free_port()
    static = work / "static"
    static.mkdir(mode=0o755)
    work.chmod(0o755)
    for name, size in SIZES.items():
        (static / name).write_bytes(os.urandom(size))
        (static / name).chmod(0o644)
    certificate, key = work / "cert.pem", work / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    key.chmod(0o600)
    nginx(work / "upstream", upstream, f"open_file_cache max=16; server {{ listen 127.0.0.1:PORT; location / {{ root {static}; }} }}")
    wait_for(upstream)
    all_proxies = proxies(work, upstream, certificate, key)
    for _, port, _ in all_proxies:
        wait_for(port)
    for path in SIZES:
        results = {name: [] for name, _, _ in all_proxies}
        for number in range(options.rounds):
            # Each begins a round as often as the others.
            turn = number % len(all_proxies)
            for name, port, process in all_proxies[turn:] + all_proxies[:turn]:
                results[name].append(measure(port, process, path))
        print(f"\n{path}, c{options.connections}, {options.workers} worker{', TLS' if options.tls else ''}{', same headers' if options.headers else ''}, {options.rounds} rounds of {options.seconds} s\n")
        print("| proxy | requests/s: median (least to most) | p99 ms | proxy CPU µs per request |\n|---|---|---|---|")
        for name, values in results.items():
            print(row(name, values))
        others = [name for name in results if name != "rehome"]
        if others and "rehome" in results:
            def ratios(index, best):
                return statistics.median(
                    ours[index] / best(results[name][number][index] for name in others)
                    for number, ours in enumerate(results["rehome"])
                )

            print(f"\nrehome beside the better of the others, round by round (median): {ratios(0, max):.2f} x requests/s, "
                  f"{ratios(1, min):.2f} x p99, {ratios(2, min):.2f} x CPU", flush=True)


with tempfile.TemporaryDirectory(prefix="rehome-proxies-") as folder:
    try:
        main(Path(folder))
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(timeout=10)
