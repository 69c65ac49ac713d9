"""The installed program, called as a shell calls it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from calling import Called
from warm_python import WarmPython


def script() -> str:
    """Return the console script beside the Python that runs the tests."""
    found = shutil.which("dpaudit", path=str(Path(sys.executable).parent))
    assert found is not None, "install the project: pip install -e ."
    return found


def run(command: list[str], folder: Path, **variables: str) -> Called:
    """Run ``command`` in ``folder``, its streams in UTF-8 unless a variable says otherwise."""
    done = subprocess.run(
        command, cwd=folder, env=environment(variables), capture_output=True, check=False
    )
    return Called(done.returncode, done.stdout.decode(), done.stderr.decode())


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment without settings of the program, and ``variables``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DPAUDIT_", "GITHUB_"))}
    return kept | dict(variables)


def dpaudit(folder: Path, *arguments: object, **variables: str) -> Called:
    """Call the program in ``folder``."""
    return run([script(), *map(str, arguments)], folder, **variables)


class WarmProgram:
    """Calls the program in a child of a Python that has imported it: 0.1 s in place of 1 s.

    Args:
        python: That Python.
    """

    CODE = "import sys; sys.argv[0] = 'dpaudit'; from dpaudit.cli.entry_point import main; main()"

    def __init__(self, python: WarmPython) -> None:
        self._python = python

    def __call__(self, folder: Path, *arguments: object, **variables: str) -> Called:
        """Call the program in ``folder``."""
        done = self._python.run(
            self.CODE, folder, tuple(map(str, arguments)), environment(variables)
        )
        return Called(done.returncode, done.stdout, done.stderr)
