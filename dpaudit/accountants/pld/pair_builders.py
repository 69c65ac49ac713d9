"""Build dominating pairs from masses, distributions, a trade-off curve or delta(epsilon).

Each builder returns two finite pairs, which enclose the true one in the order of hockey-stick
divergences (equations 7 to 10 of docs/mathematics/dominating_pairs.md):

    from_pmfs              both are the given masses
    from_densities         cells of an axis, merged to means below, spread to their ends above
    from_tradeoff          chords below; prolonged chords above
    from_privacy_profile   prolonged chords below; chords above

A convex curve lies below each chord inside of it, and above each chord outside of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpaudit.accountants.pld.laws.gaussian_mixtures import LossCells, shares_of_upper_ends
from dpaudit.accountants.rounding_margins import UNIT_ROUNDOFF
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
from dpaudit.vocabulary.pairs import DominatingPair, PairMasses, PairSource

Array = NDArray[np.float64]

EPSILONS = np.concatenate([[0.0], np.geomspace(1e-4, 100.0, 4000)])
ALPHAS = np.concatenate(
    [np.geomspace(1e-30, 0.5, 4000), 1 - np.geomspace(1e-12, 0.499, 2000)[::-1]]
)
ACCURACY = 1e-12
"""Default relative accuracy of the user's functions."""
DISTRIBUTION_ACCURACY = 1e-14
"""Default relative accuracy of the user's distribution functions."""
ABSOLUTE_ACCURACY = 1e-15
"""Default absolute accuracy of a trade-off curve."""
MOST_INFLATIONS = 6
LARGEST_EXCESS = 1e-6
"""Excess of a rounded profile's mass over 1 up to which it counts as an error of its masses."""
LARGEST_POINT = 600.0
"""Largest epsilon of a point, in nats: its exponential and products of it are doubles."""
LEAST_MASS = 1e-290
LARGEST_CELL_ERROR = 1e-6
"""Largest relative error of a cell's mass; what other cells have of P has an infinite loss."""


class Distribution(Protocol):
    """A distribution on the real line, such as a frozen one of ``scipy.stats``."""

    def cdf(self, x: Array, /) -> ArrayLike:
        """Return the probability of at most x."""

    def sf(self, x: Array, /) -> ArrayLike:
        """Return the probability of more than x, accurate also where it is tiny."""

    def logpdf(self, x: Array, /) -> ArrayLike:
        """Return the logarithm of the density."""


def from_pmfs(
    p: Mapping[Any, float] | Sequence[float], q: Mapping[Any, float] | Sequence[float]
) -> DominatingPair:
    """Return the pair of two distributions on finitely many outcomes.

    Args:
        p: Masses with the record, by outcome, or as a sequence. They sum to 1 within 1e-12.
        q: Masses without it, by outcome, or in the same order.

    Returns:
        The pair. An outcome that one of them lacks has the mass 0 there.

    Raises:
        InvalidArgument: If a mass is negative, or the sum is not 1. Put a mass that was left out
            into an outcome of its own.

    Example:
        >>> from dpaudit.accountants import Repeated, pld
        >>> coin = pld.from_pmfs({"yes": 0.75, "no": 0.25}, {"yes": 0.25, "no": 0.75})
        >>> f"{pld.profile(Repeated(coin, 10)).epsilon(delta=1e-3).upper:.4f}"
        '10.9684'
    """
    if isinstance(p, Mapping) and isinstance(q, Mapping):
        outcomes = list(dict.fromkeys([*p, *q]))
        p, q = [p.get(one, 0.0) for one in outcomes], [q.get(one, 0.0) for one in outcomes]
    elif isinstance(p, Mapping) or isinstance(q, Mapping):
        raise InvalidArgument("q", type(q).__name__, "a mapping like p, or both sequences")
    masses = PairMasses(p=tuple(p), q=tuple(q))
    return DominatingPair(upper=masses, lower=masses, source=PairSource.ATOMS)


