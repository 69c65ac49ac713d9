"""README's commands, run in its order, print what README says that they print.

What noise decides is masked: every number, and the width of columns. The command that
draws no noise is compared to the letter.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fill_readme import BLOCK
from places import ROOT

DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
NUMBER = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?%?")
LARGEST = re.compile(r"\((certified|conditional): [^)]*\)")  # which one it is, noise decides
DETERMINISTIC = "dpaudit epsilon --"


def run(command: str, folder: Path) -> str:
    arguments = [sys.executable, "-m", *shlex.split(command)]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def masked(text: str) -> str:
    text = DIGEST.sub("#", LARGEST.sub("(a bound)", text))
    return " ".join(NUMBER.sub("#", text).split())


def toml_with(section: str) -> str:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = [block for block in blocks if section in block]
    return str(found)


@pytest.mark.needs("torch")
def test_every_command_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    shutil.copy(ROOT / "dpaudit.toml", tmp_path)
    found = BLOCK.finditer((ROOT / "README.md").read_text())
    blocks = [(block[2], block[3]) for block in found]
    names = [command.split()[1] for command, _ in blocks]
    assert names == ["train", "epsilon", "audit", "gate", "report"]
    for command, expected in blocks:
        printed = run(command, tmp_path)
        if command.startswith(DETERMINISTIC):
            assert printed == expected
        else:
            assert masked(printed) == masked(expected)


def test_the_policy_of_the_readme_is_valid(tmp_path: Path) -> None:
    from dpaudit.workflow.policies import read_policy

    path = tmp_path / "dpaudit.toml"
    path.write_text(toml_with("[claim]"))
    assert read_policy(path).claim.max_epsilon == 3.0


def test_the_configuration_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    from dpaudit.workflow.asked import read_file

    path = tmp_path / "settings.toml"
    path.write_text(toml_with("[canaries]"))
    file = read_file(path)
    assert file.preset == "mnist-scattering"
    assert file.layer["data"]["source"] == str((tmp_path / "mnist.npz").resolve())
    assert file.layer["privacy"]["target_epsilon"] == 2.0


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    for code in blocks:
        exec(code, names)
    assert 0 < names["private"].epsilon(delta=1e-5).upper <= 1.5  # type: ignore[attr-defined]
    epsilon = names["profile"].epsilon(delta=1e-5)  # type: ignore[attr-defined]
    assert str(epsilon.lower)[:10] == str(epsilon.upper)[:10] == "1.82823666"
