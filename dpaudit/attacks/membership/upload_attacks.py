"""Membership inference on what a server of a federation sees: uploads, or their sums.

The attacker knows the global model of each round and the upload of one participant, or, under
secure aggregation, the sum of all uploads. A candidate record that was trained on has moved the
upload along its own clipped gradient, or has lowered its own loss.

Only clipped gradients and losses of candidates at the public global models are needed. So these
attacks are NumPy alone; ``benchmarks/federated_membership.py`` shows how a model computes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument, require_positive

UPLOAD_ASSUMPTION = (
    "given the uploads, records are independent trials; the attacker sees every round"
)
"""The assumption of intervals, for ``evaluate``."""


def gradient_alignment_scores(
    sums: Sequence[FloatArray],
    gradients: Iterable[FloatArray],
    deviations: Sequence[float],
) -> RecordScores:
    """Score records by the inner product of each upload with the record's clipped gradient.

    Rounds are weighted by the inverse variance of the noise, which is the most powerful weighting
    of independent Gaussian noise. The mean gradient of all candidates is subtracted from each: it
    is common to members and non-members.

    Args:
        sums: The observed gradient sum of each round, shape ``(d,)`` each: for an upload of SGD,
            minus the change of the parameters over the learning rate.
        gradients: Clipped gradients of the candidates at the global model of each round, shape
            ``(records, d)`` each. They may be computed on demand.
        deviations: Standard deviation of the noise of each sum, per coordinate; above 0.

    Returns:
        One score per record; larger means member.

    Raises:
        InvalidArgument: If there is no round, or shapes or numbers of rounds differ, or a value
            is not finite.

    References:
        Nasr, Shokri & Houmansadr (2019), arXiv:1812.00910: the passive attacker at the server.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> gradients = [rng.standard_normal((4, 50)) for _ in range(3)]
        >>> sums = [g[0] + g[1] + 0.1 * rng.standard_normal(50) for g in gradients]
        >>> scores = gradient_alignment_scores(sums, gradients, [0.1] * 3)
        >>> scores.values.argsort()[-2:].tolist() in ([0, 1], [1, 0])
        True
    """
    total: FloatArray = np.zeros(1)
    for own, candidates, deviation in _rounds(sums, gradients, deviations):
        aligned = candidates.astype(np.float64) @ own
        common = float(candidates.mean(axis=0, dtype=np.float64) @ own)
        total = total + (aligned - common) / deviation**2
    return RecordScores(np.asarray(total))


def _rounds(
    sums: Sequence[FloatArray], gradients: Iterable[FloatArray], deviations: Sequence[float]
) -> Iterator[tuple[FloatArray, FloatArray, float]]:
    """Yield the sum, the candidates' gradients and the noise of each round; refuse a mismatch."""
    if len(sums) == 0:
        raise InvalidArgument("sums", "no round", "one sum for each round")
    if len(deviations) != len(sums):
        allowed = f"one for each of {len(sums)} rounds"
        raise InvalidArgument("deviations", f"{len(deviations)} values", allowed)
    rounds, records = 0, None
    for own, candidates, deviation in zip(sums, gradients, deviations, strict=False):
        require_positive("deviations", deviation)
        if candidates.ndim != 2 or candidates.shape[1:] != own.shape or len(candidates) == 0:
            allowed = f"shape (records, {own.size})"
            raise InvalidArgument("gradients", f"shape {candidates.shape}", allowed)
        if records not in (None, len(candidates)):
            raise InvalidArgument("gradients", len(candidates), f"{records} records, as before")
        if not (np.isfinite(own).all() and np.isfinite(candidates).all()):
            raise InvalidArgument("gradients", "NaN or infinity", "finite, as the sums")
        rounds, records = rounds + 1, len(candidates)
        yield own.astype(np.float64), candidates, deviation
    if rounds < len(sums):
        allowed = f"one array for each of {len(sums)} rounds"
        raise InvalidArgument("gradients", f"{rounds} rounds", allowed)


def gradient_regression_scores(
    sums: Sequence[FloatArray],
    gradients: Iterable[FloatArray],
    deviations: Sequence[float],
    *,
    joins: float,
) -> RecordScores:
    """Score records by how often their gradient is in the uploads, all candidates together.

    Each sum is taken for a linear model: every candidate's gradient times an unknown number of
    times that it joined, plus noise. The score is the posterior mean of that number, under a
    Gaussian prior. Unlike an inner product, it is not confused by gradients that resemble each
    other. It needs a set of candidates that holds most of the records.

    Args:
        sums: The observed gradient sum of each round, shape ``(d,)`` each.
        gradients: Clipped gradients of the candidates at the global model of each round, shape
            ``(records, d)`` each.
        deviations: Standard deviation of the noise of each sum, per coordinate; above 0. The error
            of the linear model, as local steps move the weights, counts as noise.
        joins: Expected number of times that a member joins in one round, above 0; it is also the
            standard deviation of the prior.

    Returns:
        One score per record; larger means member.

    Raises:
        InvalidArgument: If there is no round, or shapes or numbers of rounds differ, or a value
            is not finite or out of range.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, equations 3.53 and 3.54.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> common = rng.standard_normal(50)  # all gradients resemble each other
        >>> gradients = [common + 0.3 * rng.standard_normal((4, 50)) for _ in range(3)]
        >>> sums = [g[0] + g[1] + 0.1 * rng.standard_normal(50) for g in gradients]
        >>> scores = gradient_regression_scores(sums, gradients, [0.1] * 3, joins=1.0)
        >>> scores.values.round().astype(int).tolist()
        [1, 1, 0, 0]
    """
    require_positive("joins", joins)
    products: FloatArray = np.zeros((0, 0))
    aligned: FloatArray = np.zeros(0)
    for number, (own, candidates, deviation) in enumerate(_rounds(sums, gradients, deviations)):
        rows = candidates.astype(np.float64) / deviation
        if number == 0:
            products = np.zeros((len(rows), len(rows)))
            aligned = np.zeros(len(rows))
        products += rows @ rows.T
        aligned += rows @ (own / deviation)
    prior = np.eye(len(products)) / joins**2
    return RecordScores(np.asarray(np.linalg.solve(products + prior, aligned)))


def loss_difference_scores(before: FloatArray, after: FloatArray) -> RecordScores:
    """Score records by how much the uploads lowered their losses, summed over the rounds.

    Args:
        before: Loss of each record under the global model of each round, shape
            ``(rounds, records)``.
        after: Loss of each record under that model plus the upload, or plus the sum of uploads,
            shape ``(rounds, records)``.

    Returns:
        One score per record; larger means member.

    Raises:
        InvalidArgument: If the shapes differ, there is no round, or a loss is not finite.

    Example:
        >>> before, after = np.array([[2.0, 2.0]]), np.array([[0.5, 1.9]])
        >>> loss_difference_scores(before, after).values.round(1)
        array([1.5, 0.1])
    """
    if before.shape != after.shape or before.ndim != 2 or len(before) == 0:
        allowed = "two arrays of one shape (rounds, records)"
        raise InvalidArgument("losses", f"shapes {before.shape} and {after.shape}", allowed)
    return RecordScores(np.asarray((before - after).sum(axis=0, dtype=np.float64)))
