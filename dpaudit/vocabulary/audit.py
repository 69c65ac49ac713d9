"""Results of audits: lower bounds on epsilon, and the success of membership inference."""

from __future__ import annotations

import math
from enum import Enum

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_not_negative,
    require_open_unit,
    require_part,
    require_positive,
    require_rate,
)
from dpaudit.vocabulary.language_models import BlindBaseline, ExtractionResult
from dpaudit.vocabulary.notebooks import table_html
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.rounding import SAME_NUMBER_TOLERANCE, round_down

# Statistics from which a lower bound on epsilon can be recomputed.
#
# An ``AuditResult`` holds one of these types, and besides it trials, guesses, correct guesses,
# delta and confidence. Bounds over the claimed family also need the claimed steps, which are in
# the run's ledger.


class SampleMoments(msgspec.Struct, frozen=True):
    """The sufficient statistics of normal observations.

    Attributes:
        count: Number of observations.
        mean: Their mean; 0 if there is no observation.
        variance: Mean squared distance from the mean: the sum divided by ``count``.

    Raises:
        InvalidArgument: If a number is NaN, infinite or negative where it must not be.
    """

    count: int
    mean: float
    variance: float

    def __post_init__(self) -> None:
        require_count("count", self.count, least=0)
        require_not_negative("size of the mean", abs(self.mean))
        require_not_negative("variance", self.variance)


class GuessCount(msgspec.Struct, frozen=True):
    """Correct guesses at one registered number of guesses.

    Attributes:
        guesses: The registered number of guesses.
        correct: How many of them were correct.

    Raises:
        InvalidArgument: If a count is negative, or ``correct`` exceeds ``guesses``.
    """

    guesses: int
    correct: int

    def __post_init__(self) -> None:
        require_count("guesses", self.guesses, least=0)
        require_part("correct", self.correct, self.guesses)


class OneRun(msgspec.Struct, frozen=True, tag_field="kind", tag="one-run"):
    """Correct guesses of fair coins.

    All registered numbers of guesses share the failure probability equally, and the stated bound
    is the largest.

    Attributes:
        also: Results at the other registered numbers of guesses.

    References:
        Steinke, Nasr & Jagielski (2023), arXiv:2305.08846, Theorem 5.2.
    """

    also: tuple[GuessCount, ...] = ()


class ClaimedCurve(msgspec.Struct, frozen=True, tag_field="kind", tag="claimed-curve"):
    """Correct guesses, compared with the claimed trade-off curve.

    Attributes:
        noise_factor: The least factor on the claimed noise that is refuted; above 0. None if
            no factor is refuted.

    Raises:
        InvalidArgument: If ``noise_factor`` is not above 0 and finite.

    References:
        Mahloujifar, Melis & Chaudhuri (2024).
    """

    noise_factor: float | None = None

    def __post_init__(self) -> None:
        _require_factor(self.noise_factor)


class TotalVariation(msgspec.Struct, frozen=True, tag_field="kind", tag="total-variation"):
    """Correct guesses of all canaries, compared with the claimed total variation distance.

    Attributes:
        noise_factor: The least factor on the claimed noise that is refuted; above 0. None if
            no factor is refuted.

    Raises:
        InvalidArgument: If ``noise_factor`` is not above 0 and finite.
    """

    noise_factor: float | None = None

    def __post_init__(self) -> None:
        _require_factor(self.noise_factor)


class BatchRates(msgspec.Struct, frozen=True, tag_field="kind", tag="batch-rates"):
    """Numbers of observations above the registered threshold, with and without the canary.

    Attributes:
        hits: Observations above the threshold with the canary in the batch.
        in_batch: All observations with the canary in the batch.
        false_alarms: Observations above the threshold without the canary.
        out_of_batch: All observations without the canary.

    Raises:
        InvalidArgument: If a count is negative or exceeds the count that it is a part of.
    """

    hits: int
    in_batch: int
    false_alarms: int
    out_of_batch: int

    def __post_init__(self) -> None:
        require_part("hits", self.hits, self.in_batch)
        require_part("false_alarms", self.false_alarms, self.out_of_batch)


class BatchMeans(msgspec.Struct, frozen=True, tag_field="kind", tag="batch-means"):
    """Moments of the observations with and without the canary in the batch.

    Attributes:
        in_batch: Observations with the canary in the batch.
        out_of_batch: Observations without it.
    """

    in_batch: SampleMoments
    out_of_batch: SampleMoments


