"""Train under differential privacy: private steps for your own loop, samplers, clipping, noise."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from dpaudit.vocabulary import lazy_exports
from dpaudit.vocabulary.errors import MissingExtra

if TYPE_CHECKING:
    from dpaudit.trainer.adam import AdamCorrected
    from dpaudit.trainer.attach import make_private
    from dpaudit.trainer.batches.grouped_records import RecordGroups, Users, Views
    from dpaudit.trainer.batches.samplers import (
        BallsInBins,
        Cyclic,
        FixedSize,
        Poisson,
        Shuffled,
        Truncated,
    )
    from dpaudit.trainer.canaries.run_canaries import GradientCanaries
    from dpaudit.trainer.clip_rules import Quantile, Scheduled
    from dpaudit.trainer.data_sources.padding import PadTokens
    from dpaudit.trainer.engine import Automatic, Engine, Flat, PerLayer
    from dpaudit.trainer.models.fix import fix
    from dpaudit.trainer.noise.correlated_noise import Banded
    from dpaudit.trainer.noise.gradient_noise import Independent, OnGrid, Prefetched
    from dpaudit.trainer.private import Private
    from dpaudit.trainer.session.settings import NoisyCount

if __name__ != "dpaudit.trainer":
    raise ImportError(f"import dpaudit.trainer, not {__name__}: the symlink is for browsing only")

for _library in ("torch", "safetensors", "cryptography"):
    if find_spec(_library) is None:
        raise MissingExtra(_library, "train")

__all__ = [
    "AdamCorrected",
    "Automatic",
    "BallsInBins",
    "Banded",
    "Cyclic",
    "Engine",
    "FixedSize",
    "Flat",
    "GradientCanaries",
    "Independent",
    "NoisyCount",
    "OnGrid",
    "PadTokens",
    "PerLayer",
    "Poisson",
    "Prefetched",
    "Private",
    "Quantile",
    "RecordGroups",
    "Scheduled",
    "Shuffled",
    "Truncated",
    "Users",
    "Views",
    "fix",
    "make_private",
]

_SOURCES = {
    "make_private": "attach",
    "Private": "private",
    "GradientCanaries": "canaries.run_canaries",
    "NoisyCount": "session.settings",
    "fix": "models.fix",
    "Engine": "engine",
    "Flat": "engine",
    "PerLayer": "engine",
    "Automatic": "engine",
    "Poisson": "batches.samplers",
    "Truncated": "batches.samplers",
    "FixedSize": "batches.samplers",
    "BallsInBins": "batches.samplers",
    "Cyclic": "batches.samplers",
    "Shuffled": "batches.samplers",
    "Scheduled": "clip_rules",
    "Quantile": "clip_rules",
    "Independent": "noise.gradient_noise",
    "Prefetched": "noise.gradient_noise",
    "OnGrid": "noise.gradient_noise",
    "Banded": "noise.correlated_noise",
    "RecordGroups": "batches.grouped_records",
    "Users": "batches.grouped_records",
    "Views": "batches.grouped_records",
    "PadTokens": "data_sources.padding",
    "AdamCorrected": "adam",
}

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    __getattr__, __dir__ = lazy_exports(__name__, _SOURCES)
