"""The core commands where Python lacks what only POSIX systems have, as on Windows."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from calling import Called
from ledgers import finished_run
from places import ROOT

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.history_database import read_history
from dpaudit.vocabulary.errors import ExitCode
from tests.cli.installed import run

PLAN = "--noise-multiplier 1 --sampling-rate 0.01 --steps 100 --delta 1e-5"
CLAIM = "[claim]\nmax_epsilon = 1000.0\ndelta = 1e-5\n"
LIKE_WINDOWS = """\
import os
import stat
import sys

ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


for name in ABSENT:
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Absent())
for name in (
    "O_NONBLOCK O_NOCTTY O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_SYNC O_DSYNC fchmod fchown fork "
    "forkpty getuid geteuid getgid getegid killpg mkfifo nice pread pwrite register_at_fork "
    "set_blocking statvfs sched_getaffinity"  # numpy for Linux needs uname
).split():
    if hasattr(os, name):
        delattr(os, name)
_open = os.open


def open_file(path, flags, mode=0o777, **more):
    if not more and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return _open(path, flags, mode, **more)


os.open = open_file
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a finished run, a policy that it passes, and such a Python."""
    finished_run(tmp_path / "run")
    (tmp_path / "dpaudit.toml").write_text(CLAIM)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LIKE_WINDOWS)
    return tmp_path


def python(folder: Path, *arguments: str) -> Called:
    places = os.pathsep.join((str(folder / "site"), str(ROOT)))
    return run([sys.executable, *arguments], folder, PYTHONPATH=places)


def dpaudit(folder: Path, arguments: str) -> Called:
    return python(folder, "-m", "dpaudit", *arguments.split())


def test_such_a_python_has_no_fcntl(project: Path) -> None:
    done = python(project, "-c", "import os, fcntl")
    assert "No module named 'fcntl'" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        f"epsilon {PLAN}",
        f"epsilon {PLAN} --accountant all",
        "epsilon run",
        "delta run --epsilon 3",
        "gate run",
        pytest.param("gate run --format html -o verdict.html", marks=pytest.mark.needs("jinja2")),
        "config show",
        pytest.param("report run", marks=pytest.mark.needs("jinja2", "matplotlib")),
    ],
)
def test_a_core_command_works(project: Path, arguments: str) -> None:
    done = dpaudit(project, arguments)
    wrote = "dpaudit: wrote verdict.html\n" if "-o verdict.html" in arguments else ""
    assert (done.code, done.err) == (ExitCode.PASS, wrote)


def test_a_verdict_is_written_to_the_history(project: Path) -> None:
    """With fchmod, which Python 3.13 has on Windows, too: filelock's own fallback needs it."""
    like_windows = LIKE_WINDOWS.replace(" fchmod ", " ")
    (project / "site" / "sitecustomize.py").write_text(like_windows)
    done = dpaudit(project, "gate run --history .")
    assert done.code == ExitCode.PASS, done.err
    assert len(read_history(project)) == 1


def test_the_package_is_imported_without_a_lock(project: Path) -> None:
    modules = "dpaudit.cli.entry_point, dpaudit.pytest_plugin"
    code = f"import sys, {modules}; print('filelock' in sys.modules)"
    done = python(project, "-c", code)
    assert (done.code, done.out, done.err) == (0, "False\n", "")


def test_a_writer_names_what_the_system_lacks(project: Path) -> None:
    """This Python is not Windows's, which has locks of its own."""
    run_directory = RunDirectory(project / "run")
    (project / "run" / "claim.json").unlink()
    done = dpaudit(project, f"finish {run_directory.path}")
    assert done.code == ExitCode.USAGE
    assert done.err.splitlines()[-1].startswith("dpaudit: error DPA202: ledger must be writable")
