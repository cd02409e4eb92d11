#!/usr/bin/env python3
"""Copies one PostgreSQL database with rehome, with `pg_dump | psql` and with `pgcopydb clone`, turn by turn, and prints the rates.

usage: crates/databases/benches/copy.py target/release/rehome [--scale 20] [--rounds 3] [--random]
needs: PostgreSQL's server programs, pgbench and pgcopydb from Debian; as root it runs the servers as `postgres`.

One source that lives through all rounds, and a target that is made anew for each copy; both as `initdb` makes them (fsync on), but for
what logical replication wants. Whoever copies starts from nothing and is done when its command ends: rehome's is
`rehome apply --until following`, so plan, schema, rows, indexes, ANALYZE and the first beat are in its time. Every copy is
compared with the source before the next one begins. `--random`: a table as large as pgbench's largest besides, its keys random UUIDs.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERSIONS = Path("/usr/lib/postgresql")
SETTINGS = ["wal_level=logical", "fsync=on", "max_slot_wal_keep_size=4GB"]
TABLES = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers"]
RANDOM = """CREATE TABLE random AS SELECT gen_random_uuid() AS id, abalance, filler FROM pgbench_accounts;
    ALTER TABLE random ADD PRIMARY KEY (id); VACUUM ANALYZE random"""


def programs():
    found = [folder / "bin" for folder in sorted(VERSIONS.iterdir(), key=lambda folder: int(folder.name))]
    return found[-1]


def as_postgres(*command):
    """A server does not run as root."""
    words = [str(word) for word in command]
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words] if os.geteuid() == 0 else words


class Server:
    """A server of its own, on loopback, open to everybody there."""

    def __init__(self, work, name):
        self.folder = Path(work, name)
        self.folder.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        data = self.folder / "data"
        made = as_postgres(programs() / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd="/")
        options = [word for setting in SETTINGS for word in ("-c", setting)]
        server = as_postgres(programs() / "postgres", "-D", data, "-k", self.folder, "-p", self.port, *options)
        log = open(self.folder / "log", "wb")
        self.process = subprocess.Popen(server, stdout=log, stderr=log, cwd="/")
        for _ in range(500):
            ready = subprocess.run([programs() / "pg_isready", "-q", "-d", self.url("postgres")])
            if ready.returncode == 0:
                break
            time.sleep(0.05)
        else:
            sys.exit(f"the server {name} does not start: {log.name}")
        self.sql("postgres", "CREATE ROLE rehome SUPERUSER LOGIN")

    def url(self, database, user="postgres"):
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def sql(self, database, text):
        command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", text]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def end(self):
        self.process.send_signal(3)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def contents(server):
    sums = [f"(SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)) FROM {table} t)" for table in TABLES]
    return server.sql("shop", f"SELECT concat_ws(', ', {', '.join(sums)})")


def with_rehome(binary, work, source, target):
    """The command, and what cleans up after it."""
    migration = Path(work, "rehome.toml")
    migration.write_text(
        f"""[migration]
name = "bench"
source = {{ cloud = "here" }}
target = {{ cloud = "there" }}

[[databases]]
name = "shop"
source = {{ url = "{source.url('shop', 'rehome')}" }}
target = {{ url = "{target.url('shop', 'rehome')}" }}
"""
    )
    common = ["--file", migration, "--state", Path(work, "state"), "--yes"]
    shutil.rmtree(Path(work, "state"), ignore_errors=True)
    copy = [binary, "apply", "--until", "following", *common]
    # Following goes on behind the command: it is ended, and what it left on the source with it.
    return [copy], [binary, "cancel", *common]


def with_dump(source, target):
    target.sql("postgres", "CREATE DATABASE shop")
    shell = 'set -o pipefail; pg_dump -d "$1" | psql -X -q -v ON_ERROR_STOP=1 -d "$2" >/dev/null'
    return [["bash", "-c", shell, "bash", source.url("shop"), target.url("shop")]], None


def with_pgcopydb(work, source, target):
    target.sql("postgres", "CREATE DATABASE shop")
    ends = ["--source", source.url("shop"), "--target", target.url("shop"), "--dir", Path(work, "pgcopydb")]
    return [["pgcopydb", "clone", *ends]], None


def measured(commands, work):
    log = Path(work, "log")
    begun = time.monotonic()
    for command in commands:
        with open(log, "wb") as output:
            if subprocess.run([str(word) for word in command], stdout=output, stderr=output).returncode != 0:
                sys.exit(f"{command[0]} failed:\n{log.read_text()[-3000:]}")
    return time.monotonic() - begun


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("rehome", type=Path)
    parser.add_argument("--scale", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--random", action="store_true")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{programs()}:{os.environ['PATH']}"
    binary = arguments.rehome.resolve()
    seconds = {"rehome": [], "pg_dump | psql": [], "pgcopydb": []}
    with tempfile.TemporaryDirectory(prefix="rehome-bench") as work:
        os.chmod(work, 0o755)
        source = Server(work, "source")
        try:
            source.sql("postgres", "CREATE DATABASE shop")
            made = ["pgbench", "-i", "-q", "-s", str(arguments.scale), source.url("shop")]
            subprocess.run(made, check=True, capture_output=True)
            if arguments.random:
                for statement in RANDOM.split(";"):
                    source.sql("shop", statement)
                TABLES.append("random")
            source.sql("shop", "CHECKPOINT")
            wanted = contents(source)
            rows = sum(int(source.sql("shop", f"SELECT count(*) FROM {table}")) for table in TABLES)
            print(f"{rows} rows; load {os.getloadavg()[0]:.1f}", flush=True)
            for number in range(arguments.rounds):
                for name in seconds:
                    target = Server(work, "target")
                    try:
                        copy, clean = {
                            "rehome": lambda: with_rehome(binary, work, source, target),
                            "pg_dump | psql": lambda: with_dump(source, target),
                            "pgcopydb": lambda: with_pgcopydb(work, source, target),
                        }[name]()
                        took = measured(copy, work)
                        if contents(target) != wanted:
                            sys.exit(f"{name}: the copy is not the same")
                        if clean:
                            measured([clean], work)
                    finally:
                        target.end()
                        shutil.rmtree(Path(work, "pgcopydb"), ignore_errors=True)
                    seconds[name].append(took)
                    load = os.getloadavg()[0]
                    print(f"| {number + 1} | {name} | {took:.1f} s | {rows / took:,.0f} rows/s | load {load:.1f} |", flush=True)
        finally:
            source.end()
    ours = seconds["rehome"]
    for name, theirs in seconds.items():
        ratio = statistics.median(one / other for one, other in zip(theirs, ours))
        print(f"{name}: median {statistics.median(theirs):.1f} s, {rows / statistics.median(theirs):,.0f} rows/s; {ratio:.2f} x rehome's time")


if __name__ == "__main__":
    main()
