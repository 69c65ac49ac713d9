"""Lower bounds on epsilon from the outputs of models with and without the target record."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from msgspec.structs import replace as with_fields
from numpy.typing import NDArray

from dpaudit.attacks import bounds
from dpaudit.attacks.bounds.gaussian_dp import ASSUMES_GAUSSIAN_TRADEOFF
from dpaudit.attacks.bounds.independent_trials import gaussian_threshold
from dpaudit.attacks.bounds.lower_bound import LowerBound
from dpaudit.attacks.one_run.recomputation import greatest_epsilon
from dpaudit.attacks.one_run.registration import audit_result, registration_digest
from dpaudit.vocabulary.audit import (
    FINAL_MODELS_NAME,
    AuditResult,
    BoundKind,
    BoundStatistics,
    ErrorBand,
    GaussianBand,
    SequentialRanks,
)
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Array = NDArray[np.float64]


class OutputView(Enum):
    """What the auditor reads of a final model; printed with the audit.

    Example:
        >>> OutputView("labels").name
        'LABELS'
    """

    LOGITS = "logits"
    """Logits of every class: the score is the confidence in the target's label."""

    LABELS = "labels"
    """The predicted class alone: the score says whether it is the target's label."""


SAME_SCORES = (
    "all models have the same score, so this audit could not have shown a leak: audit another "
    "target record, or read the logits"
)
SAME_MODELS = (
    "models of one kind have the same logits to the last bit, although their seeds differ: take "
    "all randomness of the trainer from its seed; if it is, audit another target record"
)


@dataclass(frozen=True)
class TrialOutputs:
    """Outputs of independently trained models on one query, pair by pair.

    Attributes:
        with_record: Logits of the models with the target record, shape ``(pairs, classes)``.
        without_record: Logits of the models without it, shape ``(pairs, classes)``.
        label: The class of the target record.

    Raises:
        InvalidArgument: If the shapes differ, a logit is not finite, or the label is no class.

    Example:
        >>> outputs = TrialOutputs(np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]), label=0)
        >>> [scores.tolist() for scores in outputs.scores(OutputView.LABELS)]
        [[1.0], [0.0]]
    """

    with_record: Array
    without_record: Array
    label: int

    def __post_init__(self) -> None:
        shape = self.with_record.shape
        fits = len(shape) == 2 and shape == self.without_record.shape
        if not fits or not np.isfinite([self.with_record, self.without_record]).all():
            given = f"shapes {shape} and {self.without_record.shape}"
            raise InvalidArgument("outputs", given, "finite logits of as many models of each kind")
        if not 0 <= self.label < shape[1]:
            raise InvalidArgument("label", self.label, f"one of the {shape[1]} classes")

    def __len__(self) -> int:
        return len(self.with_record)

    def scores(self, view: OutputView) -> tuple[Array, Array]:
        """Compute one score per model; larger means trained with the target record.

        Args:
            view: What is read of a model.

        Returns:
            Scores of the models with and without the record, shape ``(pairs,)`` each.
        """
        return self._scored(self.with_record, view), self._scored(self.without_record, view)

    def shows_nothing(self, view: OutputView) -> str | None:
        """Describe why the outputs are no evidence, neither for nor against a claim.

        Args:
            view: What is read of a model.

        Returns:
            The reason, with what would decide; None if they are evidence.
        """
        kinds = (self.with_record, self.without_record)
        if len(self) > 1 and any((logits == logits[0]).all() for logits in kinds):
            return SAME_MODELS
        members, nonmembers = self.scores(view)
        return SAME_SCORES if (np.append(members, nonmembers) == members[0]).all() else None

    def _scored(self, logits: Array, view: OutputView) -> Array:
        if view is OutputView.LABELS:
            return np.asarray(logits.argmax(axis=1) == self.label, dtype=np.float64)
        # The gate reads the plans of this module, and must not load scipy.stats for them.
        from dpaudit.attacks.membership.output_signals import logit_scaled_confidence  # noqa: PLC0415

        labels = np.full(len(logits), self.label)
        return np.asarray(logit_scaled_confidence(logits, labels), dtype=np.float64)


@dataclass(frozen=True)
class FinalModelAudit:
    """One way to turn scores into a bound, with its share of the failure probability.

    Attributes:
        name: Name of the bound in an audit.
        method: The estimator and its source.
        thresholds: How thresholds were fixed.
        kind: The kind of its bound.
        share: Its share of the failure probability.
        statistics: The statistics that its bound is a function of.
        count: Reduces scores with and without the record to these statistics.
        bound: Computes the bound from them, delta and confidence.
    """

    name: str
    method: str
    thresholds: str
    kind: BoundKind
    share: float
    statistics: type[BoundStatistics]
    count: Callable[[Array, Array], BoundStatistics]
    bound: Callable[..., LowerBound]


