"""Calibration to a risk returns what was computed and meets the target, and hardly more noise."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from dpaudit.accountants import calibrate_risk, pld, rdp, risk
from dpaudit.accountants.calibrate_risk import (
    AdvantageTarget,
    BayesRiskTarget,
    ReconstructionTarget,
    TprTarget,
)
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated


def run(noise: float) -> Repeated:
    return Repeated(PoissonSampled(Gaussian(noise), 0.01), 200)


# Of one Gaussian: tpr = Phi(Phi^-1(fpr) + mu), and advantage = 2 Phi(mu/2) - 1.
CLOSED_FORMS = (
    (TprTarget(0.01, 0.001), stats.norm.ppf(0.01) - stats.norm.ppf(0.001)),
    (TprTarget(0.5, 1e-6), stats.norm.ppf(0.5) - stats.norm.ppf(1e-6)),
    (TprTarget(0.12, 0.1), stats.norm.ppf(0.12) - stats.norm.ppf(0.1)),
    (AdvantageTarget(0.2), 2 * stats.norm.ppf(0.6)),
    (BayesRiskTarget(0.4), 2 * stats.norm.ppf(0.6)),
    (ReconstructionTarget(0.3, 1e-4), stats.norm.ppf(0.3) - stats.norm.ppf(1e-4)),
)


@pytest.mark.parametrize(("target", "mu"), CLOSED_FORMS)
def test_noise_of_one_gaussian_is_that_of_the_closed_form(target, mu):
    found = calibrate_risk.noise_multiplier(Gaussian, target)
    assert math.isclose(found.value, 1 / mu, rel_tol=3e-4)
    assert found.value >= 1 / mu * (1 - 1e-12)  # never less noise than is needed


def test_reported_risks_meet_their_targets_exactly():
    for target, _ in CLOSED_FORMS:
        found = calibrate_risk.noise_multiplier(Gaussian, target, resolution=1e-10).risk
        if isinstance(target, BayesRiskTarget):
            assert found.lower >= target.bayes_risk
        else:
            assert found.upper <= target.limit


@pytest.mark.parametrize("accountant", [pld.profile, rdp.profile])
def test_advantage_of_a_run_is_met_and_a_thousandth_less_noise_misses_it(accountant):
    found = calibrate_risk.noise_multiplier(run, AdvantageTarget(0.1), accountant=accountant)
    assert found.risk == risk.advantage(accountant(run(found.value)))
    assert found.risk.upper <= 0.1
    assert risk.advantage(accountant(run(found.value * (1 - 1e-3)))).upper > 0.1


def test_tpr_of_a_run_is_met_by_the_noise_rate_and_steps_that_are_returned():
    target = TprTarget(0.02, 0.01)
    noise = calibrate_risk.noise_multiplier(run, target, bracket=(0.8, 1.6), resolution=1e-2)
    assert risk.tpr_at_fpr(pld.profile(run(noise.value)), fpr=0.01).upper <= 0.02
    steps = calibrate_risk.steps(
        lambda count: Repeated(Gaussian(20.0), count), target, bracket=(1, 1000)
    )
    assert risk.tpr_at_fpr(pld.profile(Repeated(Gaussian(20.0), steps.value)), fpr=0.01).upper <= (
        0.02
    )
    more = pld.profile(Repeated(Gaussian(20.0), steps.value + 1))
    assert risk.tpr_at_fpr(more, fpr=0.01).upper > 0.02
    rate = calibrate_risk.sampling_rate(
        lambda q: PoissonSampled(Gaussian(0.5), q), target, bracket=(1e-3, 0.5), resolution=1e-2
    )
    assert rate.risk.upper <= 0.02


@pytest.mark.parametrize(
    "make",
    [
        lambda: TprTarget(0.01, 0.01),
        lambda: TprTarget(1.0, 0.01),
        lambda: TprTarget(math.nan, 0.01),
        lambda: TprTarget(0.1, 0.0),
        lambda: AdvantageTarget(0.0),
        lambda: BayesRiskTarget(0.5),
        lambda: BayesRiskTarget(0.2, prior=0.1),
        lambda: ReconstructionTarget(0.001, 0.01),
    ],
)
def test_a_limit_that_releasing_nothing_misses_is_refused(make):
    with pytest.raises(InvalidArgument):
        make()


def test_an_unreachable_target_names_the_limit():
    with pytest.raises(InvalidArgument, match="advantage"):
        calibrate_risk.noise_multiplier(
            lambda noise: Gaussian(min(noise, 1.0)), AdvantageTarget(0.1)
        )
