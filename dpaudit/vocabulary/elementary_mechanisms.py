"""Mechanisms of one release on the whole data set: noise, randomized response and guarantees."""

from __future__ import annotations

from dpaudit.vocabulary.errors import (
    InvalidArgument,
    is_number,
    require_count,
    require_not_negative,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency
from dpaudit.vocabulary.tagged import Tagged


class Gaussian(Tagged, frozen=True, omit_defaults=True):
    """Gaussian mechanism: a sum of vectors of L2 norm at most C, plus normal noise.

    Every coordinate gets noise of law N(0, (noise_multiplier * C)^2). Adding or removing one
    record moves the sum by at most C in L2 norm, replacing one by at most 2 C.

    Attributes:
        noise_multiplier: Standard deviation of the noise, in units of C; above 0 and finite. In
            units of 2 C where ``set_for`` is REPLACE_ONE.
        set_for: The adjacency whose sensitivity ``noise_multiplier`` is relative to. With
            REPLACE_ONE, no guarantee for a record added or removed is known.

    Raises:
        InvalidArgument: If ``noise_multiplier`` is not above 0 and finite.

    Example:
        >>> import msgspec
        >>> msgspec.json.encode(Gaussian(noise_multiplier=1.1))
        b'{"kind":"gaussian","noise_multiplier":1.1}'
    """

    noise_multiplier: float
    set_for: Adjacency = Adjacency.ADD_OR_REMOVE_ONE

    def _require_valid(self) -> None:
        require_positive("noise_multiplier", self.noise_multiplier)
        require_adjacency("set_for", self.set_for)


class Laplace(Tagged, frozen=True):
    """Laplace mechanism: a number plus noise of density exp(-|x| / scale) / (2 scale).

    Attributes:
        scale: Scale of the noise, in units of the number; above 0 and finite. The standard
            deviation is sqrt(2) times the scale.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for; above 0 and finite. Epsilon is ``sensitivity / scale``.

    Raises:
        InvalidArgument: If ``scale`` or ``sensitivity`` is not above 0 and finite.

    Example:
        >>> import msgspec
        >>> msgspec.json.encode(Laplace(scale=2.0))
        b'{"kind":"laplace","scale":2.0,"sensitivity":1.0}'
    """

    scale: float
    sensitivity: float = 1.0

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_positive("sensitivity", self.sensitivity)


class DiscreteGaussian(Tagged, frozen=True):
    """Discrete Gaussian mechanism: a whole number plus noise on the integers.

    The mass at x is proportional to exp(-x^2 / (2 scale^2)).

    Attributes:
        scale: Parameter of the noise, close to its standard deviation; above 0 and finite.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for; at least 1. Replacing a record changes a sum of values
            clipped to C by up to 2 C: give 2 C for replace-one. ``Gaussian``, whose multiplier
            refers to C, is doubled there by the accountants.

    Raises:
        InvalidArgument: If ``scale`` is not above 0 and finite, or ``sensitivity`` is no whole
            number of at least 1.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010, Definition 1.

    Example:
        >>> DiscreteGaussian(scale=10.0).sensitivity
        1
    """

    scale: float
    sensitivity: int = 1

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


class DiscreteLaplace(Tagged, frozen=True):
    """Discrete Laplace mechanism: a whole number plus noise on the integers.

    The mass at x is proportional to exp(-|x| / scale).

    Attributes:
        scale: Parameter of the noise; above 0 and finite.
        sensitivity: Largest change of the number between neighbors, under the adjacency that
            epsilon is computed for (see ``DiscreteGaussian``); at least 1. Epsilon is
            ``sensitivity / scale``.

    Raises:
        InvalidArgument: If ``scale`` is not above 0 and finite, or ``sensitivity`` is no whole
            number of at least 1.

    Example:
        >>> DiscreteLaplace(scale=0.5, sensitivity=2)
        DiscreteLaplace(scale=0.5, sensitivity=2)
    """

    scale: float
    sensitivity: int = 1

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("sensitivity", self.sensitivity)


LARGEST_INTEGER_SCALE, LARGEST_CHANGE = 1e100, 1e15


class VectorDiscreteGaussian(Tagged, frozen=True):
    """Vector discrete Gaussian: an integer vector plus independent noise on every coordinate.

    The mass of the noise at x is proportional to exp(-x^2 / (2 scale^2)), on the integers. Both
    sensitivities hold under the adjacency that epsilon is computed for.

    Attributes:
        scale: Parameter of the noise of one coordinate, close to its standard deviation; from
            1e-100 to 1e100.
        l2_sensitivity: Largest L2 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); from 1
            to 1e15.
        l1_sensitivity: Largest L1 norm of this change; at least 1. The square of
            ``l2_sensitivity`` always holds, because the change is an integer vector.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``scale`` or a sensitivity is out of its range, or ``dimension`` is no
            whole number of at least 1.

    References:
        Canonne, Kamath & Steinke (2020), arXiv:2004.00010; Kairouz, Liu & Steinke (2021),
        arXiv:2102.06387.

    Example:
        >>> VectorDiscreteGaussian(40.0, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000)
        VectorDiscreteGaussian(scale=40.0, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000)
    """

    scale: float
    l2_sensitivity: float
    l1_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        _require_integer_change(self)


class DistributedDiscreteGaussian(Tagged, frozen=True):
    """An integer vector plus the sum of several participants' discrete Gaussian noise.

    Every coordinate gets ``shares`` independent draws, each with mass proportional to
    exp(-x^2 / (2 scale^2)). Their sum is no discrete Gaussian. Both sensitivities hold under the
    adjacency that epsilon is computed for.

    Attributes:
        scale: Parameter of one share's noise on one coordinate; from 1e-100 to 1e100.
        shares: Number of draws that are surely added: honest participants that did not drop out;
            at least 1.
        l2_sensitivity: Largest L2 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); from 1
            to 1e15.
        l1_sensitivity: Largest L1 norm of this change; at least 1.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``scale`` or a sensitivity is out of its range, or a count is no whole
            number of at least 1.

    References:
        Kairouz, Liu & Steinke (2021), arXiv:2102.06387.

    Example:
        >>> noise = DistributedDiscreteGaussian(
        ...     4.0, shares=100, l2_sensitivity=4.0, l1_sensitivity=16.0, dimension=1000
        ... )
        >>> noise.shares
        100
    """

    scale: float
    shares: int
    l2_sensitivity: float
    l1_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("scale", self.scale)
        require_count("shares", self.shares)
        _require_integer_change(self)


class Skellam(Tagged, frozen=True):
    """Skellam mechanism: an integer vector plus a difference of two Poisson draws per coordinate.

    Both Poisson draws have the mean variance / 2. The sum of independent Skellam noise is Skellam
    noise, and variances add up: shares of several participants are one ``Skellam``. Both
    sensitivities hold under the adjacency that epsilon is computed for.

    Attributes:
        variance: Variance of the noise of one coordinate; from 1e-100 to 1e100.
        l1_sensitivity: Largest L1 norm of the change of the vector between neighbors, under the
            adjacency that epsilon is computed for (see ``DiscreteGaussian``); at least 1.
        l2_sensitivity: Largest L2 norm of this change; from 1 to 1e15.
        dimension: Number of coordinates; at least 1.

    Raises:
        InvalidArgument: If ``variance`` or a sensitivity is out of its range, or ``dimension`` is
            no whole number of at least 1.

    References:
        Agarwal, Kairouz & Liu (2021), arXiv:2110.04995.

    Example:
        >>> Skellam(100.0, l1_sensitivity=16.0, l2_sensitivity=4.0, dimension=1000).variance
        100.0
    """

    variance: float
    l1_sensitivity: float
    l2_sensitivity: float
    dimension: int

    def _require_valid(self) -> None:
        require_positive("variance", self.variance)
        _require_integer_change(self)


def _require_integer_change(
    mechanism: VectorDiscreteGaussian | DistributedDiscreteGaussian | Skellam,
) -> None:
    """Refuse sensitivities below 1, which no integer vector has, and an invalid dimension.

    Squares of noise and sensitivities must neither overflow nor vanish.
    """
    limits = {"l2_sensitivity": LARGEST_CHANGE, "l1_sensitivity": LARGEST_INTEGER_SCALE}
    for name, limit in limits.items():
        value = getattr(mechanism, name)
        if not is_number(value) or not 1 <= value <= limit:
            raise InvalidArgument(name, value, f"from 1 to {limit:g}: integers are released")
    for name in ("scale", "variance"):
        noise = getattr(mechanism, name, 1.0)
        if not 1 / LARGEST_INTEGER_SCALE <= noise <= LARGEST_INTEGER_SCALE:
            raise InvalidArgument(name, noise, "from 1e-100 to 1e100")
    require_count("dimension", mechanism.dimension)


class RandomizedResponse(Tagged, frozen=True):
    """Randomized response: the true answer, or one of the others drawn uniformly.

    Defined for neighbors that replace one record alone: without a record there is no answer.
    With p the ``truth_probability``, epsilon is ln(p (categories - 1) / (1 - p)).

    Attributes:
        truth_probability: Probability of the true answer; at least 1/categories (which reveals
            nothing) and below 1.
        categories: Number of possible answers; at least 2.

    Raises:
        InvalidArgument: If ``categories`` is no whole number of at least 2, or
            ``truth_probability`` is out of its range.

    Example:
        >>> RandomizedResponse(truth_probability=0.75).categories
        2
    """

    truth_probability: float
    categories: int = 2

    def _require_valid(self) -> None:
        require_count("categories", self.categories, least=2)
        require_open_unit("truth_probability", self.truth_probability)
        if self.truth_probability < 1 / self.categories:
            raise InvalidArgument(
                "truth_probability",
                self.truth_probability,
                f"at least 1/categories = {1 / self.categories:g} and below 1",
            )


class Exponential(Tagged, frozen=True):
    """Exponential mechanism: a choice among candidates by their scores.

    A candidate has probability proportional to exp(epsilon * score / (2 * sensitivity)), where
    the sensitivity is the largest change of a score between neighbors.

    Attributes:
        epsilon: The parameter of the choice, in nats; above 0 and finite. The choice is
            (epsilon, 0)-DP, and its privacy losses span a range of at most epsilon.

    Raises:
        InvalidArgument: If ``epsilon`` is not above 0 and finite.

    References:
        Durfee & Rogers (2019), arXiv:1905.04273 (bounded range).

    Example:
        >>> import msgspec
        >>> msgspec.json.encode(Exponential(epsilon=0.5))
        b'{"kind":"exponential","epsilon":0.5}'
    """

    epsilon: float

    def _require_valid(self) -> None:
        require_positive("epsilon", self.epsilon)


class PureDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is (epsilon, 0)-DP.

    Attributes:
        epsilon: The guarantee, in nats; above 0 and finite.

    Raises:
        InvalidArgument: If ``epsilon`` is not above 0 and finite.

    Example:
        >>> import msgspec
        >>> msgspec.json.encode(PureDP(epsilon=1.0))
        b'{"kind":"pure-dp","epsilon":1.0}'
    """

    epsilon: float

    def _require_valid(self) -> None:
        require_positive("epsilon", self.epsilon)


class ApproximateDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is (epsilon, delta)-DP.

    Attributes:
        epsilon: The guarantee, in nats; at least 0 and finite.
        delta: The probability that the guarantee leaves out; above 0 and below 1.

    Raises:
        InvalidArgument: If ``epsilon`` or ``delta`` is out of its range.

    Example:
        >>> ApproximateDP(epsilon=1.0, delta=1e-6)
        ApproximateDP(epsilon=1.0, delta=1e-06)
    """

    epsilon: float
    delta: float

    def _require_valid(self) -> None:
        require_not_negative("epsilon", self.epsilon)
        require_open_unit("delta", self.delta)


class ZCDP(Tagged, frozen=True):
    """Any mechanism of which it is known that it is rho-zCDP.

    Its Renyi divergence of every order a > 1 is at most a * rho.

    Attributes:
        rho: The guarantee, in nats per order; above 0 and finite.

    Raises:
        InvalidArgument: If ``rho`` is not above 0 and finite.

    References:
        Bun & Steinke (2016), arXiv:1605.02065, Definition 1.1.

    Example:
        >>> import msgspec
        >>> msgspec.json.encode(ZCDP(rho=0.1))
        b'{"kind":"zcdp","rho":0.1}'
    """

    rho: float

    def _require_valid(self) -> None:
        require_positive("rho", self.rho)


# Groups of mechanisms. They are unions, so isinstance and match accept them.

IntegerVectorNoise = VectorDiscreteGaussian | DistributedDiscreteGaussian | Skellam
"""Independent noise on every coordinate of an integer vector."""

AdditiveNoise = Gaussian | Laplace | DiscreteGaussian | DiscreteLaplace | IntegerVectorNoise
Guarantee = Exponential | PureDP | ApproximateDP | ZCDP
GivenPair = MixtureOfGaussians | DominatingPair
"""Mechanisms that are given by a pair of output distributions."""

ElementaryMechanism = AdditiveNoise | RandomizedResponse | Guarantee | GivenPair
"""Mechanisms on the whole data set, which can be applied to a sample."""
