"""Faults of Flower's strategies with fixed clipping, executed as servers under test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from faults import DELTA, Fault, Measured
from step_audits import claimed_epsilon

from dpaudit.attacks.conformance import ConformanceFinding, Effort
from dpaudit.attacks.conformance.federated import FlowerStrategyFactory
from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.planted_updates import check_planted_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_global_generators,
    check_restart,
)
from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.verdict import Outcome

FLOWER = ("flwr==1.42.0",)
CLIENTS, NOISE, CLIP_NORM, ROUNDS, SEED = 4, 1.0, 0.1, 2, 1
EFFORT = Effort(noise_samples=4_000)
Check = Callable[[FlowerStrategyFactory, StepClaim, int], Sequence[ConformanceFinding]]


def strategy(accountant: Any = None) -> Any:
    """Return Flower's server-side fixed clipping around its average."""
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

    inner = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    return DifferentialPrivacyServerSideFixedClipping(
        inner, NOISE, CLIP_NORM, CLIENTS, accountant=accountant
    )


def server(make_strategy: Callable[[], Any] = strategy) -> FlowerStrategyFactory:
    """Return the strategy as a server under test."""
    reference = {"w": np.zeros((6, 5), np.float32), "b": np.zeros(6, np.float32)}
    return FlowerStrategyFactory(make_strategy, reference, CLIENTS, NOISE, CLIP_NORM)


def finding_of(check: Check, name: str, tested: FlowerStrategyFactory | None = None) -> Measured:
    """Return what one finding of a check says."""
    tested = tested or server()
    claim = tested.claim(rounds=ROUNDS)
    found = next(one for one in check(tested, claim, SEED) if one.name == name)
    failed = (f"{found.check}, {name}: {found.why}",) if found.outcome is Outcome.FAIL else ()
    return Measured(claimed_epsilon(claim), DELTA, found.outcome.value, failed)


class ForgetfulAccountant:
    """An accountant of Flower's protocol whose state is in memory, as Flower leaves it."""

    def __init__(self) -> None:
        from flwr.serverapp import NeighboringRelation, PrivacyConfig, SamplingMethod

        self.config = PrivacyConfig(
            DELTA, CLIENTS, NeighboringRelation.ADD_OR_REMOVE_ONE, SamplingMethod.NO_AMPLIFICATION
        )
        self.num_releases = 0

    def compose(self, event: Any, count: int = 1) -> None:
        """Count releases."""
        del event
        self.num_releases += count

    def get_privacy_spent(self, delta: float | None = None) -> Any:
        """Return an epsilon that nothing depends on."""
        spent = {"epsilon": 1.0, "delta": delta or DELTA, "num_releases": self.num_releases}
        return type("Spent", (), spent)()


FAULTS = (
    Fault(
        "less noise than claimed after a lost reply (Flower)", FLOWER,
        "the noise is set for all sampled clients, the mean is over those that replied",
        "flwr/serverapp/strategy/dp_fixed_clipping.py",
        lambda: finding_of(check_planted_updates, "planted updates after dropouts"),
        shown_by="planted updates after dropouts",
    ),
    Fault(
        "an update of zero ends the round (Flower)", FLOWER,
        "a client whose model did not change raises ZeroDivisionError in the server",
        "flwr/common/differential_privacy.py",
        lambda: finding_of(check_malformed_updates, "zero updates"),
        shown_by="zero updates",
    ),
    Fault(
        "a NaN update reaches the global model (Flower)", FLOWER,
        "the norm of an update with a NaN is NaN, and it is not clipped",
        "flwr/common/differential_privacy.py",
        lambda: finding_of(check_malformed_updates, "malformed updates"),
        shown_by="malformed updates",
    ),
    Fault(
        "noise from NumPy's global generator (Flower)", FLOWER,
        "a program that seeds the global generator makes the noise public",
        "flwr/common/differential_privacy.py",
        lambda: finding_of(check_global_generators, "global generators"),
        shown_by="global generators",
    ),
    Fault(
        "a restart begins at epsilon 0 (Flower)", FLOWER,
        "the accountant's state is never saved with the strategy",
        "flwr/serverapp, PrivacyAccountant.state_dict",
        lambda: finding_of(
            check_restart, "recorded releases", server(lambda: strategy(ForgetfulAccountant()))
        ),
        shown_by="recorded releases",
    ),
)  # fmt: skip
