"""Loss distributions of mechanisms that are given by a pair of output distributions.

``MixtureOfGaussians`` and ``TruncatedPoisson`` become pairs of Gaussian mixtures.
``DominatingPair`` becomes atoms. The proofs are in docs/mathematics/dominating_pairs.md.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.numerics import Direction
from dpaudit.accountants.pld.laws.gaussian_mixtures import (
    MixturePair,
    lower_law,
    mixed_laws,
    replaced_pair,
    sampled_pair,
    upper_law,
)
from dpaudit.accountants.pld.laws.loss_distribution import LossDistribution
from dpaudit.accountants.releases import binomial_tail, gaussian_mu
from dpaudit.accountants.rounding_margins import ROUND_DOWN, UNIT_ROUNDOFF
from dpaudit.vocabulary.mechanism import TruncatedPoisson
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency

Array = NDArray[np.float64]

ROUNDINGS = 8
"""Roundings of a mass that is divided by its sum and mixed with another one."""


def mixture_pair(release: MixtureOfGaussians) -> MixturePair:
    """Return the pair of a mixture of Gaussians, in standard deviations.

    Args:
        release: The mechanism.

    Returns:
        Its pair; probabilities are divided by their sum.
    """
    right, right_weights = _scaled(release, release.sensitivities, release.probabilities)
    if not release.opposite_sensitivities:
        return MixturePair(right, right_weights)
    left, left_weights = _scaled(
        release, release.opposite_sensitivities, release.opposite_probabilities
    )
    return MixturePair(right, right_weights, left, left_weights)


def _scaled(
    release: MixtureOfGaussians, shifts: tuple[float, ...], weights: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return shifts over the standard deviation, and weights over their sum."""
    total = math.fsum(weights)
    return (
        tuple(shift / release.standard_deviation for shift in shifts),
        tuple(weight / total for weight in weights),
    )


def upper_truncated_law(
    release: TruncatedPoisson, adjacency: Adjacency, direction: Direction, tail: float
) -> LossDistribution:
    """Return a loss distribution above that of a truncated Poisson sample (equation 12).

    With probability 1 - w, fewer than ``largest_batch`` other records are drawn and nothing is
    cut. Otherwise the record may displace another one, which doubles what it moves. The pair
    reveals which of both happened.

    Args:
        release: The truncated sample.
        adjacency: Neighbor relation.
        direction: Whether the larger data set generates the output.
        tail: Mass of unbounded losses that may be left out.

    Returns:
        Atoms of total mass 1, rounded up.
    """
    shift, rate = _record_shift(release, adjacency), release.sampling_rate
    full = full_batch_probability(release, adjacency)
    match adjacency:
        case Adjacency.ADD_OR_REMOVE_ONE:
            usual, displacing = sampled_pair(shift, rate), sampled_pair(2 * shift, rate)
        case Adjacency.ZERO_OUT:
            usual = sampled_pair(shift, rate)
            twice, once = sampled_pair(2 * shift, rate), sampled_pair(shift, rate)
            displacing = MixturePair(
                twice.right, twice.right_weights, once.right, once.right_weights
            )
        case Adjacency.REPLACE_ONE:
            usual, displacing = replaced_pair(shift, rate), replaced_pair(2 * shift, rate)
    parts = [(usual, 1 - full), (displacing, full)]
    return mixed_laws(
        [upper_law(pair, direction, tail, share) for pair, share in parts if share > 0]
    )


def lower_truncated_law(
    release: TruncatedPoisson, adjacency: Adjacency, direction: Direction, tail: float
) -> LossDistribution:
    """Return a loss distribution below that of a truncated Poisson sample (equation 13).

    If all other records contribute zero, the output is that of a Poisson sample. The record is in
    it unless it was cut, which happens only if at least ``largest_batch`` others were drawn.

    Args:
        release: The truncated sample.
        adjacency: Neighbor relation.
        direction: Whether the larger data set generates the output.
        tail: Mass on either side beyond which cells are merged.

    Returns:
        Atoms, with no mass left out.
    """
    shift = _record_shift(release, adjacency)
    kept = release.sampling_rate * (1 - full_batch_probability(release, adjacency)) * ROUND_DOWN
    if not kept > 0:
        return LossDistribution((), np.zeros(1), np.ones(1), 0.0, 0.0, 0.0, 0.0)
    pair = replaced_pair if adjacency is Adjacency.REPLACE_ONE else sampled_pair
    return lower_law(pair(shift, kept), direction, tail)


