"""What a release costs: numpy and scipy alone, pure functions, frozen values."""

if __name__ != "dpaudit.accountants":
    raise ImportError(f"import dpaudit.accountants, not {__name__}: the link is a door for people")

from dpaudit.accountants.importers import from_dp_event, from_opacus
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.mechanism import (
    ZCDP,
    ApproximateDP,
    BandedMatrixFactorization,
    Composed,
    DiscreteGaussian,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    NegativeBinomialTrials,
    PoissonSampled,
    PoissonTrials,
    PureDP,
    RandomAllocation,
    RandomizedResponse,
    Repeated,
    SampledWithoutReplacement,
    Selected,
    TreeAggregation,
    TruncatedPoisson,
)

__all__ = [
    "ZCDP",
    "Adjacency",
    "ApproximateDP",
    "BandedMatrixFactorization",
    "Bound",
    "Composed",
    "DiscreteGaussian",
    "DiscreteLaplace",
    "Exponential",
    "Gaussian",
    "Laplace",
    "Mechanism",
    "NegativeBinomialTrials",
    "PoissonSampled",
    "PoissonTrials",
    "PureDP",
    "RandomAllocation",
    "RandomizedResponse",
    "Repeated",
    "SampledWithoutReplacement",
    "Selected",
    "TreeAggregation",
    "TruncatedPoisson",
    "from_dp_event",
    "from_opacus",
]
