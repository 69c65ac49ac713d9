"""Convert guarantees between pure, approximate, zero-concentrated, Renyi and Gaussian DP.

Each function is named by what it takes and what it returns. It converts the guarantee alone, for
the worst mechanism that has it, and rounds the result up. The accountant of the mechanism itself
is at least as tight: convert where nothing but the guarantee is known.

From                To
pure (epsilon)      approximate, zCDP, Renyi, Gaussian
approximate         approximate at another delta
zCDP (rho)          approximate, Renyi
Renyi (order)       approximate; Renyi at a smaller order
Gaussian (mu)       approximate, zCDP, Renyi

``convert`` takes the notions by name, and refuses the others with ``ImpossibleConversion``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from dpaudit.accountants import gdp, zcdp
from dpaudit.accountants.numerics import ndtr
from dpaudit.accountants.rdp import release_divergence
from dpaudit.accountants.rdp.conversion import rdp_to_epsilon
from dpaudit.accountants.rounding_margins import ROUND_UP, UNDERFLOW_ERROR
from dpaudit.vocabulary.errors import (
    ImpossibleConversion,
    InvalidArgument,
    did_you_mean,
    require_above,
    require_delta,
    require_not_negative,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.mechanism import ZCDP, PureDP
from dpaudit.vocabulary.privacy_terms import Adjacency

__all__ = [
    "approximate_to_approximate",
    "convert",
    "gaussian_to_approximate",
    "gaussian_to_renyi",
    "gaussian_to_zcdp",
    "pure_to_approximate",
    "pure_to_gaussian",
    "pure_to_renyi",
    "pure_to_zcdp",
    "renyi_to_approximate",
    "renyi_to_renyi",
    "zcdp_to_approximate",
    "zcdp_to_renyi",
]

ANY_ADJACENCY = Adjacency.ADD_OR_REMOVE_ONE  # a guarantee holds under its own
LARGEST_MU = 80.0


def pure_to_approximate(*, epsilon: float, delta: float) -> float:
    """Convert (epsilon, 0)-DP to the least epsilon at a delta.

    Args:
        epsilon: The guarantee, in nats; above 0 and finite.
        delta: At least 1e-300 and below 1.

    Returns:
        log(e^epsilon - delta (1 + e^epsilon)), at least 0: exact for randomized response, which
        is the worst mechanism; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.pure_to_approximate(epsilon=1.0, delta=0.01), 4)
        0.9862
    """
    require_positive("epsilon", epsilon)
    return approximate_to_approximate(epsilon=epsilon, delta=0.0, new_delta=delta)


def pure_to_zcdp(*, epsilon: float) -> float:
    """Convert (epsilon, 0)-DP to rho of zero-concentrated DP.

    Args:
        epsilon: The guarantee, in nats; above 0 and finite.

    Returns:
        An upper bound of the least rho: close to epsilon tanh(epsilon/2), and at most
        epsilon^2/2.

    Raises:
        InvalidArgument: If ``epsilon`` is out of range.

    References:
        Bun & Steinke (2016), arXiv:1605.02065, Proposition 3.3; Harrison & Manurangsi (2025),
        arXiv:2510.25746.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.pure_to_zcdp(epsilon=1.0), 4)
        0.4621
    """
    return zcdp.release_rho(PureDP(epsilon), ANY_ADJACENCY).upper


def pure_to_renyi(*, epsilon: float, order: float) -> float:
    """Convert (epsilon, 0)-DP to a Renyi divergence.

    Args:
        epsilon: The guarantee, in nats; above 0 and finite.
        order: Order of the divergence, above 1; infinite for the largest loss.

    Returns:
        The divergence of randomized response, which is the worst mechanism, in nats; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Mironov (2017), arXiv:1702.07476, Proposition 5.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.pure_to_renyi(epsilon=1.0, order=2.0), 4)
        0.7353
    """
    mechanism = PureDP(epsilon)
    if order == math.inf:
        return mechanism.epsilon
    orders = np.array([_require_order(order)])
    found = release_divergence.divergence_bounds(mechanism, orders, ANY_ADJACENCY)[1]
    return min(epsilon, float(found[0]))


def pure_to_gaussian(*, epsilon: float) -> float:
    """Convert (epsilon, 0)-DP to mu of Gaussian DP.

    The trade-off curve of randomized response has its corner at (1 - p, 1 - p), p = 1/(1 + e^-e).
    The Gaussian's curve is convex, so it lies below if it does so at the corner.

    Args:
        epsilon: The guarantee, in nats; above 0 and at most 700.

    Returns:
        2 Phi^-1(p), the least mu for the worst mechanism; rounded up.

    Raises:
        InvalidArgument: If ``epsilon`` is out of range.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Section 2.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.pure_to_gaussian(epsilon=1.0), 4)
        1.232
    """
    require_positive("epsilon", epsilon)
    if not epsilon <= 700:
        raise InvalidArgument("epsilon", epsilon, "above 0 and at most 700")
    away = math.exp(-epsilon)
    corner = away / (1 + away)
    low, high = 0.0, LARGEST_MU
    while high - low > 1e-15 * high and low < (middle := (low + high) / 2) < high:
        # The corner must not lie below the Gaussian's curve: Phi(-mu/2) <= 1 - p.
        enough = float(ndtr(-middle / 2)) * (1 + 1e-13) <= corner * (1 - 1e-15)
        low, high = (low, middle) if enough else (middle, high)
    return high


def approximate_to_approximate(*, epsilon: float, delta: float, new_delta: float) -> float:
    """Convert (epsilon, delta)-DP to the least epsilon at another delta.

    Args:
        epsilon: The guarantee, in nats; at least 0 and finite.
        delta: The delta of the guarantee, at least 0 and below 1.
        new_delta: At least ``delta``, at least 1e-300 and below 1.

    Returns:
        The epsilon at ``new_delta`` of the worst mechanism, in nats, at least 0; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.
        ImpossibleConversion: If ``new_delta`` is below ``delta``.

    References:
        Kairouz, Oh & Viswanath (2015), arXiv:1311.0776, Theorem 3.3.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(
        ...     conversions.approximate_to_approximate(epsilon=1.0, delta=1e-6, new_delta=0.01), 4
        ... )
        0.9862
    """
    require_not_negative("epsilon", epsilon)
    if delta != 0:
        require_open_unit("delta", delta)
    require_delta("new_delta", new_delta)
    if new_delta < delta:
        raise ImpossibleConversion(
            f"({epsilon:g}, {delta:g})-DP",
            f"epsilon at delta {new_delta:g}",
            f"a mechanism with the guarantee may reveal everything with probability {delta:g}; "
            "use a delta of at least that",
        )
    # new = d + (1 - d) (e^e - e^e')/(1 + e^e), so e' = e + log1p(-s (1 + e^-e)) with
    # s = (new - d)/(1 - d), rounded down.
    share = max(0.0, (new_delta - delta) * (1 - 1e-15) - 1e-16 * delta) / (1 - delta) * (1 - 1e-15)
    gone = share * (1 + math.exp(-epsilon))
    if gone >= 1:
        return 0.0
    return max(0.0, epsilon + math.log1p(-gone) * (1 - 1e-14) + 1e-15 * epsilon)


def zcdp_to_approximate(*, rho: float, delta: float) -> float:
    """Convert rho-zCDP to an epsilon at a delta.

    Args:
        rho: The guarantee; above 0 and finite.
        delta: At least 1e-300 and below 1.

    Returns:
        An upper bound of epsilon in nats, by the best Renyi order.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Proposition 12.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.zcdp_to_approximate(rho=0.5, delta=1e-5), 3)
        4.728
    """
    return zcdp.profile(ZCDP(rho)).epsilon(delta=delta).upper


def zcdp_to_renyi(*, rho: float, order: float) -> float:
    """Convert rho-zCDP to a Renyi divergence.

    Args:
        rho: The guarantee; above 0 and finite.
        order: Order of the divergence, above 1 and finite.

    Returns:
        order * rho, by definition; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.
        ImpossibleConversion: If ``order`` is infinite.

    References:
        Bun & Steinke (2016), arXiv:1605.02065, Definition 1.1.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.zcdp_to_renyi(rho=0.5, order=3.0), 6)
        1.5
    """
    require_positive("rho", rho)
    if order == math.inf:
        raise ImpossibleConversion("zCDP", "a Renyi divergence of infinite order", UNBOUNDED)
    return _rounded_up(_require_order(order) * rho)


def renyi_to_approximate(*, divergence: float, order: float, delta: float) -> float:
    """Convert a Renyi divergence of one order to an epsilon at a delta.

    Args:
        divergence: Upper bound of the divergence, in nats; at least 0 and finite.
        order: Its order, above 1.
        delta: At least 1e-300 and below 1.

    Returns:
        An upper bound of epsilon in nats. The best of several orders may be used.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Proposition 12; Asoodeh et al. (2021),
        arXiv:2008.06529.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.renyi_to_approximate(divergence=1.0, order=8.0, delta=1e-5), 3)
        2.214
    """
    require_not_negative("divergence", divergence)
    require_delta("delta", delta)
    if order == math.inf:
        return approximate_to_approximate(epsilon=divergence, delta=0.0, new_delta=delta)
    return float(rdp_to_epsilon(_require_order(order), divergence, delta))


def renyi_to_renyi(*, divergence: float, order: float, new_order: float) -> float:
    """Convert a Renyi divergence to that of a smaller order.

    Args:
        divergence: Upper bound of the divergence, in nats; at least 0 and finite.
        order: Its order, above 1.
        new_order: Above 1 and at most ``order``.

    Returns:
        The same number: divergences do not fall with the order.

    Raises:
        InvalidArgument: If an argument is out of range.
        ImpossibleConversion: If ``new_order`` is larger than ``order``.

    References:
        van Erven & Harremoes (2014), arXiv:1206.2459, Theorem 3.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> conversions.renyi_to_renyi(divergence=0.5, order=8.0, new_order=2.0)
        0.5
    """
    require_not_negative("divergence", divergence)
    for name, value in (("order", order), ("new_order", new_order)):
        if value != math.inf:
            require_above(name, value, 1)
    if new_order > order:
        raise ImpossibleConversion(
            f"a Renyi divergence of order {order:g}",
            f"one of order {new_order:g}",
            "divergences of larger orders may be infinite; use an order of at most the given one",
        )
    return float(divergence)


def gaussian_to_approximate(*, mu: float, delta: float) -> float:
    """Convert mu-GDP to the least epsilon at a delta.

    Args:
        mu: The guarantee; above 0 and finite.
        delta: At least 1e-300 and below 1.

    Returns:
        The exact epsilon in nats; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Corollary 2.13.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.gaussian_to_approximate(mu=1.0, delta=1e-5), 4)
        4.3772
    """
    require_positive("mu", mu)
    require_delta("delta", delta)
    return gdp.epsilon_of_mu(delta, mu=mu).upper


def gaussian_to_zcdp(*, mu: float) -> float:
    """Convert mu-GDP to rho of zero-concentrated DP.

    Every mechanism that is mu-GDP is a randomized function of one Gaussian with shift mu.

    Args:
        mu: The guarantee; above 0 and finite.

    Returns:
        mu^2/2, exact for the Gaussian mechanism; rounded up.

    Raises:
        InvalidArgument: If ``mu`` is out of range.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Theorem 2.10.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.gaussian_to_zcdp(mu=1.0), 6)
        0.5
    """
    require_positive("mu", mu)
    return _rounded_up(mu * mu / 2)


def gaussian_to_renyi(*, mu: float, order: float) -> float:
    """Convert mu-GDP to a Renyi divergence.

    Args:
        mu: The guarantee; above 0 and finite.
        order: Order of the divergence, above 1 and finite.

    Returns:
        order mu^2/2, exact for the Gaussian mechanism; rounded up.

    Raises:
        InvalidArgument: If an argument is out of range.
        ImpossibleConversion: If ``order`` is infinite.

    References:
        Dong, Roth & Su (2019), arXiv:1905.02383, Theorem 2.10.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.gaussian_to_renyi(mu=1.0, order=3.0), 6)
        1.5
    """
    require_positive("mu", mu)
    if order == math.inf:
        raise ImpossibleConversion("GDP", "a Renyi divergence of infinite order", UNBOUNDED)
    return _rounded_up(_require_order(order) * mu * mu / 2)


def _rounded_up(value: float) -> float:
    """Return a number that is at least the exact one, which is above 0."""
    return value * ROUND_UP + UNDERFLOW_ERROR


def _require_order(order: float) -> float:
    require_above("order", order, 1)
    return float(order)


UNBOUNDED = "the privacy loss may be unbounded; use a finite order, or approximate DP"
REVEALS = (
    "a mechanism with the guarantee may reveal everything with probability delta, so that the "
    "divergence is infinite; convert to approximate DP at another delta"
)

CONVERSIONS: Mapping[tuple[str, str], Callable[..., float]] = MappingProxyType(
    {
        ("pure", "approximate"): pure_to_approximate,
        ("pure", "zcdp"): pure_to_zcdp,
        ("pure", "renyi"): pure_to_renyi,
        ("pure", "gaussian"): pure_to_gaussian,
        ("approximate", "approximate"): approximate_to_approximate,
        ("zcdp", "approximate"): zcdp_to_approximate,
        ("zcdp", "renyi"): zcdp_to_renyi,
        ("renyi", "approximate"): renyi_to_approximate,
        ("renyi", "renyi"): renyi_to_renyi,
        ("gaussian", "approximate"): gaussian_to_approximate,
        ("gaussian", "zcdp"): gaussian_to_zcdp,
        ("gaussian", "renyi"): gaussian_to_renyi,
    }
)
"""Every conversion by the notions that it takes and returns."""

NOTIONS = ("pure", "approximate", "zcdp", "renyi", "gaussian")

IMPOSSIBLE: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("approximate", "pure"): "a mechanism with the guarantee may reveal everything with "
        "probability delta; pure DP needs delta 0",
        ("approximate", "zcdp"): REVEALS,
        ("approximate", "renyi"): REVEALS,
        ("approximate", "gaussian"): "a mechanism with the guarantee may reveal everything with "
        "probability delta, which no mu allows; use gdp_summary with a slack",
        ("zcdp", "pure"): UNBOUNDED,
        ("gaussian", "pure"): UNBOUNDED,
        ("renyi", "pure"): "only infinite order is pure DP, with epsilon equal to the divergence; "
        "convert to approximate DP",
        ("renyi", "zcdp"): "one order does not bound the others; zCDP needs all of them",
        ("renyi", "gaussian"): "one order does not determine a trade-off curve that mu describes; "
        "convert to approximate DP",
        ("zcdp", "gaussian"): "no conversion is known; convert to approximate DP, or use "
        "gdp_summary on the profile of the accountant zcdp",
    }
)
"""Why a notion does not follow from another one."""


def convert(source: str, result: str, /, **numbers: float) -> float:
    """Convert a guarantee by the names of its notion and of the wanted one.

    Args:
        source: ``pure``, ``approximate``, ``zcdp``, ``renyi`` or ``gaussian``.
        result: One of the same names.
        **numbers: The arguments of the function ``SOURCE_to_RESULT`` of this module.

    Returns:
        What that function returns, rounded up.

    Raises:
        InvalidArgument: If a name or a number is not allowed.
        ImpossibleConversion: If the result does not follow from the source.

    Example:
        >>> from dpaudit.accountants import conversions
        >>> round(conversions.convert("zcdp", "approximate", rho=0.5, delta=1e-5), 3)
        4.728
    """
    for name, value in (("source", source), ("result", result)):
        if value not in NOTIONS:
            hint = did_you_mean(str(value), NOTIONS)
            raise InvalidArgument(name, value, f"one of {', '.join(NOTIONS)}{hint}")
    if (source, result) not in CONVERSIONS:
        why = IMPOSSIBLE.get((source, result), "it is the same guarantee")
        raise ImpossibleConversion(f"{source} DP", f"{result} DP", why)
    function = CONVERSIONS[source, result]
    wanted = [name for name in function.__annotations__ if name != "return"]
    if set(numbers) != set(wanted):
        raise InvalidArgument(
            f"numbers of {source} to {result}", ", ".join(numbers) or "none", ", ".join(wanted)
        )
    return function(**numbers)
