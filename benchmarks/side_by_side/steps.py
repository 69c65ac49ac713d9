"""One training step of each trainer on one batch: what is timed and what is weighed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.noise.gaussian_draws import normals
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from side_by_side.networks import Task

Step = Callable[[], None]
NOISE, CLIP = 1.0, 1.0


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3)


def plain(task: Task) -> Step:
    """Return plain SGD's step: the yardstick."""
    optimizer = _optimizer(task.model)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(task.model(task.inputs), task.labels).backward()
        optimizer.step()

    return step


def _per_sample_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def ours(task: Task) -> Step:
    """Return our whole step: draw, check, clip, record, add secure noise, descend."""
    batch, records = (task.inputs, task.labels), torch.arange(len(task.labels))
    private = make_private(
        task.model,
        _optimizer(task.model),
        noise_multiplier=NOISE,
        clip_norm=CLIP,
        sampling_rate=1.0,
        expected_batch_size=len(records),
    )
    # What is drawn are numbers: no peer copies its batch here either.
    draws = iter(private.batches(records, steps=10**9))

    def step() -> None:
        next(draws)
        private.step(_per_sample_loss, batch)

    return step


def sums_and_noise(task: Task) -> Step:
    """Return the arithmetic of our step alone, with noise from the secure keystream."""
    optimizer, stream = _optimizer(task.model), Keystream.secure()
    batch, counter = (task.inputs, task.labels), iter(range(10**9))

    engine = Engine(task.model, _per_sample_loss)
    size = sum(p.numel() for p in engine.parameters.values())

    def step() -> None:
        sums = engine.clipped_sum(batch, Flat(CLIP)).sums
        noise = normals(stream, Purpose.GRADIENT_NOISE, next(counter), size)
        start = 0
        for name, parameter in engine.parameters.items():
            total = sums[name]
            part = noise[start : start + total.numel()].view_as(total)
            parameter.grad = total.add_(part, alpha=NOISE * CLIP).div_(len(task.labels))
            start += total.numel()
        optimizer.step()

    return step


def opacus_hooks(task: Task) -> Step:
    """Return the step of Opacus' default mode."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = GradSampleModule(task.model)
    optimizer = DPOptimizer(
        _optimizer(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(task.labels),
    )

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(task.inputs), task.labels).backward()
        optimizer.step()

    return step


def opacus_ghost(task: Task) -> Step:
    """Return the step of Opacus' ghost clipping."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )
    from opacus.optimizers.optimizer_fast_gradient_clipping import (
        DPOptimizerFastGradientClipping,
    )
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    model = GradSampleModuleFastGradientClipping(
        task.model, max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        _optimizer(model),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(task.labels),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(task.inputs), task.labels).backward()
        optimizer.step()

    return step


TRAINERS: dict[str, Callable[[Task], Step]] = {
    "plain SGD": plain,
    "dpaudit": ours,
    "dpaudit, sums and noise": sums_and_noise,
    "Opacus, ghost clipping": opacus_ghost,
    "Opacus, hooks": opacus_hooks,
}