class ClassGuesses(msgspec.Struct, frozen=True, tag_field="kind", tag="fixed-sizes"):
    """Correct guesses of a random split with fixed numbers of members and non-members.

    Attributes:
        members: Number of members; at least 1.
        nonmembers: Number of non-members; at least 1.
        guessed_in: Records that were guessed to be members.
        right_in: Members among them.
        guessed_out: Other records, which were guessed to be non-members.
        right_out: Non-members among them.

    Raises:
        InvalidArgument: If a count is out of its range, or the guesses hold more members or
            non-members than there are.
    """

    members: int
    nonmembers: int
    guessed_in: int
    right_in: int
    guessed_out: int
    right_out: int

    def __post_init__(self) -> None:
        require_count("members", self.members)
        require_count("nonmembers", self.nonmembers)
        require_count("guessed_in", self.guessed_in, least=0)
        require_count("guessed_out", self.guessed_out, least=0)
        require_part("right_in", self.right_in, self.guessed_in)
        require_part("right_out", self.right_out, self.guessed_out)
        wrong_in, wrong_out = self.guessed_in - self.right_in, self.guessed_out - self.right_out
        if self.right_in + wrong_out > self.members:
            allowed = f"in guesses that contain at most the {self.members} members"
            raise InvalidArgument("right_in", self.right_in, allowed)
        if self.right_out + wrong_in > self.nonmembers:
            allowed = f"in guesses that contain at most the {self.nonmembers} non-members"
            raise InvalidArgument("right_out", self.right_out, allowed)


class GaussianPivot(msgspec.Struct, frozen=True, tag_field="kind", tag="gaussian-pivot"):
    """Moments of the scores of included and of excluded canaries.

    Attributes:
        members: Scores of the included canaries.
        nonmembers: Scores of the excluded canaries.
    """

    members: SampleMoments
    nonmembers: SampleMoments


MOST_BAND_SCORES = 100_000
"""Most scores of each class under a band of all thresholds, which takes seconds to compute."""


class GaussianBand(msgspec.Struct, frozen=True, tag_field="kind", tag="gaussian-band"):
    """Numbers of errors at every threshold, thresholds falling.

    Attributes:
        members: Number of included canaries; at most ``MOST_BAND_SCORES``.
        nonmembers: Number of excluded canaries; at most ``MOST_BAND_SCORES``.
        missed: False negatives per threshold: included canaries at or below it.
        accused: False positives per threshold: excluded canaries above it.

    Raises:
        InvalidArgument: If the lists differ in length, or a count is negative or too large.
    """

    members: int
    nonmembers: int
    missed: tuple[int, ...]
    accused: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.missed) != len(self.accused):
            raise InvalidArgument("missed", len(self.missed), "of the same length as accused")
        for name, count in (("members", self.members), ("nonmembers", self.nonmembers)):
            if count > MOST_BAND_SCORES:
                allowed = f"at most {MOST_BAND_SCORES}: score fewer models or canaries"
                raise InvalidArgument(name, count, allowed)
        for name, counts, whole in (
            ("missed", self.missed, self.members),
            ("accused", self.accused, self.nonmembers),
        ):
            require_part(name, min(counts, default=0), whole)
            require_part(name, max(counts, default=0), whole)


class ErrorBand(msgspec.Struct, frozen=True, tag_field="kind", tag="error-band"):
    """Numbers of errors of independently trained models at every threshold, thresholds falling.

    Attributes:
        members: Number of models with the target record; at most ``MOST_BAND_SCORES``.
        nonmembers: Number of models without it; at most ``MOST_BAND_SCORES``.
        missed: False negatives per threshold: models with the record at or below it.
        accused: False positives per threshold: models without the record above it.

    Raises:
        InvalidArgument: If the lists differ in length, or a count is negative or too large.
    """

    members: int
    nonmembers: int
    missed: tuple[int, ...]
    accused: tuple[int, ...]

    def __post_init__(self) -> None:
        # The same counts as those of a Gaussian band, with the same limits.
        GaussianBand(self.members, self.nonmembers, self.missed, self.accused)


