"""Makes models under differential privacy and writes down what it released."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dpaudit.vocabulary.errors import MissingExtra

if __name__ != "dpaudit.trainer":
    raise ImportError(f"import dpaudit.trainer, not {__name__}: the link is a door for people")

for _library in ("torch", "safetensors", "cryptography"):
    if find_spec(_library) is None:
        raise MissingExtra(_library, "train")

_FACES = {
    "make_private": "attach",
    "Private": "private",
    "GradientCanaries": "canaries",
    "NoisyCount": "recipe",
    "fix": "repair",
    "Engine": "engine",
    "Flat": "engine",
    "PerLayer": "engine",
    "Automatic": "engine",
    "Poisson": "sampling",
    "Truncated": "sampling",
    "FixedSize": "sampling",
    "BallsInBins": "sampling",
    "Cyclic": "sampling",
    "Shuffled": "sampling",
    "Scheduled": "clip_rules",
    "Quantile": "clip_rules",
    "Independent": "added_noise",
    "AheadOfTime": "added_noise",
    "OnGrid": "added_noise",
    "Banded": "added_noise",
    "Bags": "bags",
    "Users": "bags",
    "Views": "bags",
    "AdamCorrected": "adam",
}


def __getattr__(name: str) -> Any:
    """Import what people use by name only when they do: reading records needs no torch."""
    if name not in _FACES:
        raise AttributeError(f"dpaudit.trainer has no {name!r}; it has {', '.join(_FACES)}")
    return getattr(import_module(f"dpaudit.trainer.{_FACES[name]}"), name)
