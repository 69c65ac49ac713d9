"""Refuse settings of a federated run that its strategy does not use. No torch, no data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dpaudit.vocabulary.errors import InvalidArgument, UnreadableFile
from dpaudit.vocabulary.federation import (
    DP_FEDAVG,
    DSSGD,
    DSSGD_CORRECTED,
    FEDAVG,
    FederatedConfig,
    require_secure_settings,
)
from dpaudit.workflow.train.federated_plan import has_planned_mechanism, planned_federated_epsilon
from dpaudit.workflow.train.settings_layers import SettingsLayer

_ADAPTIVE = ("target_quantile", "quantile_noise", "quantile_learning_rate")
_PUBLISHED = ("gradient_bound", "threshold", "selection", "epsilon_per_epoch")
_SELECTIVE = (*_PUBLISHED, "upload_fraction", "download_fraction", "counter_decay", "order")
_QUANTILES = ("adaptive_clipping", *_ADAPTIVE)

_UNUSED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    FEDAVG: {"privacy": _QUANTILES, "selective": _SELECTIVE},
    DP_FEDAVG: {"local": ("expected_batch_size",), "selective": _SELECTIVE},
    DSSGD: {
        "privacy": (*_QUANTILES, "clip_norm"),
        "local": ("server_learning_rate", "expected_batch_size"),
    },
    DSSGD_CORRECTED: {
        "privacy": _QUANTILES,
        "local": ("server_learning_rate",),
        "selective": _PUBLISHED,
    },
}
"""Keys that a strategy does not read, by strategy and section."""

Key = tuple[str, str]


def require_used_settings(sections: SettingsLayer, defaults: SettingsLayer) -> None:
    """Refuse settings that the run would not use, unless they have their default.

    A run's own config.toml has every key, so defaults are allowed.

    Args:
        sections: The merged settings by section and key.
        defaults: Defaults of the settings; a key without one has the default None.

    Raises:
        InvalidArgument: If a setting would have no effect; the message contains its key.

    Example:
        >>> own = {"federation": {"strategy": "fedavg"}, "privacy": {"adaptive_clipping": True}}
        >>> require_used_settings(own, {"privacy": {"adaptive_clipping": False}})
        Traceback (most recent call last):
        ...
        dpaudit.vocabulary.errors.InvalidArgument: adaptive_clipping must be left out: fedavg \
does not use it, got True
    """
    for (section, key), reason in _unused(sections).items():
        value = _value(sections, section, key)
        if value not in (None, _value(defaults, section, key)):
            raise InvalidArgument(key, value, f"left out: {reason}")


def _value(sections: SettingsLayer, section: str, key: str) -> Any:
    return sections.get(section, {}).get(key)


def _unused(sections: SettingsLayer) -> dict[Key, str]:
    """Return the keys that these settings make useless, each with the reason."""
    strategy = str(_value(sections, "federation", "strategy"))
    partition = _value(sections, "federation", "partition")
    found = {
        (section, key): f"{strategy} does not use it"
        for section, keys in _UNUSED.get(strategy, {}).items()
        for key in keys
    }
    if partition != "shards":
        found["federation", "shards_per_participant"] = "only partition 'shards' uses it"
    if partition != "dirichlet":
        found["federation", "dirichlet_alpha"] = "only partition 'dirichlet' uses it"
    if not _value(sections, "privacy", "adaptive_clipping"):
        for key in _ADAPTIVE:
            found.setdefault(("privacy", key), "only adaptive_clipping uses it")
    return found


def require_usable_plan(config: FederatedConfig) -> None:
    """Refuse a plan that a training run would refuse before its first round; nothing is read.

    Args:
        config: The settings.

    Raises:
        InvalidArgument: If a setting cannot be used, or the budget does not suffice for a round.
        UnreadableFile: If there is no such file or folder of data.
    """
    source, strategy, selective = config.data.source, config.federation.strategy, config.selective
    if source != "digits" and not os.path.exists(source):
        raise UnreadableFile("data", source, "digits, or a file or folder that exists")
    if config.secure_aggregation is not None:
        require_secure_settings(config, config.secure_aggregation)
    if config.model.average_decay is not None:
        raise InvalidArgument("average_decay", config.model.average_decay, "None in a federation")
    if strategy == DSSGD_CORRECTED and config.model.optimizer != "sgd":
        raise InvalidArgument("optimizer", config.model.optimizer, "sgd for dssgd-corrected")
    if strategy == DSSGD and config.privacy.noise_multiplier > 0:
        allowed = "0 for dssgd, whose noise is set by epsilon_per_epoch (or use dssgd-corrected)"
        raise InvalidArgument("noise_multiplier", config.privacy.noise_multiplier, allowed)
    if selective.epsilon_per_epoch is not None and selective.selection != "threshold":
        raise InvalidArgument(
            "selection", selective.selection, "'threshold' where epsilon_per_epoch is given"
        )
    privacy = config.privacy
    if privacy.adaptive_clipping and not privacy.quantile_noise > privacy.noise_multiplier / 2:
        allowed = f"above half of noise_multiplier {privacy.noise_multiplier:.6g}"
        raise InvalidArgument("quantile_noise", privacy.quantile_noise, allowed)
    _require_sufficient_budget(config)


def _require_sufficient_budget(config: FederatedConfig) -> None:
    """Refuse a budget that no round fits into, and a budget of a run without noise."""
    budget = config.privacy.max_epsilon
    if budget is None:
        return
    if not config.adds_noise:
        raise InvalidArgument(
            "max_epsilon", budget, "left out: the run adds no noise, so no budget suffices"
        )
    if has_planned_mechanism(config):
        least = planned_federated_epsilon(config, rounds=1)
        if not least <= budget:
            raise InvalidArgument(
                "max_epsilon", budget, f"at least the epsilon of one round, {least:.4g}"
            )
