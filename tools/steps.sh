# Sourced by check and tools/check-newest: all checks, in the environment $VENV.

# Each worker, and each program that a test starts, would compile all modules anew.
unset PYTHONDONTWRITEBYTECODE

step() {
    printf '\n== %s\n' "$*"
    "$VENV/bin/$@"
}

# mypy takes most of the time, on one core: it begins at once and fills its cache, next to the others.
begin_types() {
    "$VENV/bin/mypy" > /dev/null 2>&1 &
    types=$!
    trap 'kill "$types" 2> /dev/null || true' EXIT
}

# What it says, from its cache.
end_types() {
    wait "$types" || true
    trap - EXIT
    step mypy
}

static_steps() {
    step ruff format --check --quiet .
    step ruff check --quiet .
    step lint-imports --no-cache
    step python tools/check_docstrings.py
    step python tools/check_prose.py
}

# Static checks, and tests of what a run's claim and verdict are computed by. Arguments go to pytest.
fast_steps() {
    begin_types
    static_steps
    end_types
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    step pytest --numprocesses 2 --dist worksteal --quiet tests/vocabulary tests/gate tests/files \
        tests/accountants/test_answers.py tests/accountants/test_registry.py \
        tests/runs/test_file_io.py tests/runs/test_ledger_tail.py tests/cli/test_version_0_1.py \
        tests/test_errors.py tests/test_prose_tools.py "$@"
}

# Arguments go to pytest.
all_steps() {
    begin_types
    static_steps
    step pydoclint --quiet dpaudit
    NO_MKDOCS_2_WARNING=1 # hides a banner of the theme
    export NO_MKDOCS_2_WARNING
    step mkdocs build --strict --quiet
    end_types
    # worksteal: each worker has one half of the files in order, so that most fixtures of a module
    # are set up once. One thread a worker: torch and BLAS would otherwise start two each.
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    step pytest --numprocesses 2 --dist worksteal --quiet "$@"
}
