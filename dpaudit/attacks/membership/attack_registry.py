"""Registry of the attacks, and the inputs that they get of one target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.output_attacks import (
    calibrated_loss,
    confidence_scores,
    correct_under_perturbation,
    gaussian_jitter,
    label_only_scores,
    random_flips,
)
from dpaudit.attacks.membership.reference_attacks import (
    lira_offline,
    lira_online,
    rmia_offline,
    rmia_online,
)
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument

# Of the label-only attack.
PERTURBED_COPIES = 20  # with the record itself
FLIP_RATE = 0.02  # of binary features
RELATIVE_JITTER = 0.2  # of the standard deviation of all features


@dataclass(frozen=True)
class ReferenceSignals:
    """Outputs of reference models on the target's records.

    Attributes:
        references: Confidences, and the records that each model trained on, shape
            ``(models, records)``.
        outputs: Features for the attack classifier, shape ``(models, records, features)``.
    """

    references: ReferenceConfidences
    outputs: NDArray[np.float32]

    def first(self, models: int) -> ReferenceSignals:
        """Return the outputs of the first models.

        Args:
            models: How many models, at least 1.

        Returns:
            The first rows of all arrays.
        """
        return ReferenceSignals(self.references.first(models), self.outputs[:models])


@dataclass(frozen=True)
class AttackTarget:
    """One target model, and the records whose membership is inferred.

    Attributes:
        model: The target, for attacks that query it.
        features: Shape ``(records, ...)``.
        labels: True class of each record, shape ``(records,)``.
        confidences: The target's logit-scaled confidences, shape ``(records,)``.
        outputs: Features for the attack classifier, shape ``(records, features)``.
        known_nonmembers: Whether the attacker knows that the target did not train on the
            record, shape ``(records,)``.
        reference_signals: Outputs of reference models; None without reference models.
        seed: Seed of the attacks.
    """

    model: TargetModel
    features: NDArray[np.float32]
    labels: IntArray
    confidences: FloatArray
    outputs: NDArray[np.float32]
    known_nonmembers: BoolArray
    reference_signals: ReferenceSignals | None
    seed: int

    def require_references(self) -> ReferenceSignals:
        """Return the outputs of the reference models.

        Returns:
            ``reference_signals``, which is not None.

        Raises:
            InvalidArgument: If there are no reference models.
        """
        if self.reference_signals is None:
            raise InvalidArgument("references", 0, "at least 1 for this attack")
        return self.reference_signals


def _label_only(target: AttackTarget) -> RecordScores:
    """Return label-only scores: features of 0 and 1 are flipped, others get normal noise."""
    features = target.features
    binary = bool(((features == 0) | (features == 1)).all())
    copies = correct_under_perturbation(
        target.model,
        features,
        target.labels,
        perturb=random_flips(FLIP_RATE)
        if binary
        else gaussian_jitter(RELATIVE_JITTER * float(features.std())),
        copies=PERTURBED_COPIES,
        generator=np.random.default_rng(target.seed),
    )
    return label_only_scores(copies)


def _quantile(target: AttackTarget) -> RecordScores:
    """Return scores of quantile regression on the known non-members."""
    from dpaudit.attacks.membership.learned_attacks import quantile_regression  # noqa: PLC0415  heavy

    flat = target.features.reshape(len(target.features), -1)
    return quantile_regression(
        flat,
        target.confidences,
        nonmember_features=flat[target.known_nonmembers],
        nonmember_confidences=target.confidences[target.known_nonmembers],
        seed=target.seed,
    )


def _classifier(target: AttackTarget) -> RecordScores:
    """Return scores of a classifier that is trained on the reference models."""
    from dpaudit.attacks.membership.learned_attacks import attack_classifier  # noqa: PLC0415  heavy

    reference_signals = target.require_references()
    return attack_classifier(
        target.outputs,
        reference_signals.outputs,
        reference_signals.references.member,
        seed=target.seed,
    )


def _with_references(
    attack: Callable[[FloatArray, ReferenceConfidences], RecordScores],
) -> Callable[[AttackTarget], RecordScores]:
    """Return an attack on confidences and references as an attack on a target."""
    return lambda target: attack(target.confidences, target.require_references().references)


ATTACKS: dict[str, Callable[[AttackTarget], RecordScores]] = {
    "loss": lambda target: confidence_scores(target.confidences),
    "calibrated": _with_references(calibrated_loss),
    "lira-online": _with_references(lira_online),
    "lira-offline": _with_references(lira_offline),
    "rmia-online": _with_references(rmia_online),
    "rmia-offline": _with_references(rmia_offline),
    "label-only": _label_only,
    "quantile": _quantile,
    "classifier": _classifier,
}
"""Each attack under its name: a function from a target to the scores of its records."""

DEFAULT_ATTACKS = (
    "loss",
    "calibrated",
    "lira-online",
    "lira-offline",
    "rmia-online",
    "rmia-offline",
)
"""The attacks that run where none is named."""

REFERENCE_FREE_ATTACKS = frozenset({"loss", "label-only", "quantile"})
"""Names of the attacks that need no reference models."""


def need_references(attacks: Iterable[str]) -> bool:
    """Return whether any of these attacks needs reference models.

    Args:
        attacks: Names of attacks; unknown names count as attacks that need them.

    Returns:
        True if one is not in ``REFERENCE_FREE_ATTACKS``.

    Example:
        >>> need_references(["loss"]), need_references(["loss", "lira-online"])
        (False, True)
    """
    return bool(set(attacks) - REFERENCE_FREE_ATTACKS)
