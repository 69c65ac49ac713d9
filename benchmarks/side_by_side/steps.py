"""One training step of each trainer on one batch: what is timed and what is weighed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, OnGrid
from side_by_side.networks import Task, losses

Step = Callable[[], None]
NOISE, CLIP = 1.0, 1.0


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def plain(task: Task) -> Step:
    """Return plain SGD's step: the yardstick."""
    optimizer = _optimizer(task.trained)

    def step() -> None:
        optimizer.zero_grad()
        losses(task.model(task.inputs), task.labels).mean().backward()
        optimizer.step()

    return step


def _per_sample_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return losses(model(batch[0]), batch[1])


def ours(task: Task, noise: type[GradientNoise], *, file: bool = False) -> Step:
    """Return our whole step: draw, check, clip, record, add secure noise, descend."""
    batch, records = (task.inputs, task.labels), torch.arange(len(task.labels))
    folder = Path(tempfile.mkdtemp()) if file else None
    private = make_private(
        task.model,
        _optimizer(task.trained),
        noise_multiplier=NOISE,
        clip_norm=CLIP,
        sampling_rate=1.0,
        expected_batch_size=len(records),
        noise=noise(),
        ledger=folder and folder / "ledger.jsonl",
    )
    # What is drawn are numbers: no peer copies its batch here either.
    draws = iter(private.batches(records, steps=10**9))

    def step() -> None:
        next(draws)
        private.step(_per_sample_loss, batch)

    return step


def opacus_hooks(task: Task) -> Step:
    """Return the step of Opacus' default mode."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = GradSampleModule(task.model)
    optimizer = DPOptimizer(
        _optimizer(task.trained),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(task.labels),
    )

    def step() -> None:
        optimizer.zero_grad()
        losses(model(task.inputs), task.labels).mean().backward()
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
        _optimizer(task.trained),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=len(task.labels),
    )
    criterion = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss())

    def step() -> None:
        optimizer.zero_grad()
        scores, labels = model(task.inputs), task.labels
        shape = None if labels.dim() == 1 else tuple(labels.shape)
        criterion(scores.flatten(0, -2), labels.flatten(), shape=shape).backward()
        optimizer.step()

    return step


TRAINERS: dict[str, Callable[[Task], Step]] = {
    "plain SGD": plain,
    "dpaudit": partial(ours, noise=Independent),
    "dpaudit, ledger on disk": partial(ours, noise=Independent, file=True),
    "dpaudit, exact noise": partial(ours, noise=OnGrid),
    "Opacus, ghost clipping": opacus_ghost,
    "Opacus, hooks": opacus_hooks,
}
