"""Membership inference on regression models that are trained on given data."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression
from sklearn.neural_network import MLPRegressor

from dpaudit.attacks.membership.attack_registry import (
    CONFIDENCE_ATTACKS,
    AttackTarget,
    ReferenceSignals,
)
from dpaudit.attacks.membership.reference_models import ReferenceConfidences, random_halves
from dpaudit.attacks.membership.regression_signals import (
    regression_confidence,
    root_mean_square_error,
)
from dpaudit.trainer.data import load_regression_records
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import DataSettings, NoProgress, Progress
from dpaudit.workflow.attack.attack_settings import AttackSettings
from dpaudit.workflow.attack.attacked_target import AttackedTarget
from dpaudit.workflow.attack.model_attacks import (
    MIN_BATCH_SIZE,
    draw_indices,
    evaluate_attacks,
    known_nonmembers,
)
from dpaudit.workflow.attack.score_evaluation import AttackOutcome

REGRESSION_ATTACKS = ("loss", *CONFIDENCE_ATTACKS, "quantile")
REGRESSION_MODELS = ("linear", "mlp")
HIDDEN_UNITS = (64, 64)
MAX_TRAINING_ERROR = 10.0  # in deviations of the values; guessing their mean has 1


class UnqueriedModel:
    """A target that the attacks on regression models do not query."""

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Refuse a query.

        Args:
            features: Not read.

        Returns:
            Nothing.

        Raises:
            InvalidArgument: Always.
        """
        raise InvalidArgument("attack", "a query", "one of " + ", ".join(REGRESSION_ATTACKS))


def attack_regression(
    data: DataSettings, settings: AttackSettings, *, progress: Progress | None = None
) -> AttackOutcome:
    """Train regression models on halves of the data, and attack them by their errors.

    Features and labels are scaled to mean 0 and deviation 1. The scale of the confidences is the
    root mean square error of the reference models on records that they did not train on.

    Args:
        data: The records; the label column has the values.
        settings: The attacks, and how models are trained; ``model`` is ``mlp`` or ``linear``.
        progress: Receives finished steps; None: not reported.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the data or a setting cannot be used.
    """
    _require_usable(settings)
    features, values = load_regression_records(data)
    which = draw_indices(len(values), max_records=settings.records, seed=settings.seed)
    inputs, values = _standard(features[which].reshape(len(which), -1)), _standard(values[which])
    counts = (settings.targets, settings.references if settings.need_references else 0)
    member = np.concatenate(
        [
            random_halves(models, len(values), seed=settings.seed + offset)
            for offset, models in enumerate(counts)
            if models
        ]
    )
    predictions = _trained_predictions(inputs, values, member, settings, progress)
    targets = _targets(inputs, values, predictions, member, settings)
    attacked = (
        f"{settings.targets} regression models ({settings.model}) trained on halves of "
        f"{len(values)} records, with {counts[1]} references"
    )
    return evaluate_attacks(targets, settings, attacked, progress)


def _require_usable(settings: AttackSettings) -> None:
    """Refuse settings for classifiers."""
    if settings.model not in REGRESSION_MODELS:
        allowed = f"{' or '.join(REGRESSION_MODELS)} for regression"
        raise InvalidArgument("model", settings.model, allowed)
    others = [name for name in settings.attacks if name not in REGRESSION_ATTACKS]
    if others:
        allowed = f"for regression, some of {', '.join(REGRESSION_ATTACKS)}"
        raise InvalidArgument("attack", others, allowed)
    for name, unusual in (
        ("queries", settings.queries > 1),
        ("without_labels", not settings.labels_known),
        ("infer", bool(settings.infer)),
        ("by", settings.by is not None),
    ):
        if unusual:
            raise InvalidArgument(name, "given", "left out for regression")


def _standard(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return values with mean 0 and deviation 1 in each column."""
    wide = values.astype(np.float64)
    deviation = wide.std(axis=0)
    return np.asarray((wide - wide.mean(axis=0)) / np.where(deviation > 0, deviation, 1))


def _trained_predictions(
    features: NDArray[np.float64],
    values: NDArray[np.float64],
    member: NDArray[np.bool_],
    settings: AttackSettings,
    progress: Progress | None,
) -> NDArray[np.float64]:
    """Return predictions of one trained model per row of ``member``, on all records."""
    progress = progress or NoProgress()
    progress.start("training regression models", len(member))
    found = []
    for number, inside in enumerate(member):
        model = _untrained(settings, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the epochs are chosen
            _fit(model, features[inside], values[inside], settings)
        found.append(model.predict(features))
        progress.advance()
    return np.array(found)


def _fit(
    model: Any, features: NDArray[np.float64], values: NDArray[np.float64], settings: AttackSettings
) -> None:
    """Train a model; refuse a learning rate at which training diverges."""
    try:
        model.fit(features, values)
        error = root_mean_square_error(model.predict(features), values)
        diverged = not error < MAX_TRAINING_ERROR
    except ValueError:  # scikit-learn's error for weights that are not finite
        diverged = True
    if diverged:
        allowed = "small enough that training does not diverge"
        raise InvalidArgument("learning_rate", settings.learning_rate, allowed)


def _untrained(settings: AttackSettings, number: int) -> Any:
    """Return an untrained model; its seed depends on its number."""
    if settings.model == "linear":
        return LinearRegression()
    return MLPRegressor(
        hidden_layer_sizes=HIDDEN_UNITS,
        max_iter=settings.epochs,
        n_iter_no_change=settings.epochs,
        batch_size=settings.batch_size or MIN_BATCH_SIZE,
        learning_rate_init=settings.learning_rate,
        alpha=0.0,
        random_state=int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0]),
    )


def _targets(
    features: NDArray[np.float64],
    values: NDArray[np.float64],
    predictions: NDArray[np.float64],
    member: NDArray[np.bool_],
    settings: AttackSettings,
) -> list[AttackedTarget]:
    """Return the targets, with the confidences of all models."""
    first, shadows = settings.targets, None
    outside = ~member[first:] if len(member) > first else np.ones_like(member[:0])
    known = [known_nonmembers(row, settings.seed + k) for k, row in enumerate(member[:first])]
    if len(member) > first:
        errors = (predictions[first:] - values)[outside]
    else:  # the attacker has the target's errors on known non-members alone
        errors = (predictions[0] - values)[known[0]]
    # Values have deviation 1: the usual scale where the attacker has no error at all.
    scale = root_mean_square_error(errors, np.zeros(len(errors))) if len(errors) else 1.0
    confidences = regression_confidence(predictions, values, scale=scale)
    if len(member) > first:
        references = ReferenceConfidences(confidences[first:], member[first:])
        nothing = np.zeros((len(references), len(values), 0), dtype=np.float32)
        shadows = ReferenceSignals(references, nothing)
    return [
        AttackedTarget(
            AttackTarget(
                model=UnqueriedModel(),
                features=features.astype(np.float32),
                labels=np.zeros(len(values), dtype=np.int64),
                confidences=confidences[place],
                outputs=np.zeros((len(values), 0), dtype=np.float32),
                known_nonmembers=known[place],
                reference_signals=shadows,
                seed=settings.seed + place,
            ),
            member[place],
        )
        for place in range(settings.targets)
    ]
