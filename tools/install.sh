# Functions that make virtual environments; sourced by scripts at the repository root.
#
# VENV           the environment to install into; the script sets it
# PYTHON         the interpreter to use, 3.11 or newer; the first one found otherwise
# DPAUDIT_TORCH  what to install as torch, from pip's own index; a CPU build otherwise

TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

find_python() {
    for candidate in "${PYTHON:-}" python3 python python3.14 python3.13 python3.12 python3.11; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed: none was found; name one with PYTHON=..." >&2
    return 1
}

pip_install() {
    "$VENV/bin/python" -m pip install --quiet "$@"
}

# Print the tested version of torch, as a requirement.
tested_torch() {
    grep '^torch==' constraints.txt
}

# Install the requirement $1, for torch, unless DPAUDIT_TORCH names another.
# Plain torch can bring gigabytes of CUDA packages on Linux. Where the pip configuration
# at hand offers a CPU build, or the system has no other, that one is taken. Dependencies
# of torch come later, with all others: the CPU index has few versions of them.
install_torch() {
    if [ -n "${DPAUDIT_TORCH:-}" ]; then
        pip_install "$DPAUDIT_TORCH"
    elif [ "$(uname -s)" != Linux ] || offers_cpu_build "$1"; then
        pip_install --no-deps "$1"
    else
        pip_install --no-deps --index-url "$TORCH_CPU_INDEX" "$1"
    fi
}

offers_cpu_build() {
    "$VENV/bin/python" -m pip install --quiet --dry-run --no-deps --report - "$1" 2>/dev/null |
        grep -q 'torch-[^"]*\(+\|%2B\)cpu'
}

# Print the constraints that apply: all, or all but that of torch where another is asked for.
constraints() {
    if [ -n "${DPAUDIT_TORCH:-}" ]; then
        grep -v '^torch==' constraints.txt > "$VENV/constraints.txt"
        echo "$VENV/constraints.txt"
    else
        echo constraints.txt
    fi
}

# Print a sum that changes with everything that decides what is installed.
installation_sum() {
    (cat pyproject.toml constraints.txt dpaudit/trainer/noise/kernels.c; echo "${DPAUDIT_TORCH:-cpu}") | cksum | tr ' ' '-'
}
