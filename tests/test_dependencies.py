"""The tested versions, and the scripts that install them; no test here needs a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import constraints
import pytest
from packaging.version import Version
from places import ROOT

KERNELS = "dpaudit/trainer/noise/kernels.c"
TEXT = (ROOT / "constraints.txt").read_text()
TORCH = str(constraints.pins(TEXT)["torch"])
SCRIPTS = ("check", "demo", ".ci/run", "tools/pin", "tools/check-newest", "tools/check-core")
SCRIPTS += ("tools/check-flower",)
SOURCED = ("tools/install.sh", "tools/venv.sh", "tools/steps.sh")

# --- constraints.txt


def test_every_line_is_an_exact_public_version() -> None:
    """So no line is an index, a file, an option, a range or the build of one machine."""
    lines = TEXT.splitlines()[1:]
    assert all(
        re.fullmatch(r"[a-z0-9-]+==[0-9]+(\.[0-9]+)*(\.?[a-z]+[0-9]+)*", line) for line in lines
    )
    assert lines == sorted(set(lines), key=lambda line: line.partition("==")[0])


def test_the_text_is_the_one_that_pin_writes() -> None:
    assert constraints.constraints_text(constraints.pins(TEXT)) == TEXT


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pins = constraints.pins(TEXT)
    requirements = list(constraints.direct_requirements("all", "test"))
    assert len({one.name for one in requirements}) > 30
    for requirement in requirements:
        version = pins[constraints.canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: pinned {version}"


def test_the_project_and_what_each_environment_has_are_not_pinned() -> None:
    assert not constraints.pins(TEXT).keys() & {"dpaudit", "pip", "setuptools", "wheel"}


@pytest.mark.parametrize(
    "line", ["numpy>=2", "--index-url http://example.org", "Jinja2==3.1.6", "-e .", "a @ file:///a"]
)
def test_a_line_that_is_no_exact_version_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="name==version"):
        constraints.pins(f"# comment\n\n{line}\n")


def test_local_versions_are_not_written() -> None:
    written = constraints.installed()
    assert "pytest" in written
    assert all(version.local is None for version in written.values())


def test_drift_names_what_changed_came_and_went() -> None:
    tested = {"a": Version("1.0"), "b": Version("2.0"), "c": Version("3")}
    present = {"a": Version("1.0"), "b": Version("2.1"), "d": Version("4")}
    assert list(constraints.drift(tested, present)) == [
        "b: tested 2.0, here 2.1",
        "c: tested 3, here -",
        "d: tested -, here 4",
    ]


def test_one_file_names_the_tested_torch() -> None:
    files = [ROOT / name for name in (*SCRIPTS, *SOURCED, "pyproject.toml", "README.md")]
    files += [ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert [file for file in files if f"torch=={TORCH}" in file.read_text()] == []


# --- the scripts


@pytest.mark.parametrize("name", [*SCRIPTS, *SOURCED])
def test_each_script_is_valid_shell(name: str) -> None:
    assert subprocess.run(["sh", "-n", ROOT / name], check=False).returncode == 0
    assert os.access(ROOT / name, os.X_OK) == (name in SCRIPTS)


STAND_IN = """#!{python} -IS
import json, os, shutil, sys
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *arguments]) + "\\n")
if arguments[:2] == ["-m", "venv"]:
    folder = Path(arguments[-1]) / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "pytest", "ruff", "mypy", "lint-imports", "mkdocs", "pydoclint"):
        shutil.copy(__file__, folder / name)
elif "--report" in arguments:
    print(os.environ.get("OFFERED", ""))
elif arguments[:1] == ["-c"] and "version_info[:" in arguments[1]:
    print(os.environ["VERSION"])
elif os.environ.get("FAILING") in arguments:
    print("ERROR: no such version", file=sys.stderr)
    sys.exit(1)
