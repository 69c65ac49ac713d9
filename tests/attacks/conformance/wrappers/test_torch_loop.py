"""Loops in torch: correct ones pass, faults are found, and what is observed is stated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.wrappers.torch_script import (
    BATCH,
    CLAIM,
    EFFORT,
    LEARNING_RATE,
    Script,
    build,
    records,
)


def audited(script: type[Script], **options: Any) -> ConformanceResult:
    def made(known: Sequence[Any], seed: int) -> Any:
        return build(known, seed, script)

    claim = msgspec.structs.replace(CLAIM, **options.pop("claimed", {}))
    wrapped = conformance.wrap(made, **options)
    return conformance.check(wrapped, claim, records=records(), effort=EFFORT)


def test_correct_loop_passes() -> None:
    result = audited(Script)
    assert result.verdict is Outcome.PASS, result.findings
    assert result.assumptions == ()


def test_gradients_are_observed_under_adam() -> None:
    class Adam(Script):
        optimizer = torch.optim.Adam

    result = audited(Adam, claimed={"update_scale": 1 / BATCH})
    assert result.verdict is Outcome.PASS, result.findings
    assert ["post-processing" in one for one in result.assumptions] == [True]


class Decays(Script):
    """A schedule of the learning rate, which is public."""

    def train_step(self, batch: Any) -> None:
        super().train_step(batch)
        self.inner.param_groups[0]["lr"] *= self.decay(batch)

    def decay(self, batch: Any) -> float:
        return 0.8


def noise_scale(script: type[Script]) -> list[float]:
    trainer = conformance.wrap(lambda known, seed: build(known, seed, script))(records(), 1)
    return [float(np.linalg.norm(trainer.step(include=[]))) for _ in range(8)]


def test_steps_are_in_units_of_the_learning_rate() -> None:
    assert noise_scale(Decays) == pytest.approx(noise_scale(Script), rel=1e-3)


def test_a_public_schedule_passes_and_is_stated() -> None:
    result = audited(Decays)
    assert result.verdict is Outcome.PASS, result.findings
    assert ["schedule of learning rates" in one for one in result.assumptions] == [True]


def test_a_learning_rate_that_depends_on_records_still_moves_steps() -> None:
    class OfRecords(Decays):
        def decay(self, batch: Any) -> float:
            return 0.8 if len(batch[1]) > 1 else 0.4

    factory = conformance.wrap(lambda known, seed: build(known, seed, OfRecords))
    sizes = []
    for included in ([0, 1], [0]):
        trainer = factory(records(), 1)
        trainer.step(include=included)
        sizes.append(float(np.linalg.norm(trainer.step(include=[]))))
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=1e-3)


def test_a_schedule_of_an_optimizer_that_takes_no_steps_does_not_count() -> None:
    class Decoy(Decays):
        def train_step(self, batch: Any) -> None:
            super().train_step(batch)
            with torch.no_grad():  # undoes the schedule: the change is that of the first rate
                rate = self.inner.param_groups[0]["lr"] / 0.8
                for parameter in self.model.parameters():
                    parameter.sub_((LEARNING_RATE - rate) * parameter.grad)  # type: ignore[operator]

    assert noise_scale(Decoy) == pytest.approx(noise_scale(Script), rel=1e-3)


def test_a_learning_rate_of_zero_in_a_schedule_is_refused() -> None:
    class Ends(Decays):
        def decay(self, batch: Any) -> float:
            return 0.0

    with pytest.raises(InvalidArgument, match='observe="gradients"'):
        noise_scale(Ends)


def test_missing_clipping_is_found() -> None:
    class Unclipped(Script):
        def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
            return torch.nan_to_num(gradient)

    assert "replay" in {finding.check for finding in audited(Unclipped).violations}


def test_loader_that_shuffles_is_found() -> None:
    class Shuffles(Script):
        def __init__(self, known: Sequence[Any], seed: int) -> None:
            super().__init__(known, seed)
            self.loader = torch.utils.data.DataLoader(known, batch_size=BATCH, shuffle=True)

    assert {finding.check for finding in audited(Shuffles).violations} == {"sampler"}


def test_noise_of_the_global_generator_does_not_depend_on_the_sampler() -> None:
    class GlobalNoise(Script):
        def __init__(self, known: Sequence[Any], seed: int) -> None:
            super().__init__(known, seed)
            self.noise = torch.default_generator

    assert audited(GlobalNoise).verdict is Outcome.PASS


def test_audit_restores_the_global_generators() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    trainer = conformance.wrap(build)(records(), 0)
    trainer.step(include=[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert trainer.sampled == [0]


@pytest.mark.parametrize("built", [None, (1, 2, 3, 4), "model"])
def test_objects_of_no_known_framework_are_refused(built: Any) -> None:
    with pytest.raises(InvalidArgument, match="what build returns"):
        conformance.wrap(lambda records: built)(records(), 0)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="observe"):
        conformance.wrap(build, observe="weights")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="batch_size"):
        conformance.wrap(build, batch_size=0)


def test_object_with_a_step_is_used_as_it_is() -> None:
    class Own:
        def step(self) -> None: ...

    own = Own()
    assert conformance.wrap(lambda records: own)([], 0) is own


def test_nan_is_not_replayed_where_it_cannot_occur() -> None:
    class PassesNaN(Script):
        def clipped(self, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * min(1.0, 0.5 / max(float(gradient.norm()), 1e-12))

    assert [finding.name for finding in audited(PassesNaN).violations] == ["NaN features"]
    wrapped = conformance.wrap(lambda known, seed: build(known, seed, PassesNaN))
    assumed = [conformance.Assumption.NO_NAN]
    result = conformance.check(
        wrapped, CLAIM, records=records(), effort=EFFORT, assumptions=assumed
    )
    assert result.verdict is Outcome.PASS
    assert result.assumptions[0].startswith("NaN cannot occur")
    again = msgspec.json.decode(msgspec.json.encode(result), type=ConformanceResult)
    assert again.assumptions == result.assumptions
