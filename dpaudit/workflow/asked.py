"""What is asked of a run: defaults, then a preset, then a file, then the command line.

A later layer's setting stands in for an earlier one's. Three choices can be made in two ways
each, and the later way wins as a whole: the noise (a target epsilon, or the multiplier) and
the schedule (public sizes, or rate, steps and normaliser). What touched the records and is
outside of the claim only ever adds up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from dpaudit.files.documents import read_toml_document
from dpaudit.files.opening import SETTINGS, InputFile
from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.presets import PRESETS
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.workflow.plans import calibrated
from dpaudit.workflow.questions import rate_and_steps

Layer = Mapping[str, Mapping[str, Any]]
"""Settings by section and key; what is not there was not asked for."""

BUNDLED = "digits"
SIZES = ("dataset_size", "batch_size", "epochs")
RATES = ("sampling_rate", "steps", "expected_batch_size")
NOISE = ("target_epsilon", "noise_multiplier")
IN_PLACE_OF_A_RATE = [("dataset_size", int), ("batch_size", int), ("epochs", float)]
CANARIES_PER_INPUT = 20  # gradient canaries for each input canary, where nobody says how many


@dataclass(frozen=True)
class Asked:
    """All that was asked for, of which a later layer stands above an earlier one.

    Attributes:
        preset: The preset's name, if there is one.
        sections: Its settings, the file's and the command line's, on top of the defaults.
    """

    preset: str | None
    sections: Layer

    @property
    def source(self) -> str:
        """Which records."""
        return str(self.sections["data"]["source"])


@dataclass(frozen=True)
class FileContent:
    """The preset that a file names, and the settings that it holds."""

    preset: str | None
    layer: Layer


def asked_for(defaults: Layer, preset: str | None, file: FileContent | None, given: Layer) -> Asked:
    """Return what is asked for; the preset named here stands in for one that the file names.

    Raises:
        InvalidArgument: there is no such preset, it has no records to train on, or one layer
            makes a choice in two ways.
    """
    name = preset or (file.preset if file else None)
    if name is not None and name not in PRESETS:
        raise InvalidArgument("preset", name, f"one of {', '.join(PRESETS)}")
    layers = [file.layer if file else {}, given]
    if name is not None:
        if not any("source" in layer.get("data", {}) for layer in layers):
            allowed = f"the file of records: preset {name} is for {PRESETS[name].data}"
            raise InvalidArgument("data", BUNDLED, allowed)
        layers.insert(0, PRESETS[name].settings)
    return Asked(name, _on_top_of_one_another([defaults, *layers]))


def config_of(asked: Asked) -> RunConfig:
    """Return the settings of a run; their types check each value.

    Raises:
        InvalidArgument: a value is not allowed, or one is missing.
    """
    sections = {name: dict(values) for name, values in asked.sections.items()}
    canaries = sections["canaries"]
    inputs = canaries.get("inputs")
    if inputs is None:
        canaries["inputs"] = canaries["gradient"] // CANARIES_PER_INPUT
    return RunConfig(
        data=DataSettings(**sections["data"]),
        privacy=_privacy(sections["privacy"]),
        model=ModelSettings(**sections["model"]),
        canaries=CanarySettings(**canaries),
        speed=SpeedSettings(**sections["speed"]),
        preset=asked.preset,
    )


def read_file(path: Path) -> FileContent:
    """Read a configuration file: a run's config.toml, or one with fewer keys, or with sizes.

    A relative path of records is relative to the file.

    Raises:
        InvalidArgument: the file is missing or no TOML, or has an unknown key or a value of
            another kind; the message names it.
    """
    document = read_toml_document(InputFile(path, "config", SETTINGS))
    try:
        found = msgspec.convert(document, _FILE)
    except (ValueError, ArithmeticError, RecursionError) as error:  # msgspec's are ValueErrors
        raise InvalidArgument(
            "config", str(path), f"a training run's settings ({error})"
        ) from error
    content = _set_fields(found)
    version = content.pop("schema_version", SCHEMA_VERSION)
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        allowed = f"of schema_version {SCHEMA_VERSION}, not {version}"
        raise InvalidArgument("config", str(path), allowed)
    preset = content.pop("preset", None)
    layer = {name: _set_fields(section) for name, section in content.items()}
    source = layer.get("data", {}).get("source", BUNDLED)
    if source != BUNDLED:
        layer["data"]["source"] = os.path.abspath(path.parent / source)
    return FileContent(preset, layer)


def _partly(kind: type[msgspec.Struct], *more: tuple[str, type]) -> Any:
    """Return ``kind`` with every key optional, and ``more`` keys, none of them checked yet."""
    fields = [(field.name, field.type) for field in msgspec.structs.fields(kind)]
    return msgspec.defstruct(
        kind.__name__,
        [(name, type_ | UnsetType, UNSET) for name, type_ in (*fields, *more)],
        frozen=True,
        forbid_unknown_fields=True,
    )


def _set_fields(struct: msgspec.Struct) -> dict[str, Any]:
    return {
        name: value for name, value in msgspec.structs.asdict(struct).items() if value is not UNSET
    }


_SECTIONS = {
    "data": _partly(DataSettings),
    "privacy": _partly(PrivacySettings, ("target_epsilon", float), *IN_PLACE_OF_A_RATE),
    "model": _partly(ModelSettings),
    "canaries": _partly(CanarySettings),
    "speed": _partly(SpeedSettings),
}
_FILE = msgspec.defstruct(
    "File",
    [
        *((name, kind | UnsetType, UNSET) for name, kind in _SECTIONS.items()),
        *((name, str | UnsetType, UNSET) for name in ("preset", "schema_version")),
    ],
    frozen=True,
    forbid_unknown_fields=True,
)


def _on_top_of_one_another(layers: Sequence[Layer]) -> Layer:
    total: dict[str, Mapping[str, Any]] = {name: {} for name in _SECTIONS}
    for layer in layers:
        for name, later in layer.items():
            earlier = total[name]
            total[name] = (
                _privacy_over(earlier, later) if name == "privacy" else {**earlier, **later}
            )
    return total


def _privacy_over(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``later`` on top of ``earlier``, where one way of saying a thing drops the other."""
    sizes, rates, noise = (_named(later, names) for names in (SIZES, RATES, NOISE))
    if sizes and rates:
        allowed = f"left out where {', '.join(SIZES)} set it"
        raise InvalidArgument(rates[0], later[rates[0]], allowed)
    if len(noise) > 1:
        allowed = f"left out where {noise[0]} is given"
        raise InvalidArgument(noise[1], later[noise[1]], allowed)
    kept = dict(earlier)
    if rates:  # what the sizes came to stays, but for what is asked anew
        kept = _by_rates(kept)
    for name in (*(RATES if sizes else ()), *(NOISE if noise else ())):
        kept.pop(name, None)
    left_out = (*earlier.get("leaves_out", ()), *later.get("leaves_out", ()))
    return {**kept, **later, "leaves_out": tuple(dict.fromkeys(left_out))}


def _named(section: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if section.get(name) is not None]


def _by_rates(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``section`` without public sizes, with the rate, steps and normaliser they mean."""
    rest = {name: value for name, value in section.items() if name not in SIZES}
    given = _named(section, SIZES)
    if not given:
        return rest
    for name in SIZES:
        if name not in given:
            raise InvalidArgument(name, None, f"given: {', '.join(SIZES)} belong together")
    size, batch, epochs = (section[name] for name in SIZES)
    rate, steps = rate_and_steps(size, batch, epochs)
    return {**rest, "sampling_rate": rate, "steps": steps, "expected_batch_size": float(batch)}


def _privacy(section: Mapping[str, Any]) -> PrivacySettings:
    values = _by_rates(section)
    target, noise = (values.pop(name, None) for name in NOISE)
    if target is None and noise is None:
        raise InvalidArgument("noise_multiplier", None, "given, or a target_epsilon")
    # Any noise will do to check the rest by, where it is still to be found.
    privacy = PrivacySettings(**values, noise_multiplier=1.0 if noise is None else noise)
    return privacy if target is None else calibrated(privacy, target)
