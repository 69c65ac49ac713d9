# Sourced by check and tools/check-newest: all checks, in the environment $VENV.

step() {
    printf '\n== %s\n' "$*"
    "$VENV/bin/$@"
}

# Arguments go to pytest.
all_steps() {
    step ruff format --check --quiet .
    step ruff check --quiet .
    step mypy
    step lint-imports --no-cache
    # One thread a worker: torch and BLAS would otherwise start two each.
    OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
    step pytest --numprocesses 2 --quiet "$@"
}
