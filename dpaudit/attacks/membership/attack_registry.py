"""Registry of the attacks, and the inputs that they get of one target."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.augmented_queries import mean_over_queries
from dpaudit.attacks.membership.lira import lira_offline, lira_online
from dpaudit.attacks.membership.output_attacks import (
    calibrated_loss,
    confidence_scores,
    correct_under_perturbation,
    gaussian_jitter,
    label_only_scores,
    random_flips,
)
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.rmia import (
    auc,
    base_offline,
    base_online,
    informia_offline,
    informia_online,
    rmia_offline,
    rmia_online,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.vocabulary.arrays import BoolArray, FloatArray, IntArray
from dpaudit.vocabulary.errors import InvalidArgument

# Of the label-only attack.
PERTURBED_COPIES = 20  # with the record itself
FLIP_RATE = 0.02  # of binary features, without reference models
RELATIVE_JITTER = 0.2  # of the standard deviation of all features, without reference models
FLIP_RATES = (0.01, 0.02, 0.05, 0.1)
RELATIVE_JITTERS = (0.05, 0.1, 0.2, 0.4)
LABEL_ONLY_TUNING_MODELS = 2  # each is queried as often as the target, for each size


@dataclass(frozen=True)
class ReferenceSignals:
    """Outputs of reference models on the target's records.

    Attributes:
        references: Confidences, and the records that each model trained on, shape
            ``(models, records)``.
        outputs: Features for the attack classifier, shape ``(models, records, features)``.
        models: The reference models, to tune attacks that query the target; may be empty.
        copies: Confidences on altered copies of the records; one per further query.
    """

    references: ReferenceConfidences
    outputs: NDArray[np.float32]
    models: tuple[TargetModel, ...] = ()
    copies: tuple[ReferenceConfidences, ...] = ()

    def first(self, models: int) -> ReferenceSignals:
        """Return the outputs of the first models.

        Args:
            models: How many models, at least 1.

        Returns:
            The first rows of all arrays.
        """
        return ReferenceSignals(
            self.references.first(models),
            self.outputs[:models],
            self.models[:models],
            tuple(copy.first(models) for copy in self.copies),
        )


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
        copies: The target's confidences on altered copies of the records, as those of the
            reference models, shape ``(copies, records)``; None without further queries.
    """

    model: TargetModel
    features: NDArray[np.float32]
    labels: IntArray
    confidences: FloatArray
    outputs: NDArray[np.float32]
    known_nonmembers: BoolArray
    reference_signals: ReferenceSignals | None
    seed: int
    copies: FloatArray | None = None

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
    """Return label-only scores: features of 0 and 1 are flipped, others get normal noise.

    The size of the changes is the one with the largest AUC for reference models in the target's
    place; without reference models, the usual one.
    """
    binary = bool(((target.features == 0) | (target.features == 1)).all())
    usual = FLIP_RATE if binary else RELATIVE_JITTER
    size = _tuned_size(target, binary) if _can_tune(target) else usual
    return _label_only_of_size(target, target.model, binary, size)


def _can_tune(target: AttackTarget) -> bool:
    signals = target.reference_signals
    return signals is not None and len(signals.models) > 0


def _tuned_size(target: AttackTarget, binary: bool) -> float:
    """Return the size of changes with the largest mean AUC for some reference models."""
    signals = target.require_references()
    sizes = FLIP_RATES if binary else RELATIVE_JITTERS
    pairs = list(zip(signals.models, signals.references.member, strict=True))
    pairs = [(model, member) for model, member in pairs if member.any() and not member.all()]
    if not pairs:
        return FLIP_RATE if binary else RELATIVE_JITTER
    aucs = [
        np.mean(
            [
                auc(_label_only_of_size(target, model, binary, size).values, member)
                for model, member in pairs[:LABEL_ONLY_TUNING_MODELS]
            ]
        )
        for size in sizes
    ]
    return sizes[int(np.argmax(aucs))]


def _label_only_of_size(
    target: AttackTarget, model: TargetModel, binary: bool, size: float
) -> RecordScores:
    """Return label-only scores of a model on the target's records."""
    features = target.features
    copies = correct_under_perturbation(
        model,
        features,
        target.labels,
        perturb=random_flips(size) if binary else gaussian_jitter(size * float(features.std())),
        copies=PERTURBED_COPIES,
        generator=np.random.default_rng(target.seed),
    )
    return label_only_scores(copies)


def _quantile(target: AttackTarget) -> RecordScores:
    """Return scores of quantile regression on the known non-members."""
    from dpaudit.attacks.membership.learned_attacks import (  # noqa: PLC0415  heavy
        quantile_regression,
        tune_quantile_regression,
    )

    flat, known = target.features.reshape(len(target.features), -1), target.known_nonmembers
    features, confidences = flat[known], target.confidences[known]
    return quantile_regression(
        flat,
        target.confidences,
        nonmember_features=features,
        nonmember_confidences=confidences,
        seed=target.seed,
        settings=tune_quantile_regression(features, confidences, seed=target.seed),
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


ConfidenceAttack = Callable[[FloatArray, ReferenceConfidences], RecordScores]
"""Scores a target's confidences against those of reference models."""


def _with_references(attack: ConfidenceAttack) -> Callable[[AttackTarget], RecordScores]:
    """Return an attack on confidences and references as an attack on a target."""

    def on_target(target: AttackTarget) -> RecordScores:
        signals = target.require_references()
        if target.copies is None:
            return attack(target.confidences, signals.references)
        confidences = np.concatenate([target.confidences[None], target.copies])
        return mean_over_queries(attack, confidences, [signals.references, *signals.copies])

    return on_target


def _confidence(target: AttackTarget) -> RecordScores:
    """Return confidences, or their means over the queries of each record."""
    if target.copies is None:
        return confidence_scores(target.confidences)
    queries = np.concatenate([target.confidences[None], target.copies])
    return confidence_scores(queries.mean(axis=0))


CONFIDENCE_ATTACKS: dict[str, ConfidenceAttack] = {
    "calibrated": calibrated_loss,
    "lira-online": lira_online,
    "lira-offline": lira_offline,
    "rmia-online": rmia_online,
    "rmia-offline": rmia_offline,
    "informia-online": informia_online,
    "informia-offline": informia_offline,
    "base-online": base_online,
    "base-offline": base_offline,
}
"""The attacks that read nothing but confidences of the target and of reference models."""

ATTACKS: dict[str, Callable[[AttackTarget], RecordScores]] = {
    "loss": _confidence,
    **{name: _with_references(attack) for name, attack in CONFIDENCE_ATTACKS.items()},
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
