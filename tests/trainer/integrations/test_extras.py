"""Adapters are imported on use, and name their extra where its library is missing."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest
from places import ROOT

from dpaudit.trainer import integrations
from dpaudit.vocabulary.errors import MissingExtra

NEEDED = [
    ("PrivateTrainer", "transformers", "hugging-face"),
    ("PrivateTrainer", "accelerate", "hugging-face"),
    ("prepare_private", "accelerate", "accelerate"),
    ("AcceleratedPrivate", "accelerate", "accelerate"),
    ("PrivateModule", "lightning", "lightning"),
]


@pytest.mark.parametrize(("name", "library", "extra"), NEEDED)
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(wanted: str) -> ModuleSpec | None:
        return None if wanted == library else find_spec(wanted)

    monkeypatch.setattr(integrations, "find_spec", find)
    monkeypatch.delitem(vars(integrations), name, raising=False)
    with pytest.raises(MissingExtra, match=rf"{library} is not installed: .*\[{extra}\]"):
        getattr(integrations, name)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(one.startswith(library) for one in extras["optional-dependencies"][extra])


def test_the_package_imports_no_library() -> None:
    code = (
        "import sys, dpaudit.trainer.integrations as own; dir(own); "
        "print({'accelerate', 'lightning', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
