#!/bin/sh
# What CI runs, here and there: every check is run and printed, and the first failure's exit
# code is what is left.
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
[ "$failed" -eq 0 ] || exit "$failed" # there is no run to judge
check python -m pytest -q --tb=short --dpaudit-run runs/ci --junitxml reports/pytest.xml
check dpaudit gate runs/ci --policy dpaudit.toml --baseline baseline.json
check dpaudit gate runs/ci --policy dpaudit.toml --baseline baseline.json \
    --format junit -o reports/gate.xml
exit "$failed"