class SequentialRanks(msgspec.Struct, frozen=True, tag_field="kind", tag="sequential-ranks"):
    """Ranks of the scores of pairs of models, in the order in which they were trained.

    Attributes:
        members: Rank of the score of each model with the target record, from 0; equal scores
            have equal ranks.
        nonmembers: Rank of the score of each model without it, among all scores.

    Raises:
        InvalidArgument: If the lists differ in length, or a rank is not among those of as many
            scores.
    """

    members: tuple[int, ...]
    nonmembers: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.members) != len(self.nonmembers):
            given = len(self.members)
            raise InvalidArgument("members", given, "as many ranks as nonmembers: they are pairs")
        whole = max(0, 2 * len(self.members) - 1)
        for name, ranks in (("members", self.members), ("nonmembers", self.nonmembers)):
            require_part(name, min(ranks, default=0), whole)
            require_part(name, max(ranks, default=0), whole)


class AdaptiveGuesses(msgspec.Struct, frozen=True, tag_field="kind", tag="adaptive-guesses"):
    """Correct guesses of fair coins, each made with the earlier coins revealed.

    The result's ``guesses`` and ``correct`` are the counts.
    """


BoundStatistics = (
    OneRun
    | ClassGuesses
    | ClaimedCurve
    | TotalVariation
    | BatchRates
    | BatchMeans
    | GaussianPivot
    | GaussianBand
    | ErrorBand
    | SequentialRanks
    | AdaptiveGuesses
)
"""The estimator of a lower bound, with the statistics that it reads."""


def _require_factor(factor: float | None) -> None:
    """Refuse a noise factor that is given but not above 0 and finite."""
    if factor is not None:
        require_positive("noise_factor", factor)


FINAL_MODELS_NAME = "final models"
"""First words of the names of bounds from models with and without a target record."""

POWER = 0.95
"""Power at which detectable effects are stated: the probability of detection."""


class BoundKind(Enum):
    """The kind of guarantee that a lower bound has; printed with each bound."""

    CERTIFIED = "certified"
    """Holds for any mechanism; assumes fair coins, or independent training runs, alone."""

    CONDITIONAL = "conditional"
    """Holds for the mechanisms of a stated family, or under a stated independence."""

    ESTIMATE = "estimate"
    """A point estimate, which bounds nothing."""


class AuditResult(msgspec.Struct, frozen=True):
    """One lower bound on epsilon.

    Attributes:
        name: The canaries and the scores of the audit.
        method: The estimator and its source.
        kind: The kind of guarantee.
        epsilon_lower: The lower bound, in nats; at least 0.
        delta: The delta of the bound; at least 0 and below 1.
        confidence: Probability with which the bound holds; above 0 and below 1.
        assumes: The assumptions, as text.
        states: The statement that is refuted below the bound, as text.
        trials: Number of canaries that were scored.
        guesses: How many of the ``trials`` were guessed.
        correct: How many of the ``guesses`` were right.
        thresholds: How the guesses were fixed, as text.
        registered: Digest of the settings that were fixed before a score was read; None if
            nothing was registered.
        detectable_epsilon: The least true epsilon, in nats, at which this audit refutes the
            claim with 95% power. None if it is unknown or unreachable.
        greatest_epsilon: The bound that results if every guess is right, in nats: no outcome
            of this audit gives more. None if it is unknown.
        refutes_epsilon: The claimed epsilon that ``detectable_epsilon`` is computed for.
        inconclusive: Why this bound is no evidence that the claim is true; None if it is.
        estimator: The function of the data that the bound is, with the statistics that it
            reads besides ``trials``, ``guesses`` and ``correct``. The gate recomputes the bound
            from them. None in files of older versions.

    Raises:
        InvalidArgument: If a number is NaN or out of its range, or a count exceeds the count
            that it is a part of.
    """

    name: str
    method: str
    kind: BoundKind
    epsilon_lower: float
    delta: float
    confidence: float
    assumes: str
    trials: int
    guesses: int
    correct: int
    thresholds: str
    states: str = ""
    registered: str | None = None
    detectable_epsilon: float | None = None
    greatest_epsilon: float | None = None
    refutes_epsilon: float | None = None
    inconclusive: str | None = None
    estimator: BoundStatistics | None = None

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        require_not_negative("epsilon_lower", self.epsilon_lower)
        if not 0 <= self.delta < 1:
            raise InvalidArgument("delta", self.delta, "at least 0 and below 1")
        require_count("trials", self.trials, least=0)
        require_part("guesses", self.guesses, self.trials)
        require_part("correct", self.correct, self.guesses)
        for name in ("detectable_epsilon", "greatest_epsilon", "refutes_epsilon"):
            value = getattr(self, name)
            if value is not None:
                require_not_negative(name, value)


