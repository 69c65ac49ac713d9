"""The links at the root, the shipped schemas, and how light the core is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import make_schemas
import pytest
from places import ROOT
from warm_python import WarmPython, warm_python

LINKS = ("accountants", "trainer", "attacks")
needs_links = pytest.mark.skipif(
    sys.platform == "win32", reason="Git checks links out as text files on Windows"
)


def python(code: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )


WITHOUT = """
import importlib.util, sys
libraries = {libraries!r}
found = importlib.util.find_spec
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in libraries:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
importlib.util.find_spec = lambda name, *more: None if name in libraries else found(name, *more)
for name in [name for name in sys.modules if name.split(".")[0] in libraries]:
    del sys.modules[name]
sys.argv = ["dpaudit", *sys.argv[1:]]
from dpaudit.cli.entry_point import main
main()
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmPython]:
    """Return a Python that has imported what the core needs, pandas, and nothing of ours."""
    with warm_python("msgspec", "click", "scipy.special", "scipy.stats", "pandas") as python:
        yield python


def program_without(
    warm: WarmPython, libraries: tuple[str, ...], arguments: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Call the program in a folder as if some libraries were not installed."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return warm.run(WITHOUT.format(libraries=libraries), folder, arguments, environment)


@needs_links
@pytest.mark.parametrize("name", LINKS)
def test_each_link_at_the_root_opens_its_package(name: str) -> None:
    assert os.readlink(ROOT / name) == f"dpaudit/{name}"
    assert (ROOT / name / "__init__.py").samefile(ROOT / "dpaudit" / name / "__init__.py")


@needs_links
@pytest.mark.parametrize("name", LINKS)
def test_a_package_refuses_to_be_imported_under_its_bare_name(name: str) -> None:
    result = python(f"import {name}")
    assert result.returncode != 0
    assert f"import dpaudit.{name}, not {name}" in result.stderr.splitlines()[-1]


@needs_links
@pytest.mark.needs("ruff")
def test_no_tool_walks_a_file_twice_through_a_link() -> None:
    """Ruff and pytest do not follow links, the build and mypy look at dpaudit alone."""
    ruff = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    walked = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(ROOT / "dpaudit" / "accountants" / "releases.py") in walked
    for name in LINKS:
        assert str(ROOT / name) not in walked


@pytest.mark.parametrize("name", make_schemas.KINDS)
def test_the_shipped_schema_is_that_of_the_type(name: str) -> None:
    shipped = (make_schemas.FOLDER / f"{name}.json").read_text()
    assert shipped == make_schemas.schema_text(make_schemas.KINDS[name]), (
        "run python tools/make_schemas.py"
    )


def test_every_shipped_schema_is_known() -> None:
    assert {path.stem for path in make_schemas.FOLDER.iterdir()} == set(make_schemas.KINDS)


HEAVY = ("torch", "pandas", "sklearn", "matplotlib", "jinja2", "cryptography", "scipy.stats")


@pytest.mark.parametrize(
    "code",
    [
        "import dpaudit",
        "import dpaudit.accountants.answers, dpaudit.gate.policy_evaluation, "
        "dpaudit.attacks.one_run",
        "import dpaudit.workflow.gate.run_evaluation, dpaudit.workflow.account, "
        "dpaudit.report.text",
        "import sys; sys.argv = ['dpaudit', '--help']\n"
        "try:\n    from dpaudit.cli.entry_point import main; main()\nexcept SystemExit: pass",
        "import sys; sys.argv = ['dpaudit', 'epsilon', '--sampling-rate', '0.01', '--steps', "
        "'100', '--noise-multiplier', '1', '--delta', '1e-5']\n"
        "try:\n    from dpaudit.cli.entry_point import main; main()\nexcept SystemExit: pass",
    ],
)
def test_the_core_imports_nothing_heavy(code: str) -> None:
    result = python(
        f"{code}\nimport sys, json\n"
        f"print('LOADED', json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    )
    assert json.loads(result.stdout.split("LOADED")[1]) == [], result.stderr


def test_import_dpaudit_needs_neither_numpy_nor_scipy() -> None:
    result = python(
        "import dpaudit, sys; print([m for m in ('numpy', 'scipy') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


NOT_WITH_SCORES = ("torch", "sklearn", "joblib", "safetensors", "PIL", "cryptography", "matplotlib")


@pytest.mark.needs("pandas")
@pytest.mark.parametrize(
    "command", ["gate --claim-epsilon 1", "audit --claim-epsilon 1", "attack", "attack -o s.csv"]
)
def test_scores_alone_need_pandas_and_nothing_heavier(
    warm: WarmPython, tmp_path: Path, command: str
) -> None:
    scores = tmp_path / "scores.csv"
    rows = (f"{value / 100},{value % 2}" for value in range(200))
    scores.write_text("score,member\n" + "\n".join(rows) + "\n")
    arguments = [*command.split(), "--scores", str(scores)]
    result = program_without(warm, NOT_WITH_SCORES, arguments, tmp_path)
    assert result.returncode in {0, 3}, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        ("train --target-epsilon 3 --out run", "torch", "train"),
        ("attack --data digits", "torch", "train"),
        ("attack nowhere", "torch", "train"),
        ("attack --scores scores.csv", "pandas", "scores"),
        pytest.param(
            *("attack --scores scores.parquet", "pyarrow", "scores"),
            marks=pytest.mark.needs("pandas"),
        ),
        ("audit --scores scores.csv --claim-epsilon 1 --delta 1e-5", "pandas", "scores"),
        ("gate --scores scores.csv --claim-epsilon 1 --delta 1e-5", "pandas", "scores"),
    ],
)
def test_a_core_install_says_which_extra_is_needed(
    warm: WarmPython, tmp_path: Path, command: str, library: str, extra: str
) -> None:
    for name in ("scores.csv", "scores.parquet"):
        (tmp_path / name).write_text("score,member\n0.5,1\n0.4,0\n")
    result = program_without(warm, (library,), command.split(), tmp_path)
    assert result.returncode == 2
    expected = f"dpaudit: error DPA601: {library} is not installed: pip install 'dpaudit[{extra}]'"
    assert result.stderr.splitlines()[-1] == expected
