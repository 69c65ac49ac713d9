# Sourced by check and tools/check-newest: all checks, in the environment $VENV.

# Each worker, and each program that a test starts, would compile all modules anew.
unset PYTHONDONTWRITEBYTECODE

step() {
    printf '\n== %s\n' "$*"
    "$VENV/bin/$@" || failed "$1" $?
}

# A caller that goes on after a failure replaces this.
failed() {
    exit "$2"
}

# mypy takes a minute on one core: it begins at once, next to all other steps.
begin_types() {
    "$VENV/bin/mypy" > "$VENV/mypy.txt" 2>&1 &
    types=$!
    trap 'kill "$types" 2> /dev/null || true' EXIT
}

# From here on, an exit shows what mypy found: the tests take longer, whether they pass or not.
show_types_at_exit() {
    trap end_types EXIT
}

end_types() {
    trap - EXIT
    code=0
    wait "$types" || code=$?
    printf '\n== mypy\n'
    cat "$VENV/mypy.txt"
    [ "$code" = 0 ] || failed mypy "$code"
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
    show_types_at_exit
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    step pytest --numprocesses 2 --dist worksteal --quiet tests/vocabulary tests/gate tests/files \
        tests/accountants/test_answers.py tests/accountants/test_registry.py \
        tests/runs/test_file_io.py tests/runs/test_ledger_tail.py tests/cli/test_version_0_1.py \
        tests/test_errors.py tests/test_prose_tools.py "$@"
    end_types
}

# Arguments go to pytest.
all_steps() {
    begin_types
    static_steps
    step pydoclint --quiet dpaudit
    NO_MKDOCS_2_WARNING=1 # hides a banner of the theme
    export NO_MKDOCS_2_WARNING
    step mkdocs build --strict --quiet
    show_types_at_exit
    # worksteal: each worker has one half of the files in order, so that most fixtures of a module
    # are set up once. One thread a worker: torch and BLAS would otherwise start two each.
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    step pytest --numprocesses 2 --dist worksteal --quiet "$@"
    end_types
}