def full_batch_probability(release: TruncatedPoisson, adjacency: Adjacency) -> float:
    """Return an upper bound of the probability that other records fill the batch.

    Args:
        release: The truncated sample.
        adjacency: Neighbor relation. If a record is added, ``dataset_size`` others may exist.

    Returns:
        The upper bound of P[Binomial(others, rate) >= largest batch].
    """
    fewer = 0 if adjacency is Adjacency.ADD_OR_REMOVE_ONE else 1
    return binomial_tail(release.dataset_size - fewer, release.sampling_rate, release.largest_batch)


def _record_shift(release: TruncatedPoisson, adjacency: Adjacency) -> float:
    """Return the largest norm of one record over the noise's standard deviation."""
    moved = gaussian_mu(release.mechanism, adjacency)
    return moved / 2 if adjacency is Adjacency.REPLACE_ONE else moved


def upper_given_law(release: DominatingPair, rate: float, direction: Direction) -> LossDistribution:
    """Return a loss distribution above that of a dominating pair on a Poisson sample.

    Args:
        release: The pair.
        rate: Sampling rate, in (0, 1].
        direction: Whether P (removed) or Q (added) generates the output.

    Returns:
        Atoms, rounded up.
    """
    first, second = _sampled_masses(release.upper.p, release.upper.q, rate, direction)
    infinite = float(first[second == 0].sum())
    finite = (first > 0) & (second > 0)
    losses, slack = _losses(first[finite], second[finite])
    masses = first[finite] * (1 + release.mass_error + ROUNDINGS * UNIT_ROUNDOFF)
    losses = losses + slack + _loss_error(release)
    if infinite:
        infinite *= 1 + release.mass_error + (ROUNDINGS + len(first)) * UNIT_ROUNDOFF
    if not len(losses):
        losses, masses = np.zeros(1), np.zeros(1)
    largest = float(losses.max())
    return LossDistribution((), losses, masses, 0.0, min(1.0, infinite), largest, largest)


def lower_given_law(release: DominatingPair, rate: float, direction: Direction) -> LossDistribution:
    """Return a loss distribution below that of a dominating pair on a Poisson sample.

    Args:
        release: The pair.
        rate: Sampling rate, in (0, 1].
        direction: Whether P (removed) or Q (added) generates the output.

    Returns:
        Atoms, rounded down.
    """
    first, second = _sampled_masses(release.lower.p, release.lower.q, rate, direction)
    fewer = 1 - release.mass_error - ROUNDINGS * UNIT_ROUNDOFF
    infinite = float(first[second == 0].sum()) * (fewer - len(first) * UNIT_ROUNDOFF)
    finite = (first > 0) & (second > 0)
    losses, slack = _losses(first[finite], second[finite])
    losses, masses = losses - slack - _loss_error(release), first[finite] * fewer
    # What the masses were lowered by has the least loss, which can only lower delta.
    losses = np.append(losses, losses.min() if len(losses) else 0.0)
    masses = np.append(masses, max(0.0, 1 - float(masses.sum()) - infinite))
    largest = float(losses.max())
    return LossDistribution((), losses, masses, 0.0, infinite, largest, largest)


def _loss_error(release: DominatingPair) -> float:
    """Return the error of log(p/q) where both masses have the relative error e.

    log((1 + e)/(1 - e)) <= 2.01 e for e <= 0.1.
    """
    return 2.01 * release.mass_error


def _sampled_masses(
    p: tuple[float, ...], q: tuple[float, ...], rate: float, direction: Direction
) -> tuple[Array, Array]:
    """Return the masses of the two outputs, first the one that generates the loss."""
    with_record, without = np.array(p) / math.fsum(p), np.array(q) / math.fsum(q)
    sampled = with_record if rate == 1 else (1 - rate) * without + rate * with_record
    return (sampled, without) if direction is Direction.REMOVED else (without, sampled)


def _losses(first: Array, second: Array) -> tuple[Array, Array]:
    """Return log(first/second), accurate also near 0, with bounds on the errors."""
    ratio = first / second
    near = np.abs(ratio - 1) < 0.5
    with np.errstate(divide="ignore", over="ignore"):
        far = np.log(first) - np.log(second)
        close = np.log1p((first - second) / second)
    losses = np.where(near, close, far)
    sizes = np.where(near, 1.0, np.abs(np.log(first)) + np.abs(np.log(second)))
    return losses, 2 * ROUNDINGS * UNIT_ROUNDOFF * (1 + sizes)