def _error_band(members: Array, nonmembers: Array) -> ErrorBand:
    """Return the errors at every threshold."""
    counts = bounds.error_counts_at_every_threshold(members, nonmembers)
    return ErrorBand(counts.members, counts.nonmembers, counts.missed, counts.accused)


def _of_ranks(ranks: SequentialRanks, *, delta: float, confidence: float) -> LowerBound:
    """Return the sequential bound of ranks, which are scores of the same order."""
    return bounds.sequential_pairs(
        members=np.array(ranks.members, dtype=np.float64),
        nonmembers=np.array(ranks.nonmembers, dtype=np.float64),
        delta=delta,
        confidence=confidence,
    )


ASSUMES_INDEPENDENT_RUNS = "independent training runs with and without the target record"
EVERY_THRESHOLD = "every threshold, under a simultaneous band (equal local levels)"
BAND = FinalModelAudit(
    f"{FINAL_MODELS_NAME}, every threshold",
    "Clopper-Pearson limits of both error rates at every threshold, simultaneous",
    EVERY_THRESHOLD,
    BoundKind.CERTIFIED,
    0.4,
    ErrorBand,
    _error_band,
    bounds.from_error_band,
)
SEQUENTIAL = FinalModelAudit(
    f"{FINAL_MODELS_NAME}, pair by pair",
    "betting on pairs of models; valid at any stopping time (Ville's inequality)",
    "fixed before each pair, by the earlier pairs",
    BoundKind.CERTIFIED,
    0.4,
    SequentialRanks,
    bounds.ranks_of_pairs,
    _of_ranks,
)
GAUSSIAN = FinalModelAudit(
    f"{FINAL_MODELS_NAME}, Gaussian trade-off",
    "the same limits within Gaussian trade-off curves (Nasr et al. 2023)",
    EVERY_THRESHOLD,
    BoundKind.CONDITIONAL,
    0.2,
    GaussianBand,
    bounds.error_counts_at_every_threshold,
    bounds.gaussian_band_of_counts,
)

FINAL_MODEL_AUDITS = (BAND, SEQUENTIAL, GAUSSIAN)
"""Every audit of a fixed number of models."""


def planned_audits(*, stops_early: bool) -> tuple[FinalModelAudit, ...]:
    """Return the audits that are valid for a way to choose the number of models.

    Args:
        stops_early: Whether training stops when the claim is refuted. Then only the sequential
            bound is valid, and it has the whole failure probability.

    Returns:
        The audits; their shares sum to 1.

    Example:
        >>> [audit.kind.value for audit in planned_audits(stops_early=True)]
        ['certified']
    """
    return (replace(SEQUENTIAL, share=1.0),) if stops_early else FINAL_MODEL_AUDITS


def attainable_epsilon(
    pairs: int, *, delta: float, confidence: float, stops_early: bool = False
) -> float:
    """Compute the certified bound of models whose outputs reveal the record without an error.

    It depends on the number of models only, so it is known before one is trained.

    Args:
        pairs: Number of pairs of models, at least 1.
        delta: The delta of the bounds, in (0, 1).
        confidence: Probability with which all bounds hold together, in (0, 1).
        stops_early: Whether training stops when the claim is refuted.

    Returns:
        The larger of the certified bounds, in nats.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> [round(attainable_epsilon(n, delta=1e-5, confidence=0.95), 2) for n in (4, 100)]
        [0.0, 2.85]
    """
    require_count("pairs", pairs)
    revealed = np.ones(pairs), np.zeros(pairs)
    return max(
        audit.bound(
            audit.count(*revealed), delta=delta, confidence=1 - audit.share * (1 - confidence)
        ).epsilon
        for audit in planned_audits(stops_early=stops_early)
        if audit.kind is BoundKind.CERTIFIED
    )


def trial_statistics(
    outputs: TrialOutputs, *, view: OutputView, stops_early: bool
) -> dict[str, BoundStatistics]:
    """Reduce outputs to the statistics that the bounds are functions of.

    Args:
        outputs: Logits of the models on the query, in the order of training.
        view: What the auditor reads of each model.
        stops_early: Whether training stopped when the claim was refuted.

    Returns:
        The statistics by name of the bound; those of equal scores if the outputs show nothing.

    Example:
        >>> outputs = TrialOutputs(np.array([[3.0, 0.0]]), np.array([[0.0, 1.0]]), label=0)
        >>> found = trial_statistics(outputs, view=OutputView.LABELS, stops_early=True)
        >>> list(found.values())
        [SequentialRanks(members=(1,), nonmembers=(0,))]
    """
    members, nonmembers = outputs.scores(view)
    if outputs.shows_nothing(view) is not None:  # models that are copies would seem to show a leak
        members, nonmembers = np.zeros_like(members), np.zeros_like(nonmembers)
    audits = planned_audits(stops_early=stops_early)
    return {audit.name: audit.count(members, nonmembers) for audit in audits}


