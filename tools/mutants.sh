#!/usr/bin/env bash
# Change core modules a little, one place at a time, and see whether the tests of each notice it.
# Called by make mutants: $1 is the virtual environment of the tests, $2 that of the tool; the rest
# are parts of the names of the modules that are meant, none for all. The changes are made in a copy.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "$1/bin/python")
tool=$(realpath "$2/bin")
shift 2

# A module, and the tests that have to notice a change in it.
modules="
src/federated/journal.py         tests/unit/federated/test_journal.py
src/federated/algorithms.py       tests/unit/federated/test_adaptive.py tests/unit/federated/test_algorithms.py
src/federated/fingerprint.py      tests/unit/federated/test_rounds_parts.py tests/unit/federated/test_fingerprint.py
src/federated/rounds.py           tests/unit/federated/test_rounds_parts.py
src/federated/server_requests.py  tests/unit/federated/test_server_requests.py tests/unit/federated/test_silo.py
src/job/job_record.py             tests/unit/job/test_job_record.py
src/job/process_identity.py       tests/unit/job/test_process_identity.py
src/launch/job_end.py             tests/unit/launch/test_job_end.py
src/lr_schedule.py                tests/unit/test_lr_schedule.py
"

# Whether the module $1 is meant by the words behind it.
wanted() {
    local module=$1 word
    shift
    for word in "$@"; do
        [[ $module == *"$word"* ]] && return 0
    done
    [ $# -eq 0 ]
}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$copy"
cd "$copy"
# Two changes of a file within a second would share their compiled file.
export PYTHONDONTWRITEBYTECODE=1

while read -r -u 3 module tests; do
    [ -n "$module" ] && wanted "$module" "$@" || continue
    # Annotations (str | None) are not evaluated.
    cat >mutants.toml <<TOML
[cosmic-ray]
module-path = "$module"
timeout = 60.0
excluded-modules = []
test-command = "$python -m pytest -q -x -p no:cacheprovider $tests"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*"]
TOML
    rm -f mutants.sqlite
    "$python" -m pytest -q -p no:cacheprovider $tests >tests.log || { tail -n 20 tests.log; exit 1; }
    "$tool/cosmic-ray" init mutants.toml mutants.sqlite >/dev/null
    "$tool/cr-filter-operators" mutants.sqlite mutants.toml
    "$tool/cosmic-ray" exec mutants.toml mutants.sqlite
    "$tool/cr-report" --surviving-only --show-diff mutants.sqlite >report.txt
    echo "== $module: $(tail -n 3 report.txt | paste -sd ' ')"
    grep -E '^[-+@]' report.txt | grep -vE '^(---|\+\+\+)' || true
done 3<<<"$modules"
