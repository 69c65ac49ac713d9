"""Lower bounds on epsilon: pure functions of counts or scores, each with its assumptions.

Every bound has one of three kinds:

    certified     clopper_pearson, from_scores, one_run, sequential_pairs, adaptive_one_run
    conditional   fixed_sizes, gaussian_threshold, gaussian_from_scores, gaussian_pivot,
                  gaussian_epsilon, one_run_gaussian, one_run_curve, one_run_family,
                  tv_rank, tv_visible, t_visible, noise_chi_square
    estimate      jeffreys, zanella_beguelin

A certified bound holds for any mechanism under the stated sampling design. A conditional bound
holds within a named family or under a named independence. An estimate is no bound.

Neighbors differ by one record that is added or removed, unless an argument states otherwise. A
threshold, or a number of guesses, that was chosen after reading the scores makes a bound
invalid: see ``thresholds``.
"""

from dpaudit.attacks.bounds.adaptive_guesses import adaptive_one_run, adaptive_p_value
from dpaudit.attacks.bounds.fixed_class_sizes import fixed_sizes
from dpaudit.attacks.bounds.fixed_class_sizes import greatest_epsilon as greatest_of_fixed_sizes
from dpaudit.attacks.bounds.gaussian_dp import (
    gaussian_epsilon,
    gaussian_pivot,
    gaussian_pivot_of_moments,
    sample_statistics,
)
from dpaudit.attacks.bounds.independent_trials import (
    clopper_pearson,
    from_error_band,
    from_scores,
    gaussian_band_of_counts,
    gaussian_from_scores,
    gaussian_threshold,
    jeffreys,
    zanella_beguelin,
)
from dpaudit.attacks.bounds.lower_bound import (
    LowerBound,
    clopper_pearson_interval,
    epsilon_of_rates,
)
from dpaudit.attacks.bounds.mechanism_family import (
    MechanismFamily,
    PiecewiseLinearTradeoff,
    Tradeoff,
    gaussian_tradeoff,
    is_least_refuted,
)
from dpaudit.attacks.bounds.noninterfering_canaries import (
    noise_chi_square,
    t_known_batches,
    t_known_batches_of_moments,
    total_variation,
    tv_all_guesses,
    tv_known_batches,
)
from dpaudit.attacks.bounds.one_run_bounds import (
    curve_is_refuted,
    one_run,
    one_run_curve,
    one_run_family,
    one_run_gaussian,
    one_run_p_value,
)
from dpaudit.attacks.bounds.pair_betting import (
    PairTest,
    ranks_of_pairs,
    sequential_pairs,
)
from dpaudit.attacks.bounds.thresholds import (
    Bonferroni,
    ConfidenceBand,
    DkwBand,
    FixedThreshold,
    SampleSplit,
    Thresholds,
    error_counts_at_every_threshold,
)

__all__ = [
    "Bonferroni",
    "ConfidenceBand",
    "DkwBand",
    "FixedThreshold",
    "LowerBound",
    "MechanismFamily",
    "PairTest",
    "PiecewiseLinearTradeoff",
    "SampleSplit",
    "Thresholds",
    "Tradeoff",
    "adaptive_one_run",
    "adaptive_p_value",
    "clopper_pearson",
    "clopper_pearson_interval",
    "curve_is_refuted",
    "epsilon_of_rates",
    "error_counts_at_every_threshold",
    "fixed_sizes",
    "from_error_band",
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
    "ranks_of_pairs",
    "sample_statistics",
    "sequential_pairs",
    "t_known_batches",
    "t_known_batches_of_moments",
    "total_variation",
    "tv_all_guesses",
    "tv_known_batches",
    "zanella_beguelin",
]
