"""Lower bounds on epsilon: pure functions of counts or scores, each with what it rests on.

    certified     clopper_pearson, from_scores, one_run
    conditional   fixed_sizes, gaussian_threshold, gaussian_from_scores, gaussian_pivot,
                  gaussian_epsilon, one_run_gaussian, one_run_curve, one_run_family,
                  tv_rank, tv_visible, t_visible, noise_chi_square
    estimate      jeffreys, zanella_beguelin

Neighbours differ by one record that is added or removed. A threshold, or a number of
guesses, that was chosen after reading the scores makes a bound invalid: see ``thresholds``.
"""

from dpaudit.attacks.bounds.counts import (
    clopper_pearson,
    gaussian_threshold,
    jeffreys,
    zanella_beguelin,
)
from dpaudit.attacks.bounds.family import (
    Family,
    SupportedTradeoff,
    Tradeoff,
    gaussian_tradeoff,
    is_least_refuted,
)
from dpaudit.attacks.bounds.fixed_sizes import fixed_sizes
from dpaudit.attacks.bounds.fixed_sizes import greatest_epsilon as greatest_of_fixed_sizes
from dpaudit.attacks.bounds.gaussian import (
    gaussian_epsilon,
    gaussian_pivot,
    gaussian_pivot_of_moments,
    sample_of,
)
from dpaudit.attacks.bounds.independent import (
    noise_chi_square,
    t_visible,
    t_visible_of_moments,
    total_variation,
    tv_rank,
    tv_visible,
)
from dpaudit.attacks.bounds.one_run import one_run, one_run_p_value
from dpaudit.attacks.bounds.one_run_curve import (
    curve_is_refuted,
    one_run_curve,
    one_run_family,
    one_run_gaussian,
)
from dpaudit.attacks.bounds.rates import clopper_pearson_interval, epsilon_of_rates
from dpaudit.attacks.bounds.result import LowerBound
from dpaudit.attacks.bounds.scores import (
    from_scores,
    gaussian_band_of_counts,
    gaussian_from_scores,
)
from dpaudit.attacks.bounds.thresholds import (
    Band,
    Bonferroni,
    Dkw,
    Fixed,
    Split,
    Thresholds,
    errors_at_every_threshold,
)

__all__ = [
    "Band",
    "Bonferroni",
    "Dkw",
    "Family",
    "Fixed",
    "LowerBound",
    "Split",
    "SupportedTradeoff",
    "Thresholds",
    "Tradeoff",
    "clopper_pearson",
    "clopper_pearson_interval",
    "curve_is_refuted",
    "epsilon_of_rates",
    "errors_at_every_threshold",
    "fixed_sizes",
    "from_scores",
    "gaussian_band_of_counts",
    "gaussian_epsilon",
    "gaussian_from_scores",
    "gaussian_pivot",
    "gaussian_pivot_of_moments",
    "gaussian_threshold",
    "gaussian_tradeoff",
    "greatest_of_fixed_sizes",
    "is_least_refuted",
    "jeffreys",
    "noise_chi_square",
    "one_run",
    "one_run_curve",
    "one_run_family",
    "one_run_gaussian",
    "one_run_p_value",
    "sample_of",
    "t_visible",
    "t_visible_of_moments",
    "total_variation",
    "tv_rank",
    "tv_visible",
    "zanella_beguelin",
]
