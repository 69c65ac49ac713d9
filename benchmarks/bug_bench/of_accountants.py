"""Faults of dp_accounting and prv_accountant, against certified intervals of the same plan."""

from __future__ import annotations

from faults import Fault, Measured
from of_opacus import against_truth

from dpaudit.accountants import (
    Adjacency,
    Gaussian,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
    pld,
)

DP_ACCOUNTING = (
    "dp-accounting==0.6.0", "absl-py==2.3.1", "dm-tree==0.1.9", "attrs==25.4.0",
    "immutabledict==4.2.2", "mpmath==1.3.0", "wrapt==2.0.1",
)  # fmt: skip
PRV = ("prv-accountant==0.2.0",)
RESPONSES, TRUTHFUL = 100, 0.75
LATE = (1e-5, 0.4, 1_000_000)  # sampling rate, noise multiplier, steps


def responses() -> Measured:
    """Compose a hundred randomized responses, each true three times in four."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    delta = 1e-6
    event = dp.SelfComposedDpEvent(dp.RandomizedResponseDpEvent(0.5, 2), RESPONSES)
    relation = dp.NeighboringRelation.REPLACE_ONE
    claimed = PLDAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta)
    answers = Repeated(RandomizedResponse(TRUTHFUL), RESPONSES)
    truth = pld.profile(answers, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=delta)
    return against_truth(float(claimed), truth, delta)


def small_delta() -> Measured:
    """Ask dp_accounting's PLD at a delta below the noise of its Fourier transform."""
    import dp_accounting as dp
    from dp_accounting.pld import PLDAccountant

    delta, (rate, noise, steps) = 1e-13, (0.01, 1.0, 1000)
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), steps)
    claimed = float(PLDAccountant().compose(event).get_epsilon(delta))
    truth = pld.profile(Repeated(PoissonSampled(Gaussian(noise), rate), steps))
    return against_truth(claimed, truth.epsilon(delta=delta), delta)


def coarse_grid() -> Measured:
    """Ask prv_accountant for its upper bound of a long, sparsely sampled run."""
    from prv_accountant import PRVAccountant
    from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

    delta, (rate, noise, steps) = 1e-5, LATE
    step = PoissonSubsampledGaussianMechanism(sampling_probability=rate, noise_multiplier=noise)
    accountant = PRVAccountant(
        prvs=[step], max_self_compositions=[steps], eps_error=0.1, delta_error=delta / 1000
    )
    _, _, claimed = accountant.compute_epsilon(delta=delta, num_self_compositions=[steps])
    truth = pld.profile(Repeated(PoissonSampled(Gaussian(noise), rate), steps))
    return against_truth(float(claimed), truth.epsilon(delta=delta), delta)


FAULTS = (
    Fault(
        "composed randomized responses count once (dp_accounting PLD)", DP_ACCOUNTING,
        "the number of repetitions of a randomized response is ignored",
        "dp_accounting/pld/pld_privacy_accountant.py", responses,
    ),
    Fault(
        "PLD at a small delta (dp_accounting)", DP_ACCOUNTING,
        "at delta 1e-13 the error of the Fourier transform is larger than delta",
        "dp_accounting/pld/privacy_loss_distribution.py", small_delta,
        why_not="on this plan the error is on the safe side; benchmarks/accounting.py scans others",
    ),
    Fault(
        "an upper bound below the truth (prv_accountant)", PRV,
        "on a long run at a small rate the error bound of the grid does not hold",
        "prv_accountant/accountant.py", coarse_grid,
    ),
)  # fmt: skip
