"""Held-out accuracy, or loss, of a finished run or of the newest checkpoint of another one."""

from __future__ import annotations

from safetensors.torch import load_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input
from dpaudit.report.run_status import MeasuredAccuracy
from dpaudit.runs.checkpoints import complete_checkpoints, read_newest_progress
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.data import DatasetSplit
from dpaudit.trainer.models.factories import Evaluation, evaluate_model
from dpaudit.trainer.models.language_models import TokenEvaluation
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.tasks import (
    Split,
    load_trained_model,
    make_run_model,
    split_of_run,
    task_of,
)
from dpaudit.vocabulary.errors import DpauditError, IntegrityError


def heldout_accuracy(run: RunDirectory, split: DatasetSplit) -> float:
    """Compute the released model's accuracy on held-out records, which no claim protects.

    Args:
        run: A finished run.
        split: Its data.

    Returns:
        The share of correct predictions, in [0, 1].

    Raises:
        IntegrityError: If the model is missing, broken, or of another architecture.
    """
    model = load_trained_model(run, split)
    return evaluate_model(model, heldout_records(run, split)).accuracy


def evaluate_heldout(run: RunDirectory, split: Split) -> Evaluation | TokenEvaluation:
    """Evaluate the released model on held-out records, which no claim protects.

    Args:
        run: A finished run.
        split: Its data.

    Returns:
        The evaluation, whose text is accuracy, or loss and perplexity.

    Raises:
        IntegrityError: If the model is missing, broken, or of another architecture.
    """
    task = task_of(run.read_settings().data)
    return task.evaluate(load_trained_model(run, split), heldout_records(run, split))


class CheckpointAccuracy:
    """Measures each new checkpoint once, on held-out records, which no claim protects.

    Args:
        run: A run with settings; it may be unfinished.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._split: Split | None = None
        self._tried: int | None = None
        self._newest: MeasuredAccuracy | None = None
        self._failed = ""

    def newest(self, final_steps: int | None) -> tuple[MeasuredAccuracy | None, str]:
        """Return the newest accuracy, and why a newer one could not be measured.

        Args:
            final_steps: Number of steps of a run whose final weights exist; None for one that is
                still training, whose newest complete checkpoint is measured.

        Returns:
            The accuracy, None before the first checkpoint; and an error message, empty if there was
            no error.
        """
        try:
            steps = self._checkpointed() if final_steps is None else final_steps
            if steps is not None and steps != self._tried:
                self._tried = steps
                found = self._evaluation(final_steps)
                self._newest = MeasuredAccuracy(found.accuracy, steps, found.loss)
                self._failed = ""
        # The trainer may remove a checkpoint while it is read; the next call reads a newer one.
        except (DpauditError, OSError) as error:
            self._failed = str(error)
        return self._newest, self._failed

    def _checkpointed(self) -> int | None:
        progress = read_newest_progress(self._run.checkpoints)
        return None if progress is None else progress.steps_done

    def _evaluation(self, final_steps: int | None) -> Evaluation | TokenEvaluation:
        task = task_of(self._run.read_settings().data)
        if self._split is None:
            self._split = task.load(self._run.read_settings().data)
        if final_steps is not None:
            return evaluate_heldout(self._run, self._split)
        model = _checkpointed_model(self._run, self._split)
        return task.evaluate(model, heldout_records(self._run, self._split))


def _checkpointed_model(run: RunDirectory, split: Split) -> nn.Module:
    """Return the model that would be released at the newest checkpoint: averaged, if configured."""
    config, folder = run.read_settings(), complete_checkpoints(run.checkpoints)[-1]
    split = split_of_run(config, split)
    model = make_run_model(task_of(config.data), config.model, split, seed=0)
    averaged = config.model.average_decay is not None
    filled: nn.Module = AveragedModel(model) if averaged else model
    weights = folder / f"{'average' if averaged else 'model'}.safetensors"
    with open_input(InputFile(weights, limit=DATA_LIMIT)):
        pass  # checks that it is a regular file; safetensors opens it by its path
    try:
        load_model(filled, weights)
    except Exception as error:  # safetensors and torch raise various types
        raise IntegrityError(f"{folder} is gone, broken, or of another model: {error}") from error
    return filled.module if isinstance(filled, AveragedModel) else filled
