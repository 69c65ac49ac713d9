"""Settings of a federated run: defaults, a configuration file and options, merged. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    DSSGD,
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
    SecureAggregationSettings,
    SelectiveSettings,
    require_secure_settings,
)
from dpaudit.vocabulary.settings import DataSettings, ModelSettings, SpeedSettings
from dpaudit.workflow.train.federated_plan import (
    has_planned_mechanism,
    with_calibrated_federation,
)
from dpaudit.workflow.train.settings_layers import (
    NOISE_KEYS,
    SettingsLayer,
    document_of,
    read_sections,
    with_optional_fields,
)

_KINDS: Mapping[str, type[msgspec.Struct]] = {
    "data": DataSettings,
    "federation": FederationSettings,
    "privacy": FederatedPrivacy,
    "local": LocalTraining,
    "selective": SelectiveSettings,
    "secure_aggregation": SecureAggregationSettings,
    "model": ModelSettings,
    "speed": SpeedSettings,
}
_OPTIONAL = "secure_aggregation"
"""The section that is in force only where a layer has it, be it empty."""
_SECTIONS = {
    name: with_optional_fields(kind, *([("target_epsilon", float)] if name == "privacy" else []))
    for name, kind in _KINDS.items()
}
_FILE = document_of(_SECTIONS, "schema_version")


def read_federated_file(path: Path) -> SettingsLayer:
    """Read a configuration file of a federated run: a run's config.toml, or one with fewer keys.

    Args:
        path: The file; a relative path of records is relative to it.

    Returns:
        Settings by section and key.

    Raises:
        InvalidArgument: If the file is missing or no TOML, or has an unknown key or a value of
            another type; the message contains the key.
    """
    return read_sections(path, _FILE, _SECTIONS)


def merge_federated_settings(layers: Sequence[SettingsLayer]) -> SettingsLayer:
    """Merge layers of settings.

    Args:
        layers: Settings by section and key; later layers override earlier ones. Unaccounted uses
            of the records add up.

    Returns:
        The merged settings.

    Raises:
        InvalidArgument: If one layer gives both a target epsilon and a noise multiplier.
    """
    total: dict[str, Mapping[str, Any]] = {name: {} for name in _KINDS if name != _OPTIONAL}
    for layer in layers:
        for name, later in layer.items():
            earlier = total.get(name, {})
            total[name] = (
                _merge_privacy(earlier, later) if name == "privacy" else {**earlier, **later}
            )
    return total


def _merge_privacy(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Mapping[str, Any]:
    """Merge privacy settings: a way to set the noise in ``later`` removes the other one."""
    noise = [name for name in NOISE_KEYS if later.get(name) is not None]
    if len(noise) > 1:
        allowed = f"left out where {noise[0]} is given"
        raise InvalidArgument(noise[1], later[noise[1]], allowed)
    kept = {name: value for name, value in earlier.items() if not noise or name not in NOISE_KEYS}
    unaccounted = (*earlier.get("unaccounted", ()), *later.get("unaccounted", ()))
    return {**kept, **later, "unaccounted": tuple(dict.fromkeys(unaccounted))}


def build_federated_config(sections: SettingsLayer) -> FederatedConfig:
    """Build the configuration of a federated run; its types check each value.

    Args:
        sections: The merged settings.

    Returns:
        The configuration; a target epsilon was replaced by the noise multiplier that meets it.

    Raises:
        InvalidArgument: If a value is not allowed or missing.
    """
    values = {name: dict(section) for name, section in sections.items()}
    target, noise = (values["privacy"].pop(name, None) for name in NOISE_KEYS)
    if target is None and noise is None:
        noise = _default_noise(values["federation"].get("strategy"))
    # With a target epsilon, the noise is found below: any value serves to check the rest.
    values["privacy"]["noise_multiplier"] = 1.0 if noise is None else noise
    secure = values.get(_OPTIONAL)
    config = FederatedConfig(
        data=DataSettings(**values["data"]),
        federation=FederationSettings(**values["federation"]),
        privacy=FederatedPrivacy(**values["privacy"]),
        local=LocalTraining(**values["local"]),
        selective=SelectiveSettings(**values["selective"]),
        secure_aggregation=None if secure is None else SecureAggregationSettings(**secure),
        model=ModelSettings(**values["model"]),
        speed=SpeedSettings(**values["speed"]),
    )
    if target is None:
        return config
    if config.secure_aggregation is None and not has_planned_mechanism(config):
        allowed = (
            f"left out for {DSSGD}, whose noise is set by epsilon_per_epoch (or use "
            "dssgd-corrected)"
        )
        raise InvalidArgument("target_epsilon", target, allowed)
    if config.secure_aggregation is not None:
        require_secure_settings(config, config.secure_aggregation)
    return with_calibrated_federation(config, target)


def _default_noise(strategy: object) -> float:
    """Return the noise multiplier where none is given: only ``dssgd`` has noise of its own."""
    if strategy == DSSGD:  # its noise follows from epsilon_per_epoch
        return 0.0
    raise InvalidArgument("noise_multiplier", None, "given, or a target_epsilon")


def federated_origins(
    settings: FederatedConfig, layers: Sequence[tuple[str, SettingsLayer]]
) -> dict[str, str]:
    """Return which layer each setting comes from.

    Args:
        settings: The merged settings.
        layers: Name and content of each layer, the last one overrides the others; a setting in
            none of them is a default.

    Returns:
        By ``section.key``: the name of the layer.
    """
    sections = msgspec.to_builtins(settings)
    return {
        f"{section}.{key}": _origin(section, key, layers)
        for section in _KINDS
        for key in sections[section] or ()
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
    return "default"