def audit_trials(
    outputs: TrialOutputs,
    *,
    delta: float,
    confidence: float,
    view: OutputView = OutputView.LOGITS,
    stops_early: bool = False,
    claimed_epsilon: float | None = None,
    assumed: str = "",
) -> tuple[AuditResult, ...]:
    """Compute every lower bound from the outputs of independently trained models.

    Args:
        outputs: Logits of the models on the query, in the order of training.
        delta: The delta of the bounds, in (0, 1).
        confidence: Probability with which all bounds hold together, in (0, 1).
        view: What the auditor reads of each model.
        stops_early: Whether training stopped when the claim was refuted.
        claimed_epsilon: The claim that is tested, in nats; None: no claim.
        assumed: A further assumption. It makes every bound conditional.

    Returns:
        Certified bounds, and one that is conditional on a Gaussian trade-off curve. All are 0
        and inconclusive if the scores are all equal, or models with different seeds are.

    Raises:
        InvalidArgument: If a number is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> with_record = rng.normal([2.0, 0.0], 1.0, (200, 2))
        >>> outputs = TrialOutputs(with_record, rng.normal(0.0, 1.0, (200, 2)), label=0)
        >>> results = audit_trials(outputs, delta=1e-5, confidence=0.95)
        >>> [result.kind.value for result in results]
        ['certified', 'certified', 'conditional']
    """
    doubt = outputs.shows_nothing(view)
    counted = trial_statistics(outputs, view=view, stops_early=stops_early)
    audits = planned_audits(stops_early=stops_early)
    registered = registration_digest(
        audits=[audit.name for audit in audits], view=view.value, delta=delta, label=outputs.label
    )

    def results() -> Iterator[AuditResult]:
        for audit in audits:
            statistics = counted[audit.name]
            level = 1 - audit.share * (1 - confidence)
            found = audit_result(
                _assuming(audit.bound(statistics, delta=delta, confidence=level), view, assumed),
                name=audit.name,
                method=audit.method,
                delta=delta,
                canaries=2 * len(outputs),
                thresholds=audit.thresholds,
                registered=registered,
                estimator=statistics,
            )
            yield with_fields(_with_largest(found, claimed_epsilon), inconclusive=doubt)

    return tuple(results())


def _assuming(bound: LowerBound, view: OutputView, assumed: str) -> LowerBound:
    """Return a bound with what was read, and with a further assumption if there is one."""
    gaussian = [ASSUMES_GAUSSIAN_TRADEOFF] if bound.kind is BoundKind.CONDITIONAL else []
    texts = [*gaussian, ASSUMES_INDEPENDENT_RUNS, f"read of each final model: {view.value}"]
    if not assumed:
        return replace(bound, assumes="; ".join(texts))
    return replace(bound, assumes="; ".join([*texts, assumed]), kind=BoundKind.CONDITIONAL)


def _with_largest(result: AuditResult, claimed_epsilon: float | None) -> AuditResult:
    """Return a result with its largest attainable value and the claim that it tests."""
    return with_fields(
        result, greatest_epsilon=greatest_epsilon(result), refutes_epsilon=claimed_epsilon
    )


def published_estimate(
    outputs: TrialOutputs, *, delta: float, confidence: float = 0.9
) -> LowerBound:
    """Compute the estimate that published black-box audits report; it is no bound.

    The largest Gaussian bound over all thresholds, each as if it had been fixed beforehand. The
    threshold is chosen on the same scores, so the stated confidence does not hold.

    Args:
        outputs: Logits of the models.
        delta: In (0, 1).
        confidence: Of both Clopper-Pearson limits at one threshold; 0.9 gives each one-sided
            limit a level of 0.05, as published.

    Returns:
        The estimate.

    References:
        Annamalai & De Cristofaro (2024), arXiv:2405.14106, after Nasr et al. (2023),
        arXiv:2302.07956.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> with_record = rng.normal([2.0, 0.0], 1.0, (100, 2))
        >>> outputs = TrialOutputs(with_record, rng.normal(0.0, 1.0, (100, 2)), label=0)
        >>> published_estimate(outputs, delta=1e-5).kind.value
        'estimate'
    """
    members, nonmembers = outputs.scores(OutputView.LOGITS)
    counts = bounds.error_counts_at_every_threshold(members, nonmembers)
    found = [
        gaussian_threshold(
            true_positives=len(members) - missed,
            false_positives=accused,
            members=len(members),
            nonmembers=len(nonmembers),
            delta=delta,
            confidence=confidence,
        )
        for missed, accused in zip(counts.missed, counts.accused, strict=True)
    ]
    best = max(found, key=lambda bound: bound.epsilon)
    chosen = f"{best.assumes}; the threshold was chosen on the same scores: no confidence holds"
    return replace(best, kind=BoundKind.ESTIMATE, assumes=chosen)
