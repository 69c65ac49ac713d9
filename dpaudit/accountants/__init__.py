"""Compute privacy bounds of mechanisms: epsilon, delta and attack risk.

This package imports numpy and scipy alone. Its functions are pure and its types are frozen.
A mechanism is a tree of frozen types, for example ``Repeated(Gaussian(1.0), 10)``. Each
accountant is a module with a ``profile`` function, which takes a mechanism and an adjacency.

- ``naive``: basic, advanced and optimal composition
- ``rdp``: Renyi differential privacy; its integer orders are the moments accountant
- ``zcdp``: zero-concentrated differential privacy
- ``gdp``: Gaussian differential privacy, exact for Gaussians without sampling
- ``pld``: privacy loss distributions, with certified two-sided intervals

``calibrate`` inverts an accountant, ``calibrate_risk`` inverts an attacker's success, ``risk``
converts a profile to that success, ``group_privacy`` covers several records, ``shuffling`` has the
closed form for shuffled reports, and ``privacy_filters`` covers adaptive schedules.

Example:
    >>> from dpaudit.accountants import Gaussian, Repeated, pld
    >>> profile = pld.profile(Repeated(Gaussian(noise_multiplier=10.0), 100))
    >>> epsilon = profile.epsilon(delta=1e-5)
    >>> round(epsilon.lower, 4), round(epsilon.upper, 4)
    (4.3772, 4.3772)
"""

if __name__ != "dpaudit.accountants":
    raise ImportError(
        f"import dpaudit.accountants, not {__name__}: the symlink is for browsing only"
    )

from dpaudit.accountants.importers import (
    from_dp_event,
    from_flower,
    from_jax_privacy,
    from_opacus,
    from_tensorflow_privacy,
)
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    DistributedDiscreteGaussian,
    Exponential,
    FixedThresholdSparseVector,
    Gaussian,
    Laplace,
    Mechanism,
    MonotoneSparseVector,
    NegativeBinomialTrials,
    NumericSparseVector,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    Shuffled,
    Skellam,
    SparseVector,
    TreeAggregation,
    TruncatedPoisson,
    VectorDiscreteGaussian,
)
from dpaudit.vocabulary.pairs import DominatingPair, MixtureOfGaussians, PairMasses, PairSource
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

__all__ = [
    "ZCDP",
    "Adjacency",
    "ApproximateDP",
    "BandedMatrixFactorization",
    "BinnedMatrixFactorization",
    "Bound",
    "Composed",
    "DiscreteGaussian",
    "DiscreteLaplace",
    "DistributedDiscreteGaussian",
    "DominatingPair",
    "Exponential",
    "FixedThresholdSparseVector",
    "Gaussian",
    "Laplace",
    "Mechanism",
    "MixtureOfGaussians",
    "MonotoneSparseVector",
    "NegativeBinomialTrials",
    "NumericSparseVector",
    "PairMasses",
    "PairSource",
    "PoissonSampled",
    "PoissonTrials",
    "PureDP",
    "RandomAllocation",
    "RandomizedResponse",
    "Repeated",
    "SampledWithoutReplacement",
    "Selected",
    "Shuffled",
    "Skellam",
    "SparseVector",
    "TreeAggregation",
    "TruncatedPoisson",
    "VectorDiscreteGaussian",
    "from_dp_event",
    "from_flower",
    "from_jax_privacy",
    "from_opacus",
    "from_tensorflow_privacy",
]