def from_densities(
    p: Distribution,
    q: Distribution,
    *,
    edges: ArrayLike,
    accuracy: float = DISTRIBUTION_ACCURACY,
) -> DominatingPair:
    """Return the pair of two distributions on the real line whose loss is monotone.

    The loss log p(x) - log q(x) must rise everywhere, or fall everywhere, on the real line. It is
    checked at the edges alone.

    Args:
        p: Distribution with the record. Frozen distributions of ``scipy.stats`` fit.
        q: Distribution without it.
        edges: Rising ends of cells, shape ``(n,)``, at least 3. Mass of P beyond the outer edges
            counts as an infinite loss in the upper pair.
        accuracy: Relative accuracy of ``cdf`` and ``sf``, and absolute one of ``logpdf``. Deltas
            below about 1000 times it cannot be resolved, as cells are differences.

    Returns:
        The pair, on n + 1 cells.

    Raises:
        InvalidArgument: If edges do not rise, or the loss is not monotone at them.

    Example:
        >>> import numpy as np
        >>> from scipy.stats import norm
        >>> from dpaudit.accountants import pld
        >>> edges = np.linspace(-9, 10, 3000)
        >>> pair = pld.from_densities(norm(1), norm(0), edges=edges)
        >>> found = pld.profile(pair).epsilon(delta=1e-5)
        >>> f"{found.lower:.3f} to {found.upper:.3f}"
        '4.377 to 4.377'
    """
    require_open_unit("accuracy", accuracy)
    at = np.asarray(edges, dtype=np.float64)
    if at.ndim != 1 or len(at) < 3 or not (np.diff(at) > 0).all() or not np.isfinite(at).all():
        raise InvalidArgument("edges", "an array", "at least 3 rising finite numbers")
    loss = np.asarray(p.logpdf(at), float) - np.asarray(q.logpdf(at), float)
    if not np.isfinite(loss).all():
        raise InvalidArgument("edges", "an edge without density", "where both have a density")
    slack = 2 * accuracy + 8 * UNIT_ROUNDOFF * np.abs(loss)
    rising = bool(loss[-1] >= loss[0])
    steps = np.diff(loss if rising else -loss)
    if not (steps >= -(slack[1:] + slack[:-1])).all():
        raise InvalidArgument("p and q", "a loss that turns", "of a monotone loss")
    p_masses, p_error = _cell_masses(p, at, accuracy)
    q_masses, q_error = _cell_masses(q, at, accuracy)
    if not rising:  # mirrored, so that the loss rises
        loss, slack = loss[::-1], slack[::-1]
        p_masses, p_error = p_masses[::-1], p_error[::-1]
        q_masses, q_error = q_masses[::-1], q_error[::-1]
    cells = LossCells(
        p=p_masses,
        q=q_masses,
        error=np.maximum(p_error, q_error),
        low=np.append(-math.inf, loss - slack),
        high=np.append(loss + slack, math.inf),
    )
    masses, errors = np.stack([p_masses, q_masses]), np.stack([p_error, q_error])
    absolute = errors * np.maximum(masses, LEAST_MASS)
    usable = (cells.p > LEAST_MASS) & (cells.q > LEAST_MASS) & (cells.error < LARGEST_CELL_ERROR)
    if not usable.any():
        raise InvalidArgument("edges", "an array", "where p and q have masses in the same cells")
    lower, rest_error = _merged_cells(cells, usable, absolute)
    return DominatingPair(
        upper=_spread_cells(cells, usable, absolute[0]),
        lower=lower,
        source=PairSource.DENSITIES,
        # Sums of masses are 1 up to the same error, and so are the shares of them.
        mass_error=4 * max(rest_error, float(cells.error[usable].max())),
    )


