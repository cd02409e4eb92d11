#!/usr/bin/env python3
"""Measures what idle keep-alive connections cost `rehome gateway` beside nginx and HAProxy, and prints medians as Markdown.

    crates/gateway/benches/idle.py target/dist/rehome [--connections 10000] [--rounds 3] [--tls]

Each connection sends one request, reads the whole answer, and stays open. Resident memory (of the proxy and its children, by the
kernel's account) is read before the first and after the last; every round has a fresh process. The clients come from several
addresses 127.0.0.x, so that ports last. The limit of open files is raised to the hard one; what is too low says so. Needs nginx
and haproxy, with --tls also openssl (Debian's packages). Swap and the page cache do not matter: it is RSS.
"""

import argparse
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
from processes import family, free_port, start, started, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("binary", type=Path)
parser.add_argument("--connections", type=int, default=10_000)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--tls", action="store_true")
parser.add_argument("--only", default="", help="names of proxies, comma-separated")
options = parser.parse_args()
binary = options.binary.resolve()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
if hard < options.connections + 1_000:
    raise SystemExit(f"{options.connections} connections need a hard limit of open files of {options.connections + 1_000}; it is {hard}")


def end(process):
    process.terminate()
    process.wait(timeout=60)
    started.remove(process)


def resident(pid):
    """KiB."""
    total = 0
    for member in family(pid):
        for line in Path(f"/proc/{member}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total


def nginx(folder, port, body):
    folder.mkdir()
    (folder / "nginx.conf").write_text(f"""
worker_processes {options.workers}; pid {folder}/pid; error_log {folder}/error.log; daemon off; worker_rlimit_nofile {hard};
events {{ worker_connections {options.connections + 2_000}; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  {body.replace("PORT", str(port))}
}}
""")
    return start("nginx", "-p", folder, "-c", folder / "nginx.conf")


def start_nginx(work, upstream, port, certificate, key):
    secure = f"ssl_certificate {certificate}; ssl_certificate_key {key};" if options.tls else ""
    return nginx(work, port, f"""
  upstream u {{ server 127.0.0.1:{upstream}; keepalive 128; }}
  server {{ listen 127.0.0.1:PORT {'ssl' if options.tls else ''}; {secure}
    location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection ""; }} }}""")


def start_haproxy(work, upstream, port, certificate, key):
    work.mkdir()
    pair, config = work / "both.pem", work / "haproxy.cfg"
    pair.write_text(certificate.read_text() + key.read_text())
    # It would reserve two files a connection and not start; idle ones need one.
    config.write_text(f"""
global
  nbthread {options.workers}
  maxconn {options.connections + 500}
  no strict-limits
defaults
  mode http
  timeout client 3600s
  timeout server 3600s
  timeout connect 5s
  timeout http-keep-alive 3600s
  http-reuse always
frontend f
  bind 127.0.0.1:{port} {f'ssl crt {pair}' if options.tls else ''}
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
""")
    return start("haproxy", "-db", "-f", config)


def start_rehome(work, upstream, port, certificate, key):
    work.mkdir()
    migration = work / "rehome.toml"
    secure = f'tls = [{{ chain = "{certificate}", key = "file:{key}" }}]' if options.tls else ""
    migration.write_text(f"""
[migration]
name = "idle"
source = {{ cloud = "a" }}
target = {{ cloud = "b" }}
[switch]
hold = {{ connections = {options.connections + 500} }}
[[services]]
name = "api"
listen = "127.0.0.1:{port}"
source = "http://127.0.0.1:{upstream}"
target = "http://127.0.0.1:{free_port()}"
{secure}
""")
    threads = {**os.environ, "TOKIO_WORKER_THREADS": str(options.workers)}
    return start(binary, "--state", work / "state", "--file", migration, "gateway", env=threads)


def connect(number, port, context):
    client = socket.socket()
    client.settimeout(30)
    client.bind((f"127.0.0.{2 + number % 8}", 0))
    client.connect(("127.0.0.1", port))
    return context.wrap_socket(client, server_hostname="localhost") if context else client


def ask(client):
    client.sendall(b"GET /1k HTTP/1.1\r\nHost: localhost\r\nUser-Agent: idle\r\nAccept: */*\r\n\r\n")
    got = b""
    while len(got) < 1024 or len(got.partition(b"\r\n\r\n")[2]) < 1024:
        piece = client.recv(16384)
        if not piece:
            raise SystemExit("a connection ended early")
        got += piece
    if not got.startswith(b"HTTP/1.1 200"):
        raise SystemExit(got[:100])


def measure(begin, work, upstream, certificate, key):
    port = free_port()
    process = begin(work, upstream, port, certificate, key)
    wait_for(port)
    context = None
    if options.tls:
        context = ssl.create_default_context(cafile=certificate)
    for number in range(20):
        with connect(number, port, context) as client:
            ask(client)
    before = resident(process.pid)
    clients = []
    for number in range(options.connections):
        clients.append(connect(number, port, context))
        ask(clients[-1])
    time.sleep(1)
    after = resident(process.pid)
    for client in clients:
        client.settimeout(0)
        try:
            if client.recv(1) == b"":
                raise SystemExit("an idle connection was closed")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
    for client in clients:
        client.close()
    end(process)
    return before, after, (after - before) * 1024 / options.connections


def main(work):
    work.chmod(0o755)
    static = work / "static"
    static.mkdir(mode=0o755)
    (static / "1k").write_bytes(os.urandom(1024))
    (static / "1k").chmod(0o644)
    certificate, key = work / "cert.pem", work / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )
    key.chmod(0o600)
    upstream = free_port()
    nginx(work / "upstream", upstream, f"server {{ listen 127.0.0.1:PORT; location / {{ root {static}; }} }}")
    wait_for(upstream)
    proxies = {"nginx": start_nginx, "HAProxy": start_haproxy, "rehome": start_rehome}
    results = {name: [] for name in proxies if not options.only or name in options.only.split(",")}
    for number in range(options.rounds):
        for name in results:
            results[name].append(measure(proxies[name], work / f"{name}-{number}", upstream, certificate, key))
    print(f"\n{options.connections} idle connections{' with TLS' if options.tls else ''}, {options.workers} worker, {options.rounds} rounds\n")
    print("| proxy | RSS before, MiB | RSS after, MiB | bytes per connection: median (least to most) |\n|---|---|---|---|")
    for name, rounds in results.items():
        before, after, each = zip(*rounds)
        print(f"| {name} | {statistics.median(before) / 1024:.1f} | {statistics.median(after) / 1024:.1f} "
              f"| {statistics.median(each):,.0f} ({min(each):,.0f} to {max(each):,.0f}) |", flush=True)


with tempfile.TemporaryDirectory(prefix="rehome-idle-") as folder:
    try:
        main(Path(folder))
    finally:
        for process in list(started):
            end(process)
