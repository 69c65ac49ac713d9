"""Every example in a docstring does what it shows."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = ROOT / "dpaudit"
sys.path.insert(0, str(ROOT / "tools"))


def modules_with_examples() -> list[str]:
    """Return the dotted name of every module that has a doctest."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text():
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


@pytest.mark.needs("torch")
@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_print_what_they_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ImportError) or type(error).__name__ == "MissingExtra":
            pytest.skip(f"needs an extra: {error}")
        raise
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert attempted > 0
    assert failed == 0