def from_tradeoff(
    beta: Callable[[Array], ArrayLike],
    *,
    alphas: ArrayLike = ALPHAS,
    accuracy: float = ABSOLUTE_ACCURACY,
) -> DominatingPair:
    """Return the pair of a trade-off curve: the least type II error at each type I error.

    Args:
        beta: Function from an array of type I errors, in (0, 1), to an array of type II errors;
            convex and falling. The null hypothesis is the data set without the record.
        alphas: Rising type I errors at which the curve is evaluated. The upper pair takes what
            the curve may do between 0 and the first one as an infinite loss.
        accuracy: Absolute accuracy of ``beta``. Deltas below it cannot be resolved.

    Returns:
        The pair, with about one outcome per type I error.

    Raises:
        InvalidArgument: If the values are no convex falling curve below 1 - alpha.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383.

    Example:
        >>> from scipy.stats import norm
        >>> from dpaudit.accountants import pld
        >>> pair = pld.from_tradeoff(lambda a: norm.cdf(norm.isf(a) - 1.0))
        >>> found = pld.profile(pair).epsilon(delta=1e-5)
        >>> f"{found.lower:.3f} to {found.upper:.3f}"
        '4.377 to 4.377'
    """
    require_open_unit("accuracy", accuracy)
    at = np.asarray(alphas, dtype=np.float64)
    if at.ndim != 1 or len(at) < 3 or not ((np.diff(at) > 0).all() and at[0] > 0 and at[-1] < 1):
        raise InvalidArgument("alphas", "an array", "at least 3 rising numbers in (0, 1)")
    values = np.asarray(beta(at), dtype=np.float64)
    if values.shape != at.shape or not ((values >= 0) & (values <= 1 - at + accuracy)).all():
        raise InvalidArgument("beta", "other values", "one value in [0, 1 - alpha] per alpha")
    slack = accuracy + 4 * UNIT_ROUNDOFF
    # The power 1 - beta is concave, and at least alpha.
    power = np.concatenate([[0.0], np.maximum(1 - values - slack, at), [1.0]])
    lower = _hull(np.concatenate([[0.0], at, [1.0]]), -power)
    _require_convex(power[1:-1], -np.interp(at, *lower), 4 * slack, "beta")
    x = np.append(at, 1.0)
    low, high = np.append(np.maximum(values - slack, 0.0), 0.0), np.append(values + slack, 0.0)
    first_slope = (high[1] - low[0]) / (at[1] - at[0])  # the first chord, prolonged to 0
    start = float(np.clip(low[0] - first_slope * at[0], 0.0, 1.0))
    below = _prolonged(x, low, high, -(1 - low[0]) / at[0], "beta")
    upper = _hull(*_joined((0.0, start), below, (1.0, 0.0)))
    return DominatingPair(
        upper=_masses_of_power(upper[0], 1 - upper[1]),
        lower=_masses_of_power(lower[0], -lower[1]),
        source=PairSource.TRADE_OFF_CURVE,
    )


def from_privacy_profile(
    delta: Callable[[Array], ArrayLike],
    *,
    epsilons: ArrayLike = EPSILONS,
    accuracy: float = ACCURACY,
) -> DominatingPair:
    """Return the pair of a privacy profile: the tight delta at each epsilon.

    The pair is symmetric: one pair of neighbors is taken to attain the profile in both orders. A
    maximum over both orders of a mechanism with two profiles, such as a Poisson sample, gives
    such a pair from above. Of such a maximum the upper ends hold, also of compositions, while the
    lower ends of compositions may exceed the truth. Use ``from_tradeoff`` or masses there.

    Args:
        delta: Function from epsilons in nats, each at least 0, to deltas; convex in e^epsilon and
            falling.
        epsilons: Rising epsilons at which it is evaluated, the first one 0, at most 600. The upper
            pair takes delta at the last one as an infinite loss.
        accuracy: Relative accuracy of ``delta``.

    Returns:
        The pair, with about two outcomes per epsilon.

    Raises:
        InvalidArgument: If the values are no convex falling curve.

    References:
        Zhu, Dong & Wang (2022), arXiv:2106.08567; Doroshenko et al. (2022), arXiv:2207.04380.

    Example:
        >>> from dpaudit.accountants import Gaussian, gdp, pld
        >>> import numpy as np
        >>> gaussian = np.vectorize(lambda e: gdp.profile(Gaussian(1.0)).delta(epsilon=e).upper)
        >>> pair = pld.from_privacy_profile(gaussian, epsilons=np.linspace(0, 30, 3001))
        >>> found = pld.profile(pair).epsilon(delta=1e-5)
        >>> f"{found.lower:.3f} to {found.upper:.3f}"
        '4.377 to 4.377'
    """
    require_open_unit("accuracy", accuracy)
    at = np.asarray(epsilons, dtype=np.float64)
    if at.ndim != 1 or len(at) < 3 or not ((np.diff(at) > 0).all() and at[0] == 0):
        raise InvalidArgument("epsilons", "an array", "at least 3 rising numbers from 0")
    if not at[-1] <= LARGEST_POINT:
        raise InvalidArgument("epsilons", float(at[-1]), f"at most {LARGEST_POINT:g}")
    values = np.asarray(delta(at), dtype=np.float64)
    if values.shape != at.shape or not ((values >= 0) & (values <= 1)).all():
        raise InvalidArgument("delta", "other values", "one value in [0, 1] per epsilon")
    relative = accuracy + 32 * UNIT_ROUNDOFF * len(at)
    ratios = np.exp(at)
    count = _resolved_points(ratios, values)
    for _ in range(MOST_INFLATIONS):
        (upper, error), lower = _profile_pairs(ratios[:count], values[:count], relative)
        if _encloses(upper, lower, ratios, values, error):
            return DominatingPair(
                upper=upper, lower=lower, source=PairSource.PRIVACY_PROFILE, mass_error=error
            )
        relative *= 8
    raise InvalidArgument("delta", "values", "accurate: they do not determine a pair")


