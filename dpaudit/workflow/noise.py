"""Noise multipliers of a training plan that meet a target of epsilon or of a risk."""

from __future__ import annotations

from dataclasses import dataclass

import dpaudit
from dpaudit.accountants import calibrate, calibrate_risk, pld, rdp
from dpaudit.accountants.calibrate_risk import (
    AdvantageTarget,
    BayesRiskTarget,
    ReconstructionTarget,
    RiskAccountant,
    RiskTarget,
    TprTarget,
)
from dpaudit.accountants.registry import find_accountant
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.vocabulary.claim import NoiseAnswer, RiskNoiseAnswer
from dpaudit.vocabulary.errors import InvalidArgument, require_delta, require_positive
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency

RISK_ACCOUNTANTS: dict[str, RiskAccountant] = {"pld": pld.profile, "rdp": rdp.profile}
"""Accountants that bound delta at an epsilon, which a risk is computed from."""


@dataclass(frozen=True)
class Schedule:
    """A training plan without its noise.

    Attributes:
        rate: The sampling rate and the number of steps.
        sampling: How batches are drawn.
        adjacency: Which data sets are neighbors.
    """

    rate: tuple[float, int]
    sampling: Sampling
    adjacency: Adjacency

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """Return the mechanism of the plan with noise.

        Args:
            noise_multiplier: Standard deviation of the noise over the clip norm.

        Returns:
            The composed steps.
        """
        sampling_rate, steps = self.rate
        return training_mechanism(
            sampling=self.sampling,
            sampling_rate=sampling_rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            adjacency=self.adjacency,
        )


def noise_answer(
    *,
    schedule: Schedule,
    target_epsilon: float,
    delta: float,
    accountant: str,
) -> NoiseAnswer:
    """Find the least noise multiplier whose epsilon is at most a target.

    Args:
        schedule: The steps and their sampling, without the noise.
        target_epsilon: Largest allowed epsilon, in nats, above 0.
        delta: The delta of the target, in (0, 1).
        accountant: Name of the accountant.

    Returns:
        The noise multiplier, and its epsilon, which was computed and meets the target.

    Raises:
        InvalidArgument: If an argument is out of range, or if no noise meets the target.
        UnsupportedMechanism: If the accountant does not cover the mechanism.
    """
    require_positive("target_epsilon", target_epsilon)
    require_delta("delta", delta)
    found = calibrate.noise_multiplier(
        schedule.mechanism,
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=schedule.adjacency,
        accountant=find_accountant(accountant).profile,
    )
    return NoiseAnswer(
        noise_multiplier=found.value,
        target_epsilon=target_epsilon,
        delta=delta,
        epsilon=found.epsilon,
        accountant=accountant,
        adjacency=schedule.adjacency,
        mechanism=schedule.mechanism(found.value),
        dpaudit_version=dpaudit.__version__,
    )


RISKS = ("tpr", "advantage", "bayes-risk", "reconstruction")


def risk_target(risk: str, target: float, given: float | None) -> RiskTarget:
    """Return the target of a risk.

    Args:
        risk: One of ``RISKS``.
        target: The limit: an upper one, or a lower one of the Bayes risk.
        given: The false-positive rate, the prior or the chance of the risk; None: the risk has
            none, or the prior is 1/2.

    Returns:
        The target.

    Raises:
        InvalidArgument: If the risk is unknown, or a number is out of its range.
    """
    match risk, given:
        case "tpr", float():
            return TprTarget(target, given)
        case "advantage", None:
            return AdvantageTarget(target)
        case "bayes-risk", None:
            return BayesRiskTarget(target)
        case "bayes-risk", float():
            return BayesRiskTarget(target, given)
        case "reconstruction", float():
            return ReconstructionTarget(target, given)
        case _:
            raise InvalidArgument("risk", (risk, given), f"one of {', '.join(RISKS)}")


def risk_noise_answer(
    *, schedule: Schedule, risk: str, target: float, given: float | None, accountant: str
) -> RiskNoiseAnswer:
    """Find the least noise multiplier that meets a target of a risk.

    Args:
        schedule: The steps and their sampling, without the noise.
        risk: One of ``RISKS``.
        target: The limit: an upper one, or a lower one of the Bayes risk.
        given: As for ``risk_target``.
        accountant: One of ``RISK_ACCOUNTANTS``.

    Returns:
        The noise multiplier, and its risk, which was computed and meets the target.

    Raises:
        InvalidArgument: If an argument is out of range, or if no noise meets the target.
        UnsupportedMechanism: If the accountant does not cover the mechanism.
    """
    if accountant not in RISK_ACCOUNTANTS:
        allowed = f"one that bounds delta at an epsilon: {' or '.join(RISK_ACCOUNTANTS)}"
        raise InvalidArgument("accountant", accountant, allowed)
    found = calibrate_risk.noise_multiplier(
        schedule.mechanism,
        risk_target(risk, target, given),
        adjacency=schedule.adjacency,
        accountant=RISK_ACCOUNTANTS[accountant],
    )
    return RiskNoiseAnswer(
        noise_multiplier=found.value,
        risk=risk,
        target=target,
        given=given,
        interval=found.risk,
        accountant=accountant,
        adjacency=schedule.adjacency,
        mechanism=schedule.mechanism(found.value),
        dpaudit_version=dpaudit.__version__,
    )
