"""The attacks by name, on all that an attacker holds of one target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.calibrated import calibrated
from dpaudit.attacks.membership.label_only import flipped, jittered, label_only, stays_right
from dpaudit.attacks.membership.lira import lira_offline, lira_online
from dpaudit.attacks.membership.loss import by_confidence
from dpaudit.attacks.membership.models import Model
from dpaudit.attacks.membership.references import References
from dpaudit.attacks.membership.rmia import rmia_offline, rmia_online
from dpaudit.attacks.membership.scores import Array, RecordScores
from dpaudit.vocabulary.errors import InvalidArgument

COPIES = 20
FLIP_RATE = 0.02
JITTER = 0.2  # of the features' own standard deviation


@dataclass(frozen=True)
class Shadows:
    """What reference models say of the target's records.

    Attributes:
        references: Their confidences, and what they trained on, ``(models, records)``.
        outputs: What the attack classifier reads, shape ``(models, records, features)``.
    """

    references: References
    outputs: NDArray[np.float32]

    def first(self, models: int) -> Shadows:
        """Return the first ``models`` of these."""
        return Shadows(self.references.first(models), self.outputs[:models])


@dataclass(frozen=True)
class Target:
    """One model under attack, and the records whose membership is asked for.

    Attributes:
        model: Answers questions about records.
        features: Shape ``(records, ...)``.
        labels: Shape ``(records,)``.
        confidences: The model's, logit-scaled, shape ``(records,)``.
        outputs: What the attack classifier reads of it, shape ``(records, features)``.
        outside: Records that the attacker knows the model did not train on.
        shadows: Reference models; None where there are none.
        seed: Of what attacks draw at random.
    """

    model: Model
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    confidences: Array
    outputs: NDArray[np.float32]
    outside: NDArray[np.bool_]
    shadows: Shadows | None
    seed: int

    def require_shadows(self) -> Shadows:
        """Return the reference models.

        Raises:
            InvalidArgument: there are none.
        """
        if self.shadows is None:
            raise InvalidArgument("references", 0, "at least 1 for this attack")
        return self.shadows


def _label_only(target: Target) -> RecordScores:
    features = target.features
    binary = bool(((features == 0) | (features == 1)).all())
    copies = stays_right(
        target.model,
        features,
        target.labels,
        perturb=flipped(FLIP_RATE) if binary else jittered(JITTER * float(features.std())),
        copies=COPIES,
        generator=np.random.default_rng(target.seed),
    )
    return label_only(copies)


def _quantile(target: Target) -> RecordScores:
    from dpaudit.attacks.membership.quantile import quantile_regression  # noqa: PLC0415  heavy

    flat = target.features.reshape(len(target.features), -1)
    return quantile_regression(
        flat,
        target.confidences,
        outside_features=flat[target.outside],
        outside_confidences=target.confidences[target.outside],
        seed=target.seed,
    )


def _classifier(target: Target) -> RecordScores:
    from dpaudit.attacks.membership.classifier import attack_classifier  # noqa: PLC0415  heavy

    shadows = target.require_shadows()
    return attack_classifier(
        target.outputs, shadows.outputs, shadows.references.member, seed=target.seed
    )


def _against(
    attack: Callable[[Array, References], RecordScores],
) -> Callable[[Target], RecordScores]:
    return lambda target: attack(target.confidences, target.require_shadows().references)


ATTACKS: dict[str, Callable[[Target], RecordScores]] = {
    "loss": lambda target: by_confidence(target.confidences),
    "calibrated": _against(calibrated),
    "lira-online": _against(lira_online),
    "lira-offline": _against(lira_offline),
    "rmia-online": _against(rmia_online),
    "rmia-offline": _against(rmia_offline),
    "label-only": _label_only,
    "quantile": _quantile,
    "classifier": _classifier,
}
"""Each attack by name: scores of all of the target's records."""

ALONE = frozenset({"loss", "label-only", "quantile"})
"""Those that need no reference models."""


def need_references(attacks: Iterable[str]) -> bool:
    """Return whether any of these attacks needs reference models."""
    return bool(set(attacks) - ALONE)