def _resolved_points(t: Array, values: Array) -> int:
    """Return how many points of a profile have chords whose slopes do not underflow, at least 2.

    The rest of the profile is below the last of them, and counts as an infinite loss.
    """
    falls = -np.diff(values) >= LEAST_MASS * np.diff(t)
    tiny = values[1:] < LEAST_MASS * t[1:]
    return len(t) if not tiny.any() else max(2, (first := int(tiny.argmax())) + 1 + falls[first])


def _profile_pairs(
    t: Array, values: Array, relative: float
) -> tuple[tuple[PairMasses, float], PairMasses]:
    """Return the pairs above and below a profile with a relative error, at ratios from 1 on.

    The pair above comes with a relative error of its masses.
    """
    high = values * (1 + relative)
    low = values * (1 - relative)
    knots, hull = _hull(t, high)
    _require_convex(np.interp(t, knots, hull), low, LEAST_MASS, "delta")
    # Half of what is neither in the larger nor in the smaller outcomes bounds the first slope.
    below = _prolonged(t, low, high, -(1 - low[0]) / 2, "delta")
    last_slope = (low[-1] - high[-2]) / (t[-1] - t[-2])
    end = t[-1] - low[-1] / last_slope if last_slope < 0 else t[-1]
    floor = _hull(*_joined((1.0, float(low[0])), below, (float(end), 0.0)))
    return _symmetric_masses_above(knots, hull), _symmetric_masses_below(*floor)


# Curves.


def _hull(x: Array, y: Array) -> tuple[Array, Array]:
    """Return the lower convex hull of points with rising x."""
    kept: list[int] = []
    for i in range(len(x)):
        while len(kept) >= 2:
            a, b = kept[-2], kept[-1]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break
            kept.pop()
        kept.append(i)
    return x[kept], y[kept]


def _require_convex(curve: Array, least: Array, slack: float, name: str) -> None:
    """Refuse values whose convex hull is below what they may be."""
    if not (curve >= least - slack).all():
        raise InvalidArgument(name, "values that are not convex", "a convex curve")


def _prolonged(
    x: Array, low: Array, high: Array, first_slope: float, name: str
) -> tuple[Array, Array]:
    """Return points whose convex hull is below a convex falling curve.

    Between two positions the curve is above both neighboring chords, prolonged, and there is one
    point where these meet. The curve lies between ``low`` and ``high`` at each position. So one
    end of a chord is raised and the other lowered, and the prolonged chord falls too fast.

    Args:
        x: Rising positions, shape ``(n,)``.
        low: Lower ends of the curve's values there.
        high: Upper ends.
        first_slope: Lower bound on the slope at x[0]; the curve is flat at the end.
        name: The argument, for an error.

    Returns:
        Positions and values, each of shape ``(n - 1,)``.
    """
    widths = np.diff(x)
    from_left = np.append(first_slope, (low[1:-1] - high[:-2]) / widths[:-1])
    from_right = np.append((high[2:] - low[1:-1]) / widths[1:], 0.0)
    if not (from_left <= from_right).all():
        raise InvalidArgument(name, "values that are not convex", "a convex falling curve")
    turn = from_right - from_left
    with np.errstate(invalid="ignore", divide="ignore"):
        meet = (low[1:] - low[:-1] - from_right * widths) / -turn
    meet = np.where(turn > 0, np.clip(meet, 0.0, widths), widths / 2)
    by_left = low[:-1] + from_left * meet
    by_right = low[1:] - from_right * (widths - meet)
    # At the end of an interval the chords may miss each other: the lower one is the safe one.
    return x[:-1] + meet, np.maximum(np.minimum(by_left, by_right), 0.0)