class TprAtFpr(msgspec.Struct, frozen=True):
    """True-positive rate of an attack at a false-positive rate, with its interval.

    Attributes:
        fpr: The given false-positive rate; above 0 and below 1.
        tpr: True-positive rate at the lowest threshold that at most this share of the
            non-members pass.
        interval: Interval of the rate that the attack has at ``fpr`` on the population, of
            which members and non-members are samples. It includes the uncertainty of the
            threshold.
        confidence: Confidence of each interval by itself.
        given_threshold: Clopper-Pearson interval of the rate at that threshold, as if it had
            been fixed before a score was read; None if it was not computed.
        false_positives: How many non-members pass that threshold.
        least_hits: How many members pass the threshold whose false-positive rate is at most
            ``fpr`` with confidence; None in files of older versions.
        greatest_hits: How many members pass the threshold whose false-positive rate is at
            least ``fpr`` with confidence.

    Raises:
        InvalidArgument: If a number is out of its range, or an interval does not contain
            ``tpr``.
    """

    fpr: float
    tpr: float
    interval: Bound
    confidence: float
    given_threshold: Bound | None = None
    false_positives: int | None = None
    least_hits: int | None = None
    greatest_hits: int | None = None

    def __post_init__(self) -> None:
        require_open_unit("fpr", self.fpr)
        require_rate("tpr", self.tpr)
        require_open_unit("confidence", self.confidence)
        _require_interval("interval", self.interval, self.tpr)
        _require_interval("given_threshold", self.given_threshold, self.tpr)
        for name in ("false_positives", "least_hits", "greatest_hits"):
            count = getattr(self, name)
            if count is not None:
                require_count(name, count, least=0)


class MembershipResult(msgspec.Struct, frozen=True):
    """How well a membership-inference attack distinguishes members from non-members.

    Attributes:
        attack: The name of the attack.
        members: How many members were scored.
        nonmembers: How many non-members were scored.
        auc: Area under the ROC curve, in [0, 1].
        balanced_accuracy: Largest balanced accuracy of all thresholds, in [0, 1].
        tpr_at_fpr: Rates at small false-positive rates; empty if all scores are equal.
        roc: Points (false-positive rate, true-positive rate), rising.
        auc_interval: Interval of the AUC, valid for any scores.
        balanced_accuracy_interval: Interval of the largest balanced accuracy; valid although
            the threshold is chosen after the scores are read.
        band: Points (false-positive rate, lower, upper bound of the true-positive rate); each
            interval holds by itself.
        unresolved: False-positive rates that need more non-members than there are.
        assumes: The assumptions of the intervals, as text.
        inconclusive: Why these results are no evidence either way; None if they are.

    Raises:
        InvalidArgument: If a number is out of its range, a count exceeds the records, or an
            interval does not contain its value.
    """

    attack: str
    members: int
    nonmembers: int
    auc: float
    balanced_accuracy: float
    tpr_at_fpr: tuple[TprAtFpr, ...]
    roc: tuple[tuple[float, float], ...]
    auc_interval: Bound | None = None
    balanced_accuracy_interval: Bound | None = None
    band: tuple[tuple[float, float, float], ...] = ()
    unresolved: tuple[float, ...] = ()
    assumes: str = ""
    inconclusive: str | None = None

    def __post_init__(self) -> None:
        require_count("members", self.members)
        require_count("nonmembers", self.nonmembers)
        require_rate("auc", self.auc)
        require_rate("balanced_accuracy", self.balanced_accuracy)
        _require_interval("auc_interval", self.auc_interval, self.auc)
        _require_interval(
            "balanced_accuracy_interval", self.balanced_accuracy_interval, self.balanced_accuracy
        )
        for rate in (*self.unresolved, *_numbers(self.roc), *_numbers(self.band)):
            if type(rate) is not float or not 0.0 <= rate <= 1.0:  # a curve has thousands
                require_rate("rate", rate)
        for one in self.tpr_at_fpr:
            self._require_possible(one)

    def _require_possible(self, rate: TprAtFpr) -> None:
        """Refuse counts that exceed the numbers of members and non-members."""
        if rate.false_positives is not None:
            require_part("false_positives", rate.false_positives, self.nonmembers)
        for name in ("least_hits", "greatest_hits"):
            count = getattr(rate, name)
            if count is not None:
                require_part(name, count, self.members)


