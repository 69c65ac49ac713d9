"""The versions in constraints.txt: write those of this environment, or show the drift.

Called by tools/pin and tools/check-newest, in the environment that they made.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
FILE, PROJECT = ROOT / "constraints.txt", ROOT / "pyproject.toml"
HEADER = "# The tested versions of '.[all,test]'. Written by tools/pin; do not edit.\n"
# An environment has these by itself, in versions that it chooses.
NOT_OURS = {"pip", "setuptools", "wheel", "dpaudit"}
# CUDA builds of torch bring these; a CPU build needs none of them.
CUDA = ("nvidia-", "cuda-", "triton")


def pins(text: str) -> dict[str, Version]:
    """Return the version of each package in a constraints file.

    Raises:
        ValueError: If a line is not ``name==version``.
    """
    found = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, version = line.partition("==")
        if not separator or name != canonicalize_name(name):
            raise ValueError(f"a constraint must be name==version, got {line!r}")
        found[name] = Version(version)
    return found


def direct_requirements(*extras: str) -> Iterator[Requirement]:
    """Return the dependencies of the project, and those of some of its extras."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    todo = [*project["dependencies"]]
    todo += [line for extra in extras for line in project["optional-dependencies"][extra]]
    for line in todo:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            yield from direct_requirements(*sorted(requirement.extras))
        else:
            yield requirement


def installed() -> dict[str, Version]:
    """Return the public version of each package that the project brought here."""
    found = {
        canonicalize_name(one.metadata["Name"]): Version(Version(one.version).public)
        for one in distributions()
    }
    ours = sorted(name for name in found.keys() - NOT_OURS if not name.startswith(CUDA))
    return {name: found[name] for name in ours}


def constraints_text(versions: dict[str, Version]) -> str:
    """Return the text of a constraints file; local versions such as CPU builds are dropped."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in versions.items())


def drift(tested: dict[str, Version], present: dict[str, Version]) -> Iterator[str]:
    """Return a line for each package whose version is not the tested one."""
    for name in sorted(tested.keys() | present.keys()):
        before, now = tested.get(name), present.get(name)
        if before != now:
            yield f"{name}: tested {before or '-'}, here {now or '-'}"


def main(action: str) -> None:
    """Write constraints.txt, or print what differs from it."""
    if action == "write":
        FILE.write_text(constraints_text(installed()), encoding="utf-8")
    else:
        lines = list(drift(pins(FILE.read_text(encoding="utf-8")), installed()))
        print("\n".join(lines) or "the newest versions are the tested ones")


if __name__ == "__main__":
    main(sys.argv[1])
