"""Lower bounds on epsilon: pure functions of counts or scores, each with what it rests on.

    certified     clopper_pearson, from_scores, one_run
    conditional   gaussian_threshold, gaussian_from_scores, gaussian_pivot, gaussian_epsilon,
                  one_run_gaussian, one_run_curve, one_run_family,
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
from dpaudit.attacks.bounds.family import Family, SupportedTradeoff, Tradeoff, gaussian_tradeoff
from dpaudit.attacks.bounds.gaussian import gaussian_epsilon, gaussian_pivot
from dpaudit.attacks.bounds.independent import (
    noise_chi_square,
    t_visible,
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
from dpaudit.attacks.bounds.scores import from_scores, gaussian_from_scores
from dpaudit.attacks.bounds.thresholds import Band, Bonferroni, Dkw, Fixed, Split, Thresholds

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
    "from_scores",
    "gaussian_epsilon",
    "gaussian_from_scores",
    "gaussian_pivot",
    "gaussian_threshold",
    "gaussian_tradeoff",
    "jeffreys",
    "noise_chi_square",
    "one_run",
    "one_run_curve",
    "one_run_family",
    "one_run_gaussian",
    "one_run_p_value",
    "t_visible",
    "total_variation",
    "tv_rank",
    "tv_visible",
    "zanella_beguelin",
]