class SliceResult(msgspec.Struct, frozen=True):
    """The result of an attack on the records of one slice.

    Attributes:
        column: What the records are sliced by, such as ``class``.
        value: The value that the records of the slice share, as text.
        result: The result on these records. Each interval is wide enough that those of the same
            rate in all slices hold together at the confidence of the report.
    """

    column: str
    value: str
    result: MembershipResult


class InferenceResult(msgspec.Struct, frozen=True):
    """How often an attacker who knows the rest of a record infers one value of it.

    Correct guesses on members alone are no leakage: ``gap_interval`` compares with non-members,
    and ``above_baseline`` with a predictor that has no access to the model.

    Attributes:
        inferred: ``label``, or the feature.
        values: Number of different values.
        members: Number of members.
        nonmembers: Number of non-members that the attacker does not know.
        correct_members: Members whose value is guessed correctly with the model.
        correct_nonmembers: Non-members whose value is guessed correctly with the model.
        baseline_members: Members whose value is guessed correctly without the model.
        baseline_nonmembers: Non-members whose value is guessed correctly without the model.
        confidence: Confidence of each interval by itself.
        gap_interval: Interval of the rate on members minus that on non-members.
        above_baseline: Interval of the rate on members with the model minus that without.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    inferred: str
    values: int
    members: int
    nonmembers: int
    correct_members: int
    correct_nonmembers: int
    baseline_members: int
    baseline_nonmembers: int
    confidence: float
    gap_interval: Bound
    above_baseline: Bound

    def __post_init__(self) -> None:
        require_count("members", self.members)
        require_count("nonmembers", self.nonmembers)
        for name, of in (("members", self.members), ("nonmembers", self.nonmembers)):
            require_part(f"correct_{name}", getattr(self, f"correct_{name}"), of)
            require_part(f"baseline_{name}", getattr(self, f"baseline_{name}"), of)
        require_open_unit("confidence", self.confidence)

    @property
    def leaks(self) -> bool:
        """Whether members are guessed better than non-members, and than without the model."""
        return self.gap_interval.lower > 0 and self.above_baseline.lower > 0


REFERENCE_ATTACKS = frozenset(
    {
        *("calibrated", "lira-online", "lira-offline", "rmia-online", "rmia-offline"),
        *("informia-online", "informia-offline", "base-online", "base-offline", "classifier"),
    }
)
"""Names of the attacks whose scores are of reference models as well as of the target."""


class AttackReport(msgspec.Struct, frozen=True):
    """Results of several attacks on the same models and records.

    Attributes:
        attacked: The models and records, as text.
        confidence: Confidence of each interval by itself; above 0 and below 1.
        membership: One result per attack.
        slices: Results of each attack on parts of the records; empty if none was asked for.
        inference: Results of label and attribute inference; empty if none was asked for.
        notes: Further findings, one line each, such as slices that have no member.
        ledger_head: Hash of the last line of the run's ledger; empty without a run.
        files: SHA-256 of each file that was read and is not part of the run, under its role.
        extraction: How many texts a language model completes; empty for other models.
        baselines: How well texts are distinguished without the model; empty for other records.
        reference_training: How references were trained: ``dp-sgd`` with the run's settings, or
            ``plain``, without noise. None if no attack needs references, without a run, and in
            files of older versions.
        schema_version: Version of the JSON format.

    Raises:
        InvalidArgument: If ``confidence`` is out of its range.
    """

    attacked: str
    confidence: float
    membership: tuple[MembershipResult, ...]
    ledger_head: str = ""
    files: dict[str, str] = {}
    extraction: tuple[ExtractionResult, ...] = ()
    baselines: tuple[BlindBaseline, ...] = ()
    reference_training: str | None = None
    schema_version: str = SCHEMA_VERSION
    slices: tuple[SliceResult, ...] = ()
    inference: tuple[InferenceResult, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)


class AuditReport(msgspec.Struct, frozen=True):
    """Results of one audit of one run.

    Attributes:
        ledger_head: Hash of the last line of the run's ledger; empty without a run.
        confidence: Probability with which all ``bounds`` hold together. Their failure
            probabilities add up to at most ``1 - confidence``.
        bounds: Lower bounds on epsilon.
        membership: One result per attack.
        heldout_accuracy: Accuracy of the model on held-out records, in [0, 1]; None if it was
            not measured.
        heldout_loss: Mean loss of a language model on held-out tokens, in nats, at least 0; None
            for other models, or if it was not measured.
        unseen_steps: Steps that were interrupted after their noise was drawn. They gave no
            observation, and bounds are compared with the epsilon of the other steps.
        files: SHA-256 of each file that was measured and is not part of the run, under its
            role.
        spot_checks: At how many steps of the run its gradients were compared with the slow way,
            in words; empty without a run, and in files of older versions.
        schema_version: Version of the JSON format.

    Raises:
        InvalidArgument: If a number is out of its range, or the bounds do not hold together
            with ``confidence``.
    """

    ledger_head: str
    confidence: float
    bounds: tuple[AuditResult, ...]
    membership: tuple[MembershipResult, ...]
    heldout_accuracy: float | None = None
    unseen_steps: int = 0
    files: dict[str, str] = {}
    heldout_loss: float | None = None
    spot_checks: str = ""
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        require_open_unit("confidence", self.confidence)
        if self.heldout_accuracy is not None:
            require_rate("heldout_accuracy", self.heldout_accuracy)
        if self.heldout_loss is not None and not 0 <= self.heldout_loss < math.inf:
            raise InvalidArgument("heldout_loss", self.heldout_loss, "finite and at least 0")
        require_count("unseen_steps", self.unseen_steps, least=0)
        # Union bound: the probability that any bound fails is at most the sum of theirs.
        of_bounds = [one.confidence for one in self.bounds if one.kind is not BoundKind.ESTIMATE]
        failure = sum(1 - confidence for confidence in of_bounds)
        if not failure <= (1 - self.confidence) * (1 + SAME_NUMBER_TOLERANCE) + 1e-12:
            allowed = f"at most {1 - failure:.6g}, the confidence of all of its bounds together"
            raise InvalidArgument("confidence", self.confidence, allowed)

    def _repr_html_(self) -> str:
        """Return the bounds, with their kinds, and the attacks as a table for notebooks."""
        rows: list[tuple[object, ...]] = [
            (
                f"lower bound on epsilon, {one.name}",
                f"{round_down(one.epsilon_lower)} at delta {one.delta:g} ({one.kind.value}, "
                f"confidence {one.confidence:.5g})"
                + ("" if one.inconclusive is None else f"; inconclusive: {one.inconclusive}"),
            )
            for one in self.bounds
        ]
        rows += [
            (
                f"membership inference by {one.attack}",
                f"AUC {one.auc:.3f}, {one.members} members and {one.nonmembers} non-members"
                + ("" if one.inconclusive is None else f"; inconclusive: {one.inconclusive}"),
            )
            for one in self.membership
        ]
        if self.heldout_accuracy is not None:
            rows.append(("held-out accuracy", f"{self.heldout_accuracy:.1%}"))
        if self.heldout_loss is not None:
            rows.append(("held-out loss", f"{self.heldout_loss:.4g} nats"))
        rows.append(("joint confidence of the bounds", f"{self.confidence:g}"))
        return table_html("Audit", rows)


def _numbers(points: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """Return all coordinates of all points in one tuple."""
    return tuple(number for point in points for number in point)


def _require_interval(name: str, interval: Bound | None, value: float) -> None:
    """Refuse an interval that does not contain ``value``, or is not inside [0, 1]."""
    if interval is None:
        return
    require_rate(f"{name}.lower", interval.lower)
    require_rate(f"{name}.upper", interval.upper)
    slack = SAME_NUMBER_TOLERANCE  # for a rate that was computed in another order
    if not interval.lower - slack <= value <= interval.upper + slack:
        given = f"{interval.lower:g} to {interval.upper:g}"
        raise InvalidArgument(name, given, f"an interval around the measured rate, {value:g}")