def _joined(
    first: tuple[float, float], points: tuple[Array, Array], last: tuple[float, float]
) -> tuple[Array, Array]:
    """Return points between two ends; of points at the same position, the lowest one."""
    x = np.concatenate([[first[0]], points[0], [last[0]]])
    y = np.concatenate([[first[1]], points[1], [last[1]]])
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    new = np.append(True, np.diff(x) > 0)
    return x[new], y[new]


def _masses_of_power(alphas: Array, power: Array) -> PairMasses:
    """Return the masses between the corners of a concave power curve, from (0, .) to (1, 1)."""
    p = np.concatenate([[power[0]], np.maximum(np.diff(power), 0.0)])
    q = np.concatenate([[0.0], np.diff(alphas)])
    return _normalised(p, q)


def _symmetric_masses_above(t: Array, h: Array) -> tuple[PairMasses, float]:
    """Return masses of a symmetric pair whose curve is at least h at ratios from 1 on, with errors.

    Rounded up, h may need the mass 1 + e. The masses are divided by it, and e is their relative
    error. If e is too large for an error, all finite losses shrink by s instead, and mass of P
    alone fills up to 1. The curve becomes 1 - s (1 + e - h), which is at least the true one for
    s = (1 - h(1))/(1 - h(1) + e).
    """
    p, q = _corner_masses(t, h)
    alone = float(h[-1])
    excess = max(0.0, math.fsum(p) + math.fsum(q) + alone - 1)
    if not excess:
        return _mirrored(p, q, alone), 0.0
    if excess < LARGEST_EXCESS:
        return _mirrored(p, q, alone), excess * (1 + UNIT_ROUNDOFF) + 4 * UNIT_ROUNDOFF
    room = max(0.0, 1 - float(h[0]))
    share = room / (room + excess)
    p, q = p * share, q * share
    return _mirrored(p, q, max(0.0, 1 - math.fsum(p) - math.fsum(q))), 0.0


def _symmetric_masses_below(t: Array, h: Array) -> PairMasses:
    """Return the masses of a symmetric pair from its convex curve h at ratios from 1 on."""
    return _mirrored(*_corner_masses(t, h), float(h[-1]))


def _corner_masses(t: Array, h: Array) -> tuple[Array, Array]:
    """Return the masses of P and Q with ratios above 1, at the corners of a convex curve.

    The slope is minus the mass of Q with a larger ratio, so Q's mass at a corner is the change of
    the slope. P has t times as much there.
    """
    slopes = np.append(np.diff(h) / np.diff(t), 0.0)
    q = np.maximum(np.diff(slopes), 0.0)
    return t[1:] * q, q


def _mirrored(p: Array, q: Array, alone: float) -> PairMasses:
    """Return outcomes and their mirror images; P ``alone`` has a mass, and the rest has ratio 1."""
    equal = max(0.0, 1 - math.fsum(p) - math.fsum(q) - alone)
    ends, mirrored_ends = [equal, alone, 0.0], [equal, 0.0, alone]
    return _normalised(np.concatenate([p, q, ends]), np.concatenate([q, p, mirrored_ends]))


def _normalised(p: Array, q: Array) -> PairMasses:
    """Return masses over their sums, which are 1 up to rounding."""
    kept = (p > 0) | (q > 0)
    p, q = p[kept], q[kept]
    return PairMasses(p=tuple((p / math.fsum(p)).tolist()), q=tuple((q / math.fsum(q)).tolist()))


def _encloses(upper: PairMasses, lower: PairMasses, t: Array, h: Array, mass_error: float) -> bool:
    """Return whether the curves of both pairs, as rounded, are on their sides of the true one.

    The accountant multiplies the masses of the upper pair by 1 + ``mass_error``.
    """
    rounding = 8 * len(t) * UNIT_ROUNDOFF
    return bool(
        (_curve(upper, t) * (1 + mass_error) * (1 - rounding) >= h).all()
        and (_curve(lower, t) * (1 + rounding) <= h).all()
    )


def _curve(masses: PairMasses, t: Array) -> Array:
    """Return the divergence at rising ratios t, by sums of positive terms."""
    p, q = np.array(masses.p), np.array(masses.q)
    ratios = np.full(len(p), np.inf)
    ratios[q > 0] = p[q > 0] / q[q > 0]
    order = np.argsort(ratios)
    p, q, ratios = p[order], q[order], ratios[order]
    count = int(np.isfinite(ratios).sum())
    value, inside, last = float(p[count:].sum()), 0.0, math.inf
    found = np.empty(len(t))
    for i in range(len(t) - 1, -1, -1):
        while count and ratios[count - 1] > t[i]:
            count -= 1
            value += inside * (last - ratios[count]) if inside else 0.0
            last, inside = ratios[count], inside + q[count]
        value += inside * (last - t[i]) if inside else 0.0
        last = t[i]
        found[i] = value
    return found


