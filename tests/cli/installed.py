"""The installed program, called as a shell calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from calling import Called


def script() -> str:
    """Return the console script beside the Python that runs the tests."""
    found = shutil.which("dpaudit", path=str(Path(sys.executable).parent))
    assert found is not None, "install the project: pip install -e ."
    return found


def run(command: list[str], folder: Path, **variables: str) -> Called:
    """Run ``command`` in ``folder``, its streams in UTF-8 unless a variable says otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DPAUDIT_", "GITHUB_"))}
    done = subprocess.run(
        command, cwd=folder, env=kept | variables, capture_output=True, check=False
    )
    return Called(done.returncode, done.stdout.decode(), done.stderr.decode())


def dpaudit(folder: Path, *arguments: object, **variables: str) -> Called:
    """Call the program in ``folder``."""
    return run([script(), *map(str, arguments)], folder, **variables)
