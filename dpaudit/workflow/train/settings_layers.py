"""Merge the settings of a run: defaults, preset, configuration file, command line.

A later layer overrides an earlier one. Two choices can each be made in two ways, and the later way
replaces the earlier one as a whole: the noise (target epsilon, or noise multiplier) and the
schedule (public sizes; or sampling rate, steps and expected batch size). Unaccounted uses of the
records accumulate over all layers.
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
from dpaudit.files.regular_files import SETTINGS_LIMIT, InputFile
from dpaudit.vocabulary import SCHEMA_VERSION, is_readable
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.renamed import renamed
from dpaudit.vocabulary.settings import (
    PRESETS,
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.vocabulary.validation_messages import explain_validation
from dpaudit.workflow.account import schedule_from_sizes
from dpaudit.workflow.run_claims import with_calibrated_noise

SettingsLayer = Mapping[str, Mapping[str, Any]]
"""Settings by section and key; an absent key was not set."""

BUNDLED_DATA = "digits"
MODEL_CONFIG = "config.json"
"""File by which the folder of a pre-trained model is recognized."""
SIZE_KEYS = ("dataset_size", "batch_size", "epochs")
RATE_KEYS = ("sampling_rate", "steps", "expected_batch_size")
NOISE_KEYS = ("target_epsilon", "noise_multiplier")
SIZE_FIELDS = [("dataset_size", int), ("batch_size", int), ("epochs", float)]
GRADIENT_CANARIES_PER_INPUT_CANARY = 20  # the default number of gradient canaries per input canary


@dataclass(frozen=True)
class RequestedSettings:
    """The merged settings of a run.

    Attributes:
        preset: The preset's name; None: there is none.
        sections: Settings by section and key, from all layers.
    """

    preset: str | None
    sections: SettingsLayer

    @property
    def source(self) -> str:
        """The source of the records."""
        return str(self.sections["data"]["source"])


@dataclass(frozen=True)
class ConfigFile:
    """The content of a configuration file.

    Attributes:
        preset: The preset that the file names; None: none.
        layer: The settings in the file.
    """

    preset: str | None
    layer: SettingsLayer


def merge_settings(
    defaults: SettingsLayer, preset: str | None, file: ConfigFile | None, options: SettingsLayer
) -> RequestedSettings:
    """Merge the layers of settings.

    Args:
        defaults: Values of every key.
        preset: Name of a preset; overrides the one in the file. None: that of the file, if any.
        file: The configuration file; None: there is none.
        options: Settings of the command line, which override all others.

    Returns:
        The merged settings.

    Raises:
        InvalidArgument: If there is no such preset, if it has no records to train on, or if one
            layer makes a choice in two ways.
    """
    name = preset or (file.preset if file else None)
    if name is not None and name not in PRESETS:
        raise InvalidArgument("preset", name, f"one of {', '.join(PRESETS)}")
    layers = [file.layer if file else {}, options]
    if name is not None:
        if not any("source" in layer.get("data", {}) for layer in layers):
            allowed = f"the file of records: preset {name} is for {PRESETS[name].data}"
            raise InvalidArgument("data", BUNDLED_DATA, allowed)
        layers.insert(0, PRESETS[name].settings)
    return RequestedSettings(name, _merge_layers([defaults, *layers]))


def build_run_config(requested: RequestedSettings) -> RunConfig:
    """Build the configuration of a run; its types check each value.

    Args:
        requested: The merged settings.

    Returns:
        The configuration; a target epsilon was replaced by the noise multiplier that meets it.

    Raises:
        InvalidArgument: If a value is not allowed or missing.
    """
    sections = {name: dict(values) for name, values in requested.sections.items()}
    canaries = sections["canaries"]
    data = DataSettings(**sections["data"])
    if canaries.get("inputs") is None:  # text has no labels that could be wrong
        share = 0 if data.has_tokens else GRADIENT_CANARIES_PER_INPUT_CANARY
        canaries["inputs"] = canaries["gradient"] // share if share else 0
    return RunConfig(
        data=data,
        privacy=_privacy(sections["privacy"]),
        model=ModelSettings(**sections["model"]),
        canaries=CanarySettings(**canaries),
        speed=SpeedSettings(**sections["speed"]),
        preset=requested.preset,
    )


def setting_origins(
    settings: RunConfig, layers: Sequence[tuple[str, SettingsLayer]]
) -> dict[str, str]:
    """Return which layer each setting comes from.

    Args:
        settings: The merged settings.
        layers: Name and content of each layer, the last one overrides the others; a setting
            in none of them is a default.

    Returns:
        By ``section.key``: the name of the layer, with the setting that it was computed from.
    """
    sections = msgspec.to_builtins(settings)
    return {
        f"{section}.{key}": _origin(section, key, layers)
        for section in _SECTIONS
        for key in sections[section]
    }


def _origin(section: str, key: str, layers: Sequence[tuple[str, SettingsLayer]]) -> str:
    if key == "unaccounted":  # the layers add up
        names = [name for name, layer in layers if layer.get(section, {}).get(key)]
        return ", ".join(names) or "default"
    for name, layer in reversed(layers):
        content = layer.get(section, {})
        if content.get(key) is not None:
            return name
        if key == "noise_multiplier" and content.get("target_epsilon") is not None:
            return f"calibrated to target_epsilon {content['target_epsilon']:g}, {name}"
        if key in RATE_KEYS and (sizes := _given_keys(content, SIZE_KEYS)):
            return f"computed from {', '.join(sizes)}, {name}"
    return "default"


def read_config_file(path: Path) -> ConfigFile:
    """Read a configuration file: a run's config.toml, or one with fewer keys or with sizes.

    A relative path of records is relative to the file.

    Args:
        path: The file.

    Returns:
        Its preset and settings.

    Raises:
        InvalidArgument: If the file is missing or no TOML, or has an unknown key or a value of
            another type; the message contains the key.
    """
    if is_federated_file(path):
        allowed = "without [federation], or with --federated STRATEGY for a federated run"
        raise InvalidArgument("config", str(path), allowed)
    content = read_sections(path, _FILE, _SECTIONS)
    preset = content.pop("preset", None)
    return ConfigFile(preset, content)


def is_federated_file(path: Path) -> bool:
    """Return whether a configuration file has the section of a federated run.

    Args:
        path: The file.

    Returns:
        Whether it has a section ``federation``.

    Raises:
        InvalidArgument: If the file is missing or no TOML.
    """
    return "federation" in read_toml_document(InputFile(path, "config", SETTINGS_LIMIT))


def read_sections(
    path: Path, file: type[msgspec.Struct], sections: Mapping[str, type[msgspec.Struct]]
) -> dict[str, Any]:
    """Read the settings of a configuration file that are set in it.

    A relative path of records is relative to the file.

    Args:
        path: The file.
        file: Type of the document, all of whose fields are optional.
        sections: Types of its sections by name.

    Returns:
        Sections by name, and top-level values.

    Raises:
        InvalidArgument: If the file is missing or no TOML, or has an unknown key or a value of
            another type; the message contains the key.
    """
    document = read_toml_document(InputFile(path, "config", SETTINGS_LIMIT))
    try:
        document = renamed(document, str(path))
        found = msgspec.convert(document, file)
    except msgspec.ValidationError as error:
        allowed = f"a training run's settings {explain_validation(error, document, file)}"
        raise InvalidArgument("config", str(path), allowed) from error
    except (ValueError, ArithmeticError, RecursionError) as error:  # msgspec's are ValueErrors
        allowed = f"a training run's settings ({error})"
        raise InvalidArgument("config", str(path), allowed) from error
    content = _set_fields(found)
    version = content.pop("schema_version", SCHEMA_VERSION)
    if not is_readable(version):
        allowed = f"of schema_version {SCHEMA_VERSION}, not {version}"
        raise InvalidArgument("config", str(path), allowed)
    layer = {
        name: _set_fields(value) if name in sections else value for name, value in content.items()
    }
    return with_absolute_paths(layer, path.parent)


def with_absolute_paths(layer: SettingsLayer, folder: Path) -> dict[str, Any]:
    """Return settings whose paths of records, tokenizer, model and canaries are absolute.

    Args:
        layer: Settings by section and key.
        folder: What relative paths are relative to.

    Returns:
        The settings; the name of a built-in model or of a factory stays as it is.
    """
    data, model = dict(layer.get("data", {})), dict(layer.get("model", {}))
    if data.get("source", BUNDLED_DATA) != BUNDLED_DATA:
        data["source"] = os.path.abspath(folder / data["source"])
    if data.get("tokenizer") is not None:
        data["tokenizer"] = os.path.abspath(folder / data["tokenizer"])
    if (folder / str(model.get("model", "")) / MODEL_CONFIG).is_file():
        model["model"] = os.path.abspath(folder / model["model"])
    canaries = dict(layer.get("canaries", {}))
    if canaries.get("file") is not None:
        canaries["file"] = os.path.abspath(folder / canaries["file"])
    changed = {"data": data, "model": model, "canaries": canaries}
    return {**layer, **{name: changed[name] for name in changed if name in layer}}


def with_optional_fields(kind: type[msgspec.Struct], *more: tuple[str, type]) -> Any:
    """Return a type with the fields of another, each optional.

    Args:
        kind: The other type.
        *more: Name and type of further fields.

    Returns:
        The type; it checks the types of values and not their ranges.
    """
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
    "data": with_optional_fields(DataSettings),
    "privacy": with_optional_fields(PrivacySettings, ("target_epsilon", float), *SIZE_FIELDS),
    "model": with_optional_fields(ModelSettings),
    "canaries": with_optional_fields(CanarySettings),
    "speed": with_optional_fields(SpeedSettings),
}


def document_of(sections: Mapping[str, Any], *texts: str) -> Any:
    """Return the type of a configuration file.

    Args:
        sections: Types of its sections by name.
        *texts: Names of its top-level texts.

    Returns:
        The type; every field is optional.
    """
    return msgspec.defstruct(
        "File",
        [
            *((name, kind | UnsetType, UNSET) for name, kind in sections.items()),
            *((name, str | UnsetType, UNSET) for name in texts),
        ],
        frozen=True,
        forbid_unknown_fields=True,
    )


_FILE = document_of(_SECTIONS, "preset", "schema_version")


def _merge_layers(layers: Sequence[SettingsLayer]) -> SettingsLayer:
    total: dict[str, Mapping[str, Any]] = {name: {} for name in _SECTIONS}
    for layer in layers:
        for name, later in layer.items():
            earlier = total[name]
            total[name] = (
                _merge_privacy(earlier, later) if name == "privacy" else {**earlier, **later}
            )
    return total


def _merge_privacy(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge privacy settings: a choice in ``later`` removes the other way to make it."""
    sizes, rates, noise = (
        _given_keys(later, names) for names in (SIZE_KEYS, RATE_KEYS, NOISE_KEYS)
    )
    if sizes and rates:
        allowed = f"left out where {', '.join(SIZE_KEYS)} set it"
        raise InvalidArgument(rates[0], later[rates[0]], allowed)
    if len(noise) > 1:
        allowed = f"left out where {noise[0]} is given"
        raise InvalidArgument(noise[1], later[noise[1]], allowed)
    kept = dict(earlier)
    if rates:  # keep the schedule that follows from earlier sizes, except for the keys set now
        kept = _sizes_as_rates(kept)
    for name in (*(RATE_KEYS if sizes else ()), *(NOISE_KEYS if noise else ())):
        kept.pop(name, None)
    unaccounted = (*earlier.get("unaccounted", ()), *later.get("unaccounted", ()))
    return {**kept, **later, "unaccounted": tuple(dict.fromkeys(unaccounted))}


