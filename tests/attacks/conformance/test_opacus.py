"""Opacus' engine: data-dependent constants and planted faults are detected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome

if TYPE_CHECKING:
    from dpaudit.attacks.conformance.opacus import OpacusTrainerFactory

pytest.importorskip("opacus", reason="opacus is not installed: pip install 'dpaudit[bench]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus' own: of hooks, and of secure mode
EFFORT = conformance.Effort(replays=1, sampler_steps=120, noise_samples=60_000)
REPLACED = Adjacency.REPLACE_ONE
SIZE, CLIP = 24, 0.5


def dense() -> Any:
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 60), nn.Tanh(), nn.Linear(60, 4))


def tokens() -> Any:
    import torch
    from torch import nn

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(20, 6), nn.Flatten(), nn.Linear(48, 4))


def bench(model: Callable[[], Any] = dense, **options: Any) -> OpacusTrainerFactory:
    from torch import nn

    from dpaudit.attacks.conformance.opacus import OpacusTrainerFactory

    return OpacusTrainerFactory(model, nn.CrossEntropyLoss(), 0.05, 2.0, CLIP, 0.25, SIZE, options)


def records(model: Callable[[], Any] = dense) -> list[Any]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(SIZE, 12)).astype(np.float32)
    if model is tokens:
        features = rng.integers(0, 20, (SIZE, 8))
    return [(x, int(y)) for x, y in zip(features, rng.integers(4, size=SIZE), strict=True)]


def audited(
    made: OpacusTrainerFactory,
    adjacency: Adjacency = REPLACED,
    model: Callable[[], Any] = dense,
    **claimed: float,
) -> ConformanceResult:
    claim: StepClaim = msgspec.structs.replace(made.claim(20, adjacency), **claimed)
    return conformance.check(made, claim, records=records(model), effort=EFFORT)


def found(result: ConformanceResult, name: str) -> ConformanceFinding:
    (one,) = [finding for finding in result.findings if finding.name == name]
    return one


def test_engine_passes_except_for_a_nan_record() -> None:
    """Opacus 1.6 takes the sum of all gradients, and NaN times a clip factor is NaN."""
    result = audited(bench())
    assert {finding.name for finding in result.violations} == {"NaN features"}
    assert all(f.outcome is not Outcome.INCONCLUSIVE for f in result.findings)


def test_engine_passes_on_token_ids_where_records_are_replaced() -> None:
    result = audited(bench(tokens), model=tokens)
    assert result.verdict is Outcome.PASS, result.findings


def test_divisor_and_rate_that_the_engine_derives_from_the_data_are_rejected() -> None:
    result = audited(bench(tokens), Adjacency.ADD_OR_REMOVE_ONE, tokens)
    assert result.verdict is Outcome.FAIL
    why = found(result, "public constants").why
    assert "the expected batch size is 5, 6, 5 for 23, 24, 25 records" in why
    assert "the sampling rate is 0.25, 0.25, 0.2 for 23, 24, 25 records" in why
    assert any(finding.name == "ordinary" for finding in result.violations)


@pytest.mark.parametrize(
    ("claimed", "check"),
    [
        ({"noise_multiplier": 2.2}, "noise"),
        ({"clip_norm": 0.4}, "replay"),
        ({"sampling_rate": 0.15}, "sampler"),
    ],
)
def test_engine_is_rejected_under_a_wrong_claim(claimed: dict[str, float], check: str) -> None:
    assert check in {finding.check for finding in audited(bench(), **claimed).violations}


# Faults planted in the engine


def handed_out(change: Callable[[Any], None]) -> AbstractContextManager[Any]:
    """The optimizer that ``make_private`` returns is changed."""
    from opacus import PrivacyEngine

    genuine = PrivacyEngine.make_private

    def make_private(self: Any, **named: Any) -> Any:
        made = genuine(self, **named)
        change(made[1])
        return made

    return patch.object(PrivacyEngine, "make_private", make_private)


def no_noise(optimizer: Any) -> None:
    optimizer.noise_multiplier = 0.0


def less_noise(optimizer: Any) -> None:
    optimizer.noise_multiplier *= 0.9


def no_clipping(optimizer: Any) -> None:
    optimizer.noise_multiplier *= optimizer.max_grad_norm / 1e6
    optimizer.max_grad_norm = 1e6


def twice_the_clip_norm(optimizer: Any) -> None:
    optimizer.noise_multiplier /= 2
    optimizer.max_grad_norm *= 2


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (no_noise, "noise"),
        (less_noise, "noise"),
        (no_clipping, "replay"),
        (twice_the_clip_norm, "replay"),
    ],
)
@pytest.mark.parametrize("model", [dense, tokens])
def test_fault_in_the_engine_is_rejected(
    fault: Callable[[Any], None], check: str, model: Callable[[], Any]
) -> None:
    with handed_out(fault):
        result = audited(bench(model), model=model)
    assert check in {f.check for f in result.violations if f.name != "NaN features"}


def test_shuffled_loader_is_rejected() -> None:
    result = audited(bench(tokens, poisson_sampling=False), model=tokens)
    assert {finding.check for finding in result.violations} == {"sampler"}


@pytest.mark.parametrize("name", ["max_grad_norm", "noise_generator"])
def test_option_that_the_factory_sets_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        bench(**{name: None})


def test_noise_that_ignores_its_generator_is_inconclusive() -> None:
    import torch

    def own(optimizer: Any) -> None:
        optimizer.generator = torch.Generator().manual_seed(int(torch.seed() % 2**31))

    with handed_out(own):
        result = audited(bench(tokens), model=tokens)
    assert found(result, "reproducible").outcome is Outcome.INCONCLUSIVE
    assert result.verdict is not Outcome.PASS
