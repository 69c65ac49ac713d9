"""Accuracy of a run that still trains: of its newest checkpoint, on the held-out records."""

from __future__ import annotations

from safetensors.torch import load_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dpaudit.files.opening import DATA, InputFile, opened
from dpaudit.report.watch_text import Measured
from dpaudit.runs.checkpoints import complete_checkpoints, read_newest_progress
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.data import Split, load
from dpaudit.trainer.evaluate import evaluate
from dpaudit.trainer.models import make_model
from dpaudit.trainer.run import heldout_records
from dpaudit.vocabulary.errors import DpauditError, IntegrityError
from dpaudit.workflow.training import heldout_accuracy


class AccuracySoFar:
    """Measures once whatever is new; no claim protects the held-out records.

    Args:
        run: A run with settings; it may be unfinished.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._split: Split | None = None
        self._tried: int | None = None
        self._newest: Measured | None = None
        self._failed = ""

    def newest(self, finished_after: int | None) -> tuple[Measured | None, str]:
        """Return the newest accuracy, and why one newer could not be measured.

        ``finished_after`` is the number of steps of a run whose weights are there to ship;
        None for one that still trains, of which the newest whole checkpoint counts.
        """
        try:
            steps = self._checkpointed() if finished_after is None else finished_after
            if steps is not None and steps != self._tried:
                self._tried = steps
                self._newest = Measured(self._accuracy(finished_after, steps), steps)
                self._failed = ""
        # The trainer may remove a checkpoint meanwhile; the next one will be there for longer.
        except (DpauditError, OSError) as error:
            self._failed = str(error)
        return self._newest, self._failed

    def _checkpointed(self) -> int | None:
        progress = read_newest_progress(self._run.checkpoints)
        return None if progress is None else progress.steps_done

    def _accuracy(self, finished_after: int | None, steps: int) -> float:
        if self._split is None:
            self._split = load(self._run.read_config().data)
        if finished_after is not None:
            return heldout_accuracy(self._run, self._split)
        model = _checkpointed_model(self._run, self._split)
        return evaluate(model, heldout_records(self._run, self._split)).accuracy


def _checkpointed_model(run: RunDirectory, split: Split) -> nn.Module:
    """Return the model as it would ship now, at the newest checkpoint: averaged, if that ships."""
    config, folder = run.read_config(), complete_checkpoints(run.checkpoints)[-1]
    model = make_model(config.model.model, split.shape, len(split.classes), seed=0)
    averaged = config.model.average_decay is not None
    filled: nn.Module = AveragedModel(model) if averaged else model
    weights = folder / f"{'average' if averaged else 'model'}.safetensors"
    with opened(InputFile(weights, limit=DATA)):
        pass  # a regular file: safetensors opens it by its name
    try:
        load_model(filled, weights)
    except Exception as error:  # safetensors and torch raise their own kinds
        raise IntegrityError(f"{folder} is gone, broken, or of another model: {error}") from error
    return filled.module if isinstance(filled, AveragedModel) else filled
