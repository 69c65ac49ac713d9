# Sourced by demo and check: makes .venv once, and again when pyproject.toml changes.
#
# PYTHON         the interpreter to use, 3.11 or newer; the first one found otherwise
# DPAUDIT_TORCH  what to install as torch, from pip's own index; a CPU build otherwise

VENV=.venv
TORCH=torch==2.13.0
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

# Plain torch can bring gigabytes of CUDA packages on Linux. Where the pip configuration
# at hand offers a CPU build, or the system has no other, that one is taken.
install_torch() {
    if [ -n "${DPAUDIT_TORCH:-}" ]; then
        "$VENV/bin/python" -m pip install --quiet "$DPAUDIT_TORCH"
    elif [ "$(uname -s)" != Linux ] || offers_cpu_build; then
        "$VENV/bin/python" -m pip install --quiet "$TORCH"
    else
        "$VENV/bin/python" -m pip install --quiet --index-url "$TORCH_CPU_INDEX" "$TORCH"
    fi
}

offers_cpu_build() {
    "$VENV/bin/python" -m pip install --quiet --dry-run --no-deps --report - "$TORCH" 2>/dev/null |
        grep -q 'torch-[^"]*\(+\|%2B\)cpu'
}

make_venv() {
    stamp="$VENV/installed-$( (cat pyproject.toml; echo "${DPAUDIT_TORCH:-cpu}") | cksum | tr ' ' '-')"
    [ -e "$stamp" ] && return
    python=$(find_python) || exit 2
    echo "installing into $VENV: about 370 MB to download, 1.7 GB on disk, two minutes or more" >&2
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    rm -f "$VENV"/installed-*
    install_torch
    "$VENV/bin/python" -m pip install --quiet --editable '.[all,test]'
    : > "$stamp"
}

make_venv
