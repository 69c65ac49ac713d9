# Sourced by demo and check: installs the tested versions of constraints.txt into .venv,
# once, and again when pyproject.toml, constraints.txt or the compiled kernels change.
# PYTHON and DPAUDIT_TORCH: see tools/install.sh.

. tools/install.sh
VENV=.venv

make_venv() {
    stamp="$VENV/installed-$(installation_sum)"
    [ -e "$stamp" ] && return
    python=$(find_python) || exit 2
    echo "installing into $VENV: about 400 MB to download, 2.3 GB on disk, two minutes or more" >&2
    [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
    rm -f "$VENV"/installed-*
    install_torch "$(tested_torch)"
    pip_install --constraint "$(constraints)" --editable '.[all,test]'
    : > "$stamp"
}

make_venv