"""


class Machine:
    """A copy of the scripts, and a Python that records its calls in place of a real one."""

    def __init__(self, folder: Path) -> None:
        self.root, self.calls_file = folder / "project", folder / "calls"
        shutil.copytree(ROOT / "tools", self.root / "tools")
        (self.root / KERNELS).parent.mkdir(parents=True)
        for name in ("check", "pyproject.toml", "constraints.txt", KERNELS):
            shutil.copy(ROOT / name, self.root / name)
        self.python = folder / "python"
        self.python.write_text(STAND_IN.format(python=sys.executable))
        self.python.chmod(0o755)

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        kept = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "VERSION": "3.11"}
        return subprocess.run(
            command, cwd=self.root, text=True, capture_output=True, check=False,
            env=kept | {"CALLS": str(self.calls_file)} | variables,
        )  # fmt: skip

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.calls_file.read_text().splitlines()]

    def installs(self) -> list[list[str]]:
        """Return the arguments of each ``pip install`` that changed something."""
        start = ["python", "-m", "pip", "install", "--quiet"]
        return [call[5:] for call in self.calls() if call[:5] == start and "--dry-run" not in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


EVERYTHING = ["--editable", ".[all,test]"]
CPU_BUILD = f"torch-{TORCH}+cpu-cp311-cp311-linux_x86_64.whl"
linux = pytest.mark.skipif(sys.platform != "linux", reason="a CPU index is used on Linux alone")


def test_check_installs_the_constraints_once(machine: Machine) -> None:
    assert machine.run("./check", "-k", "ledger", OFFERED=CPU_BUILD).returncode == 0
    assert machine.installs() == [
        ["--no-deps", f"torch=={TORCH}"],
        ["--constraint", "constraints.txt", *EVERYTHING],
    ]
    assert machine.calls()[-1] == [
        *("pytest", "--numprocesses", "2", "--dist", "worksteal", "--quiet", "-k", "ledger")
    ]
    assert machine.run("./check").returncode == 0
    assert machine.installs() == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml", KERNELS])
def test_check_installs_again_after_a_change(machine: Machine, name: str) -> None:
    machine.run("./check", OFFERED=CPU_BUILD)
    with (machine.root / name).open("a") as file:
        file.write("# changed\n")
    machine.run("./check", OFFERED=CPU_BUILD)
    assert len(machine.installs()) == 2


@linux
def test_without_a_cpu_build_at_hand_torch_comes_from_the_cpu_index(machine: Machine) -> None:
    machine.run("./check")
    address = "https://download.pytorch.org/whl/cpu"
    assert machine.installs()[0] == ["--no-deps", "--index-url", address, f"torch=={TORCH}"]


def test_another_torch_is_installed_without_the_constraint_of_torch(machine: Machine) -> None:
    assert machine.run("./check", DPAUDIT_TORCH="torch==9.9").returncode == 0
    assert machine.installs() == [
        ["torch==9.9"],
        ["--constraint", ".venv/constraints.txt", *EVERYTHING],
    ]
    kept = constraints.pins((machine.root / ".venv" / "constraints.txt").read_text())
    assert constraints.pins(TEXT).keys() - kept.keys() == {"torch"}
    machine.run("./check", OFFERED=CPU_BUILD)
    assert len(machine.installs()) == 2  # back to the tested one


def test_what_pip_says_is_shown_and_stops_the_script(machine: Machine) -> None:
    done = machine.run("./check", OFFERED=CPU_BUILD, FAILING="--constraint")
    assert done.returncode == 1
    assert "ERROR: no such version" in done.stderr
    assert not any(call[0] == "pytest" for call in machine.calls())
    machine.run("./check", OFFERED=CPU_BUILD)
    assert len(machine.installs()) == 2  # a failed installation is not remembered


def test_check_newest_ignores_the_constraints_and_runs_every_check(machine: Machine) -> None:
    newer = "torch-99.0+cpu-cp311-cp311-linux_x86_64.whl"
    assert machine.run("tools/check-newest", "-x", OFFERED=newer).returncode == 0
    torch, everything = machine.installs()
    assert re.fullmatch(r"torch>=[0-9.]+", torch[-1])
    assert everything == EVERYTHING
    tools = [call[0] for call in machine.calls() if call[0] != "python"]
    assert tools.count("mypy") == 1  # next to the others
    others = [tool for tool in tools if tool != "mypy"]
    assert others == ["ruff", "ruff", "lint-imports", "pydoclint", "mkdocs", "pytest"]
    assert not (machine.root / ".venv").exists()


def test_check_newest_goes_on_after_a_failure_and_names_it(machine: Machine) -> None:
    done = machine.run("tools/check-newest", OFFERED=CPU_BUILD, FAILING="--no-cache")
    assert done.returncode == 1
    assert done.stderr.endswith("failed with the newest versions: lint-imports\n")
    assert machine.calls()[-1][0] == "pytest"


def test_pin_resolves_without_constraints_and_keeps_the_torch(machine: Machine) -> None:
    assert machine.run("tools/pin", OFFERED=CPU_BUILD).returncode == 0
    assert machine.installs() == [["--no-deps", f"torch=={TORCH}"], EVERYTHING]
    assert machine.calls()[-1] == ["python", "tools/constraints.py", "write"]


def test_pin_needs_the_oldest_supported_python(machine: Machine) -> None:
    done = machine.run("tools/pin", VERSION="3.13")
    assert done.returncode == 2
    assert "needs Python 3.11, the oldest supported version, got 3.13" in done.stderr
    assert machine.installs() == []


def test_check_core_installs_no_torch_and_passes_arguments_on(machine: Machine) -> None:
    done = machine.run("tools/check-core", str(machine.python), "-k", "gate", VERSION="3.13.0")
    assert done.returncode == 0
    assert machine.installs() == [["--constraint", "constraints.txt", "--editable", ".[test-core]"]]
    options = ["--core", "--numprocesses", "2", "--dist", "worksteal", "--quiet", "-rs"]
    assert machine.calls()[-1] == ["pytest", *options, "-k", "gate"]
    assert (machine.root / ".venv-core-3.13.0").is_dir()


def test_check_flower_has_an_environment_without_the_pins_that_flower_refuses(
    machine: Machine,
) -> None:
    done = machine.run("tools/check-flower", "-k", "grid", OFFERED=CPU_BUILD)
    assert done.returncode == 0
    file = ".venv-flower/flower-constraints.txt"
    assert machine.installs() == [
        ["--no-deps", f"torch=={TORCH}"],
        ["--constraint", file, "--editable", ".[federated,test-core]"],
    ]
    kept = constraints.pins((machine.root / file).read_text())
    missing = constraints.pins(TEXT).keys() - kept.keys()
    assert missing == {"packaging", "protobuf", "rich", "typer"}
    assert machine.calls()[-1][-2:] == ["-k", "grid"]
    machine.run("tools/check-flower", OFFERED=CPU_BUILD)
    assert machine.installs() == []


def test_check_core_says_why_it_skips(machine: Machine) -> None:
    done = machine.run("tools/check-core", "3.99")
    assert done.returncode == 0
    assert done.stderr.startswith("skipped: there is no Python '3.99'")


def test_check_core_needs_a_python(machine: Machine) -> None:
    assert machine.run("tools/check-core").returncode == 2
