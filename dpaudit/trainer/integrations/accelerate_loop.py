"""Private steps in a loop of Accelerate; needs the extra ``accelerate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim import Optimizer

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch
from dpaudit.trainer.integrations.loop_parts import FOLDER, private_checkpoint
from dpaudit.trainer.integrations.refused_settings import ACCELERATOR, require_settings
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import InvalidArgument


class AcceleratedPrivate:
    """A private trainer on the devices of an ``Accelerator``; made by ``prepare_private``.

    Args:
        accelerator: Its device and mixed precision are used.
        private: The private trainer of the prepared model.

    Attributes:
        accelerator: The accelerator.
        private: The private trainer, as for ``epsilon``, ``stop_at`` and ``finish``.
        model: The model that is trained.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> accelerated = prepare_private(
        ...     Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=0.1),
        ...     torch.randn(20, 3), noise_multiplier=1.0, sampling_rate=0.5, expected_batch_size=10)
        >>> for batch in accelerated.batches(steps=2):
        ...     accelerated.step(lambda model, rows: model(rows)[:, 0] ** 2, batch)
    """

    def __init__(self, accelerator: Accelerator, private: Private) -> None:
        self.accelerator, self.private, self.model = accelerator, private, private.model
        accelerator.register_save_state_pre_hook(self._save)
        accelerator.register_load_state_pre_hook(self._refuse_to_load)

    def batches(
        self,
        data: Any = None,
        *,
        steps: int | None = None,
        transform: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[Batch]:
        """Yield this process's part of each private batch, on its device.

        Args:
            data: The records; None: those of ``prepare_private``. No prepared ``DataLoader``.
            steps: Number of steps; None: the rest of the planned ones.
            transform: Changes each batch, record by record, before it is yielded.

        Yields:
            The drawn records of this process, possibly none.
        """
        for batch in self.private.batches(data, steps=steps, transform=transform):
            yield send_to_device(batch, self.accelerator.device)

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step, under the mixed precision of the accelerator.

        It takes the place of ``accelerator.backward`` and ``optimizer.step``.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: A batch that ``batches`` yielded.
        """
        self.model.train()
        self.private.step(per_sample_loss, batch)

    def log(self, *, delta: float | None = None) -> float:
        """Log epsilon to the accelerator's trackers.

        Args:
            delta: Delta, in [1e-300, 1); None: that of ``prepare_private``.

        Returns:
            The upper bound of epsilon for all releases so far.
        """
        epsilon = self.private.epsilon(delta=delta).upper
        self.accelerator.log({"epsilon": epsilon}, step=self.private.steps)
        return epsilon

    def _save(self, models: Any, weights: Any, folder: str) -> None:
        """Write the private checkpoint into the folder of ``save_state``."""
        self.private.checkpoint(Path(folder, FOLDER))

    def _refuse_to_load(self, models: Any, folder: str) -> None:
        """Refuse to replace the weights of a private model."""
        allowed = f"given as prepare_private(..., resume={folder!r}) in a new process"
        raise InvalidArgument("input_dir", folder, allowed)


def prepare_private(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    data: Any = None,
    *,
    resume: Path | str | None = None,
    **settings: Any,
) -> AcceleratedPrivate:
    """Prepare a model and its optimizer for private steps, as ``accelerator.prepare`` does.

    The model is moved to the device, gets the mixed precision, and is not wrapped.

    Args:
        accelerator: The accelerator.
        model: The model, not prepared.
        optimizer: The optimizer of its trainable parameters, not prepared.
        data: The records, as ``make_private`` takes them; None: they are given to ``batches``.
        resume: A folder of ``accelerator.save_state``, to continue from.
        **settings: Arguments of ``make_private``.

    Returns:
        The private trainer.

    Raises:
        InvalidArgument: If a setting of the accelerator does not fit private steps, or the model
            or optimizer is prepared already.

    Example:
        >>> from torch.optim import SGD
        >>> model = nn.Linear(3, 1)
        >>> settings = {"noise_multiplier": 1.0, "sampling_rate": 0.5, "expected_batch_size": 10}
        >>> prepare_private(Accelerator(), model, SGD(model.parameters()), **settings).private.steps
        0
    """
    require_settings("accelerator", accelerator, ACCELERATOR)
    unwrapped = accelerator.unwrap_model(model)
    if unwrapped is not model or hasattr(optimizer, "accelerator_state"):
        raise InvalidArgument("model", type(model).__name__, "given before accelerator.prepare, "
                              "as is the optimizer")  # fmt: skip
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    folder = private_checkpoint(resume)
    private = make_private(prepared, optimizer, data, resume=folder, **settings)
    return AcceleratedPrivate(accelerator, private)
