"""Opacus' own trainer holds, and is convicted where it is made to claim more than it does."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.verdict import Outcome

pytest.importorskip("opacus", reason="opacus is not installed: pip install 'dpaudit[bench]'")

EFFORT = conformance.Effort(replays=1, sampler_steps=120, noise_samples=60_000)


def audited(**claimed: float) -> ConformanceResult:
    import torch
    from torch import nn

    from dpaudit.attacks.conformance.opacus import OpacusWorkbench

    def model() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 4))

    rng = np.random.default_rng(3)
    features = rng.normal(size=(24, 12)).astype(np.float32)
    records = [(x, int(y)) for x, y in zip(features, rng.integers(4, size=24), strict=True)]
    bench = OpacusWorkbench(model, nn.CrossEntropyLoss(), 0.05, 2.0, 0.5, 0.25, 24)
    claim: StepClaim = msgspec.structs.replace(bench.claim(20), **claimed)
    return conformance.check(bench, claim, records=records, effort=EFFORT)


def test_opacus_does_what_it_claims_but_for_a_record_that_is_not_a_number() -> None:
    """Opacus 1.6 takes the sum of all gradients, and NaN times a clip factor is NaN."""
    result = audited()
    assert {finding.name for finding in result.violations} == {"NaN features"}
    assert all(f.outcome is not Outcome.INCONCLUSIVE for f in result.findings)


@pytest.mark.parametrize(
    ("claimed", "check"),
    [
        ({"noise_multiplier": 2.2}, "noise"),
        ({"clip_norm": 0.4}, "replay"),
        ({"sampling_rate": 0.15}, "sampler"),
    ],
)
def test_opacus_is_convicted_of_what_it_does_not_do(claimed: dict[str, float], check: str) -> None:
    result = audited(**claimed)
    assert check in {finding.check for finding in result.violations}
