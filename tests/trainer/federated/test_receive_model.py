"""A participant receives the global model between steps, and nothing else changes unnoticed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpaudit.trainer import make_private
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument, NoiseReused, UnrecordedChange

RECORDS = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
WEIGHTS = {"weight": torch.ones(1, 2), "bias": torch.full((1,), 0.5)}


def loss(model: nn.Module, rows: Tensor) -> Tensor:
    found: Tensor = model(rows)[:, 0] ** 2
    return found


def trainer(**given: object) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options: dict[str, object] = {"sampling_rate": 0.5, "expected_batch_size": 8, "seed": 1}
    return make_private(model, optimizer, noise_multiplier=1.0, **(options | given))  # type: ignore[arg-type]


def take(private: Private, steps: int) -> None:
    for batch in private.batches(RECORDS, steps=steps):
        private.step(loss, batch)


def test_steps_continue_from_the_received_model() -> None:
    private = trainer()
    take(private, 2)
    private.receive_model(WEIGHTS)
    assert torch.equal(private.model.weight, WEIGHTS["weight"])  # type: ignore[arg-type]
    take(private, 2)
    assert private.steps == 4


def test_the_state_of_the_optimizer_is_reset() -> None:
    private = trainer()
    take(private, 2)
    assert private.optimizer.state
    private.receive_model(WEIGHTS)
    assert not private.optimizer.state


def test_a_model_is_refused_in_the_middle_of_a_step() -> None:
    private = trainer()

    def receives(model: nn.Module, rows: Tensor) -> Tensor:
        private.receive_model(WEIGHTS)
        return loss(model, rows)

    batch = next(private.batches(RECORDS, steps=1))
    with pytest.raises(NoiseReused, match="between steps"):
        private.step(receives, batch)
    take(private, 1)


def test_an_earlier_change_is_not_accepted_with_the_model() -> None:
    private = trainer()
    take(private, 1)
    with torch.no_grad():
        private.model.weight.add_(1.0)  # type: ignore[operator]
    with pytest.raises(UnrecordedChange, match="weight"):
        private.receive_model(WEIGHTS)


def test_a_later_change_is_detected() -> None:
    private = trainer()
    take(private, 1)
    private.receive_model(WEIGHTS)
    with torch.no_grad():
        private.model.weight.data.add_(1.0)  # type: ignore[operator]
    with pytest.raises(UnrecordedChange, match="weight"):
        take(private, 1)


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": WEIGHTS["weight"]},
        {**WEIGHTS, "other": torch.zeros(1)},
        {**WEIGHTS, "weight": torch.ones(2, 1)},
        {**WEIGHTS, "bias": torch.full((1,), float("nan"))},
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(weights: dict[str, Tensor]) -> None:
    private = trainer()
    before = {name: p.detach().clone() for name, p in private.model.named_parameters()}
    with pytest.raises(InvalidArgument):
        private.receive_model(weights)
    for name, parameter in private.model.named_parameters():
        assert torch.equal(parameter, before[name])
    take(private, 1)


def test_a_closed_trainer_and_averaged_weights_are_refused() -> None:
    private = trainer()
    private.close()
    with pytest.raises(InvalidArgument, match="closed"):
        private.receive_model(WEIGHTS)
    with pytest.raises(InvalidArgument, match="average_decay"):
        trainer(average_decay=0.9).receive_model(WEIGHTS)