def _given_keys(section: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if section.get(name) is not None]


def _sizes_as_rates(section: Mapping[str, Any]) -> dict[str, Any]:
    """Replace public sizes by the sampling rate, steps and expected batch size that follow."""
    rest = {name: value for name, value in section.items() if name not in SIZE_KEYS}
    given = _given_keys(section, SIZE_KEYS)
    if not given:
        return rest
    for name in SIZE_KEYS:
        if name not in given:
            raise InvalidArgument(name, None, f"given: {', '.join(SIZE_KEYS)} belong together")
    size, batch, epochs = (section[name] for name in SIZE_KEYS)
    rate, steps = schedule_from_sizes(size, batch, epochs)
    return {**rest, "sampling_rate": rate, "steps": steps, "expected_batch_size": float(batch)}


def _privacy(section: Mapping[str, Any]) -> PrivacySettings:
    values = _sizes_as_rates(section)
    target, noise = (values.pop(name, None) for name in NOISE_KEYS)
    if target is None and noise is None:
        allowed = (
            "given, or a target_epsilon that determines it, or a preset "
            "(dpaudit train --list-presets)"
        )
        raise InvalidArgument("noise_multiplier", None, allowed)
    if noise == 0:
        allowed = "above 0: without noise, no epsilon is finite; target_epsilon finds the noise"
        raise InvalidArgument("noise_multiplier", noise, allowed)
    # With a target epsilon, the noise is found below: any value serves to check the rest.
    privacy = PrivacySettings(**values, noise_multiplier=1.0 if noise is None else noise)
    return privacy if target is None else with_calibrated_noise(privacy, target)
