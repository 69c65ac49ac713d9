#!/bin/sh
# The steps of every CI service. All checks run; the exit code is that of the first failure.
set -u
cd "$(dirname "$0")"
mkdir -p reports
failed=0

check() {
    printf '\n== %s\n' "$*"
    "$@" || { code=$?; [ "$failed" -ne 0 ] || failed=$code; }
}

rm -rf runs/ci
check python train.py runs/ci
[ "$failed" -eq 0 ] || exit "$failed" # no run, no checks
check python -m pytest -q --tb=short --dpaudit-run runs/ci --junitxml reports/pytest.xml
check dpaudit gate runs/ci --policy dpaudit.toml --baseline baseline.json
check dpaudit gate runs/ci --policy dpaudit.toml --baseline baseline.json \
    --format junit -o reports/gate.xml
exit "$failed"