# Cells of an axis.


def _cell_masses(law: Distribution, edges: Array, accuracy: float) -> tuple[Array, Array]:
    """Return the masses of all cells, from the nearer tail, and bounds on their relative errors."""
    below = np.concatenate([[0.0], np.asarray(law.cdf(edges), float), [1.0]])
    above = np.concatenate([[1.0], np.asarray(law.sf(edges), float), [0.0]])
    right = above[:-1] < 0.5
    near = np.where(right, above[:-1], below[1:])
    masses = np.maximum(np.where(right, above[:-1] - above[1:], below[1:] - below[:-1]), 0.0)
    error = (2 * accuracy + 4 * UNIT_ROUNDOFF) * near / np.maximum(masses, LEAST_MASS)
    return masses, error


def _merged_cells(
    cells: LossCells, usable: NDArray[np.bool_], absolute: Array
) -> tuple[PairMasses, float]:
    """Return a pair below, and the relative error of the outcome that has the unusable cells.

    Each usable cell is one outcome, and all others are one more. As long as a mass of that one is
    not known well, it takes in the largest usable cell. Merging is a function of the output.

    Args:
        cells: The cells.
        usable: Which of them have masses that are known well, shape ``(n,)``.
        absolute: Absolute errors of both masses, shape ``(2, n)``.

    Returns:
        The pair, and the error, which is 0 where there is no such outcome.
    """
    masses = np.stack([cells.p, cells.q])
    kept = usable.copy()
    for largest in np.argsort(-np.where(usable, masses.min(axis=0), 0.0), kind="stable"):
        rest, error = _rest(masses, kept, absolute)
        if kept.all() or error < LARGEST_CELL_ERROR:
            break
        kept[largest] = False
    if kept.all():
        return _normalised(*masses), 0.0
    if not kept.any():  # one outcome, which both have for sure
        return PairMasses(p=(1.0,), q=(1.0,)), 0.0
    return _normalised(
        *(np.append(mass[kept], one) for mass, one in zip(masses, rest, strict=True))
    ), error


def _rest(masses: Array, kept: NDArray[np.bool_], absolute: Array) -> tuple[Array, float]:
    """Return both masses outside of the kept cells, and the larger relative error.

    A mass is a sum over the cells outside, or what the kept ones leave of 1: what is known better.
    """
    rounding = UNIT_ROUNDOFF * masses.shape[1]
    added, left = masses[:, ~kept].sum(axis=1), 1 - masses[:, kept].sum(axis=1)
    added_error = absolute[:, ~kept].sum(axis=1) + rounding * added
    left_error = absolute[:, kept].sum(axis=1) + rounding
    rest = np.where(added_error <= left_error, added, left)
    error = np.minimum(added_error, left_error)
    if not (rest > LEAST_MASS).all():
        return rest, math.inf
    return rest, float((error / rest).max())


def _spread_cells(cells: LossCells, usable: NDArray[np.bool_], absolute: Array) -> PairMasses:
    """Return a pair above: each usable inner cell is spread to the ends of its losses.

    P alone has the other cells and the last one, with their ``absolute`` errors of shape ``(n,)``.
    What is left of Q's mass lies where P has none.
    """
    share = shares_of_upper_ends(cells)
    inner = usable[1:-1]
    masses, low, high = cells.p[1:-1][inner], cells.low[1:-1][inner], cells.high[1:-1][inner]
    share = share[inner]
    p = np.concatenate([masses * share, masses * (1 - share), cells.p[:1] * usable[:1]])
    losses = np.concatenate([high, low, cells.high[:1]])
    p, losses = p[p > 0], losses[p > 0]
    q = np.exp(np.log(p) - losses)
    q = q / max(1.0, math.fsum(q))
    error = float(cells.error[usable].max())
    alone = max(0.0, 1 - math.fsum(q)) + error
    outside = ~usable
    outside[-1] = True
    infinite = min(1.0, float((cells.p + absolute)[outside].sum())) * (1 + error) + LEAST_MASS
    return _normalised(np.append(p, [infinite, 0.0]), np.append(q, [0.0, alone]))
