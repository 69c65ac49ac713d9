"""Attacks that train a model: the attack classifier, and quantile regression.

Source of the classifier: Shokri et al. 2017, arXiv:1610.05820, section V. One classifier with
the label as a feature takes the place of one classifier per class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import BoolArray, FloatArray
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra, require_open_unit

try:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.metrics import mean_pinball_loss
except ImportError as error:  # pragma: no cover - needs an environment without scikit-learn
    raise MissingExtra("scikit-learn", "train") from error


MAX_TRAINING_ROWS = 100_000  # more rows cost time and improve the classifier little


def attack_classifier(
    outputs: NDArray[np.float32],
    reference_outputs: NDArray[np.float32],
    reference_member: BoolArray,
    *,
    seed: int,
) -> RecordScores:
    """Score by the log-odds of a classifier that is trained on reference models.

    The classifier (gradient-boosted trees) learns membership from the outputs of the reference
    models.

    Args:
        outputs: Features of the target's outputs, shape ``(records, features)``, for example of
            ``output_signals.classifier_features``.
        reference_outputs: The same of the reference models, shape
            ``(models, records, features)``.
        reference_member: Whether the model trained on the record, shape ``(models, records)``.
        seed: Seed of the classifier, and of the choice of its training rows.

    Returns:
        Log-odds of membership.

    Raises:
        InvalidArgument: If shapes do not fit, or all or none of the pairs of model and record
            are members.

    References:
        Shokri et al. (2017), arXiv:1610.05820, section V.

    Example:
        >>> member = np.array([[True, False] * 50])
        >>> features = np.where(member[..., None], 3.0, 0.0).astype(np.float32)
        >>> scores = attack_classifier(features[0], features, member, seed=0).values
        >>> bool(scores[::2].min() > scores[1::2].max())
        True
    """
    if (
        reference_outputs.shape[1:] != outputs.shape
        or reference_member.shape != reference_outputs.shape[:2]
    ):
        given = f"shapes {outputs.shape}, {reference_outputs.shape}, {reference_member.shape}"
        raise InvalidArgument(
            "reference_outputs", given, "of the records and features of the target"
        )
    rows, member = reference_outputs.reshape(-1, outputs.shape[1]), reference_member.reshape(-1)
    if member.all() or not member.any():
        raise InvalidArgument(
            "reference_member", f"all {member[0]}", "both members and non-members"
        )
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MAX_TRAINING_ROWS]
    model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(rows[chosen], member[chosen])
    return RecordScores(np.asarray(model.decision_function(outputs), dtype=np.float64))


# Quantile regression: the confidence of a model that did not train on a similar record.


QUANTILE_FPR = 0.05
"""False-positive rate of the threshold 0 by default."""


@dataclass(frozen=True)
class QuantileSettings:
    """Settings of the trees of a quantile regression.

    Attributes:
        trees: Number of trees, at least 1.
        leaves: Largest number of leaves of a tree, at least 2.
        records_per_leaf: Least number of records of a leaf, at least 1.
    """

    trees: int = 100
    leaves: int = 31
    records_per_leaf: int = 20

    def model(self, quantile: float, seed: int) -> HistGradientBoostingRegressor:
        """Return an untrained regression.

        Args:
            quantile: The quantile, in (0, 1).
            seed: Seed of the regression.

        Returns:
            A model with the methods ``fit`` and ``predict``.
        """
        return HistGradientBoostingRegressor(
            loss="quantile",
            quantile=quantile,
            max_iter=self.trees,
            max_leaf_nodes=self.leaves,
            min_samples_leaf=self.records_per_leaf,
            random_state=seed,
        )


QUANTILE_GRID = (
    QuantileSettings(),
    QuantileSettings(trees=25),
    QuantileSettings(leaves=4, records_per_leaf=5),
    QuantileSettings(trees=25, leaves=4, records_per_leaf=5),
)
VALIDATION_SHARE = 0.3  # of the non-members, to choose settings
MIN_VALIDATION_RECORDS = 3


def tune_quantile_regression(
    nonmember_features: NDArray[np.float32],
    nonmember_confidences: FloatArray,
    *,
    seed: int,
    fpr: float = QUANTILE_FPR,
) -> QuantileSettings:
    """Choose the settings of a quantile regression on known non-members alone.

    Of ``QUANTILE_GRID``, the settings with the least pinball loss on a random part of the
    non-members are chosen, after training on the others.

    Args:
        nonmember_features: Features of records on which the target did not train, shape
            ``(nonmembers, dimensions)``.
        nonmember_confidences: The target's confidences on them, shape ``(nonmembers,)``.
        seed: Seed of the split and of the regressions.
        fpr: The quantile is 1 - ``fpr``; above 0 and below 1.

    Returns:
        The settings; the default ones with fewer than 10 records.

    Raises:
        InvalidArgument: If features and confidences differ in length or are empty, or ``fpr`` is
            out of range.

    References:
        Bertran et al. (2023), arXiv:2307.03694: settings by the pinball loss on public records.

    Example:
        >>> features = np.random.default_rng(0).random((200, 1), dtype=np.float32)
        >>> tune_quantile_regression(features, features[:, 0].astype(float), seed=0).leaves
        31
    """
    require_open_unit("fpr", fpr)
    _require_same_length(nonmember_features, nonmember_confidences)
    order = np.random.default_rng([seed, 2]).permutation(len(nonmember_features))
    held = int(VALIDATION_SHARE * len(order))
    if held < MIN_VALIDATION_RECORDS:
        return QuantileSettings()
    train, check = order[held:], order[:held]

    def loss(settings: QuantileSettings) -> float:
        model = settings.model(1 - fpr, seed)
        model.fit(nonmember_features[train], nonmember_confidences[train])
        found = model.predict(nonmember_features[check])
        return float(mean_pinball_loss(nonmember_confidences[check], found, alpha=1 - fpr))

    return min(QUANTILE_GRID, key=loss)


def quantile_regression(
    features: NDArray[np.float32],
    confidences: FloatArray,
    *,
    nonmember_features: NDArray[np.float32],
    nonmember_confidences: FloatArray,
    seed: int,
    fpr: float = QUANTILE_FPR,
    settings: QuantileSettings | None = None,
) -> RecordScores:
    """Score by the confidence minus a predicted quantile of it among similar non-members.

    Gradient-boosted trees learn the quantile as a function of the features, from records that
    the target did not train on. No reference models are needed.

    Args:
        features: Shape ``(records, dimensions)``.
        confidences: The target's logit-scaled confidences on them, shape ``(records,)``.
        nonmember_features: Features of other records, on which the target did not train, shape
            ``(nonmembers, dimensions)``.
        nonmember_confidences: The target's confidences on those, shape ``(nonmembers,)``.
        seed: Seed of the regression.
        fpr: The quantile is 1 - ``fpr``, so the threshold 0 is meant for this false-positive
            rate; above 0 and below 1.
        settings: Settings of the trees; None for the default ones.

    Returns:
        Differences of logit-scaled confidences.

    Raises:
        InvalidArgument: If features and confidences differ in length or are empty, or ``fpr`` is
            out of range.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> nonmembers = generator.random((200, 1), dtype=np.float32)
        >>> confidences = nonmembers[:, 0].astype(float)
        >>> scores = quantile_regression(
        ...     nonmembers[:2],
        ...     confidences[:2] + np.array([5.0, 0.0]),
        ...     nonmember_features=nonmembers,
        ...     nonmember_confidences=confidences,
        ...     seed=0,
        ... )
        >>> bool(scores.values[0] > 4 > scores.values[1])
        True
    """
    require_open_unit("fpr", fpr)
    _require_same_length(features, confidences)
    _require_same_length(nonmember_features, nonmember_confidences)
    model = (settings or QuantileSettings()).model(1 - fpr, seed)
    model.fit(nonmember_features, nonmember_confidences)
    return RecordScores(confidences - model.predict(features))


def _require_same_length(features: NDArray[np.float32], confidences: FloatArray) -> None:
    """Refuse features that are no matrix with one row per confidence, or have no row."""
    if features.ndim != 2 or len(features) != len(confidences) or len(features) == 0:
        given = f"features of shape {features.shape}, confidences {confidences.shape}"
        raise InvalidArgument(
            "features", given, "a matrix with one row per confidence, and at least one row"
        )
