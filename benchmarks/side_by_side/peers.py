"""The peers, each at its default settings, on the same plans.

A library that is not installed, or breaks, is a line in the tables that says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from side_by_side.plans import Entry, Plan

PRV_EPSILON_ERROR = 0.01
"""Of prv_accountant, which has no default; it is that of Opacus' PRV accountant."""


@dataclass(frozen=True)
class Peer:
    """Another library's accountant.

    Attributes:
        name: Library and accountant.
        library: What to import.
        epsilon: Its upper bound, or its only answer, for a plan at a delta.
        noise_multiplier: Its calibration of an entry's noise; None where it has none.
    """

    name: str
    library: str
    epsilon: Callable[[Plan, float], float]
    noise_multiplier: Callable[[Entry, float, float], float] | None = None

    @property
    def missing(self) -> str | None:
        """Why it cannot be asked; None where it can."""
        try:
            importlib.import_module(self.library)
        except Exception as error:  # an old library may break in any way on import
            return f"not available: {type(error).__name__}: {error}"
        return None


# dp_accounting.


def dp_event(plan: Plan) -> Any:
    """Return the plan as dp_accounting's event; full batches as a plain Gaussian."""
    import dp_accounting as dp

    def steps(entry: Entry) -> Any:
        one = dp.GaussianDpEvent(entry.noise_multiplier)
        if entry.sampling_rate < 1:
            one = dp.PoissonSampledDpEvent(entry.sampling_rate, one)
        return dp.SelfComposedDpEvent(one, entry.steps)

    parts = [steps(entry) for entry in plan.entries]
    return parts[0] if len(parts) == 1 else dp.ComposedDpEvent(parts)


def _dp_pld(plan: Plan, delta: float) -> float:
    from dp_accounting import pld

    return float(pld.PLDAccountant().compose(dp_event(plan)).get_epsilon(delta))


def _dp_rdp(plan: Plan, delta: float) -> float:
    from dp_accounting import rdp

    return float(rdp.RdpAccountant().compose(dp_event(plan)).get_epsilon(delta))


def _dp_noise(accountant: Callable[[], Any], entry: Entry, epsilon: float, delta: float) -> float:
    import dp_accounting as dp

    def event(noise: float) -> Any:
        return dp_event(Plan((Entry(entry.sampling_rate, noise, entry.steps),)))

    return float(dp.calibrate_dp_mechanism(accountant, event, epsilon, delta))


def _dp_pld_noise(entry: Entry, epsilon: float, delta: float) -> float:
    from dp_accounting import pld

    return _dp_noise(pld.PLDAccountant, entry, epsilon, delta)


def _dp_rdp_noise(entry: Entry, epsilon: float, delta: float) -> float:
    from dp_accounting import rdp

    return _dp_noise(rdp.RdpAccountant, entry, epsilon, delta)


# prv_accountant.


def prv_epsilon(plan: Plan, delta: float, epsilon_error: float = PRV_EPSILON_ERROR) -> float:
    """Return prv_accountant's upper bound."""
    import prv_accountant as prv

    def loss(entry: Entry) -> Any:
        if entry.sampling_rate == 1:
            return prv.GaussianMechanism(entry.noise_multiplier)
        return prv.PoissonSubsampledGaussianMechanism(entry.sampling_rate, entry.noise_multiplier)

    steps = [entry.steps for entry in plan.entries]
    accountant = prv.PRVAccountant(
        prvs=[loss(entry) for entry in plan.entries],
        max_self_compositions=steps,
        eps_error=epsilon_error,
        delta_error=delta / 1000,
    )
    return float(accountant.compute_epsilon(delta, steps)[2])


def _prv_noise(entry: Entry, epsilon: float, delta: float) -> float:
    from prv_accountant.dpsgd import find_noise_multiplier

    return float(
        find_noise_multiplier(
            entry.sampling_rate, entry.steps, epsilon, delta, eps_error=PRV_EPSILON_ERROR
        )
    )


# Opacus.


def _opacus(mechanism: str) -> Callable[[Plan, float], float]:
    def epsilon(plan: Plan, delta: float) -> float:
        from opacus.accountants import create_accountant

        accountant = create_accountant(mechanism)
        accountant.history = [
            (entry.noise_multiplier, entry.sampling_rate, entry.steps) for entry in plan.entries
        ]
        return float(accountant.get_epsilon(delta))

    return epsilon


def _opacus_noise(mechanism: str) -> Callable[[Entry, float, float], float]:
    def noise_multiplier(entry: Entry, epsilon: float, delta: float) -> float:
        from opacus.accountants.utils import get_noise_multiplier

        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=entry.sampling_rate,
                steps=entry.steps,
                accountant=mechanism,
            )
        )

    return noise_multiplier


# Opake: a port of dp_accounting's PLD to Rust.


def _opake(plan: Plan, delta: float) -> float:
    import opake.dpsgd.accounting as opake

    def steps(entry: Entry) -> Any:
        one = opake.gaussian(entry.noise_multiplier)
        if entry.sampling_rate < 1:
            one = opake.poisson(one, sample_rate=entry.sampling_rate)
        return one * entry.steps

    first, *others = map(steps, plan.entries)
    for other in others:
        first = first + other
    return float(first.epsilon_at(delta))


DP_PLD = Peer("dp_accounting PLD", "dp_accounting.pld", _dp_pld, _dp_pld_noise)
DP_RDP = Peer("dp_accounting RDP", "dp_accounting.rdp", _dp_rdp, _dp_rdp_noise)
PRV = Peer("prv_accountant", "prv_accountant", prv_epsilon, _prv_noise)
OPACUS_RDP = Peer("Opacus RDP", "opacus.accountants", _opacus("rdp"), _opacus_noise("rdp"))
OPACUS_PRV = Peer("Opacus PRV", "opacus.accountants", _opacus("prv"), _opacus_noise("prv"))
OPAKE = Peer("Opake PLD", "opake.dpsgd.accounting", _opake)
OPACUS_GDP = Peer("Opacus GDP", "opacus.accountants", _opacus("gdp"))

PEERS = (DP_PLD, DP_RDP, OPAKE, PRV, OPACUS_RDP, OPACUS_PRV)
"""Those that give bounds; Opacus' GDP accountant gives a limit that is none."""
