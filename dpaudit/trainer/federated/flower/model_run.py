"""The files of a Flower server's run: ledger, model and checkpoints. Arrays only, no Flower.

A restarted server continues with the newest model, under its ledger. A round whose release was
recorded is never released again, even if the model was not saved: its number, and so the noise
of a seeded stream, is used up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input, write_error
from dpaudit.runs.checkpoints import (
    MARKER,
    PROGRESS,
    Progress,
    complete_checkpoints,
    digests_of,
    new_checkpoint_folder,
    remove_checkpoint,
    remove_checkpoints,
)
from dpaudit.runs.consistency import RELEASES_KEY, RUN_KEY
from dpaudit.runs.directory import RunDirectory, seal_run
from dpaudit.runs.file_io import PRIVATE, write_bytes, write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.federated.flower.run_ledger import CLAIM_ACCOUNTANT, open_ledger
from dpaudit.trainer.federated.ledgers import FederationLedger
from dpaudit.trainer.federated.updates import Update
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunLocked
from dpaudit.vocabulary.ledger import CheckpointEntry, LedgerHeader, PrivacyLedger
from dpaudit.vocabulary.mechanism import Release

MODEL = "model.safetensors"
CHECKPOINTS_KEPT = 2


class ModelRun:
    """A global model with its ledger: moved and saved round by round. Make it with ``open``.

    Args:
        ledger: The server's ledger, which has a file.
        weights: The global model.
        progress: The checkpoint that the model is from; None: the initial model.
        next_round: The first round that was not released yet.

    Attributes:
        ledger: The server's ledger.
        weights: The global model, float32 arrays by name.
        progress: The checkpoint that the run continues from; None: there was none.
        next_round: Number of the next round, from 0.
    """

    def __init__(
        self,
        ledger: FederationLedger,
        weights: Update,
        progress: Progress | None,
        next_round: int,
    ) -> None:
        self.ledger, self.weights = ledger, weights
        self.progress, self.next_round = progress, next_round

    @classmethod
    def open(
        cls,
        out: Path,
        header: LedgerHeader,
        initial: Mapping[str, NDArray[Any]],
        releases: Collection[Release],
        budget: PrivacyBudget | None,
    ) -> ModelRun:
        """Begin a run, or continue the one that is in the run directory.

        Args:
            out: The run directory.
            header: The header of a new ledger.
            initial: The model before the first round: arrays of float32 by name.
            releases: The mechanisms that a round may record.
            budget: The budget; None: there is none.

        Returns:
            The run. One that is continued has the model of its newest checkpoint, if there is one.

        Raises:
            InvalidArgument: If an array is not of float32 or not finite, or the earlier run has
                other settings.
            IntegrityError: If a file of the earlier run is damaged, or of another model.
            RunExists: If the run is finished.
            RunLocked: If another process is writing it.
        """
        weights, progress = _checked_model(initial), None
        found = _earlier(out)
        _require_same_releases(found, releases)
        first = _next_round(found)
        ledger = open_ledger(out, header, step=first, budget=budget)
        try:
            if ledger.releases != (0 if found is None else len(found.releases)):
                raise RunLocked(f"{out} was written by another process: try again")
            if found is not None:
                progress, weights = _newest_model(RunDirectory(out), found, weights)
        except BaseException:
            ledger.close()
            raise
        done = 0 if progress is None else progress.steps_done
        return cls(ledger, weights, progress, max(first, done))

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self._writer.path.parent)

    def end_round(
        self,
        average: Mapping[str, NDArray[np.float32]],
        factor: float,
        rejected: Mapping[int, str],
        *,
        denominator: float,
        clip_norm: float,
    ) -> None:
        """Move the model, record the end of the round, and save the model.

        Args:
            average: The released average of updates, by parameter; empty if nothing was released.
            factor: The server's learning rate.
            rejected: Why an update was left out, by number of the participant.
            denominator: The public constant of averages, in participants, for the checkpoint.
            clip_norm: The clip norm of the next round, for the checkpoint.
        """
        number, scale = self.next_round, np.float32(factor)
        self.next_round = number + 1
        if average:
            self.weights = {
                name: part + scale * average[name] for name, part in self.weights.items()
            }
        self.ledger.end_round(number, {}, rejected)
        progress = Progress(
            self.next_round,
            self.ledger.releases,
            denominator,
            clip_norm=clip_norm,
            run=self.ledger.header.run,
        )
        self._write_checkpoint(progress)

    def finish(self, delta: float) -> RunDirectory:
        """Write model, claim and seal; nothing can be released afterwards.

        Args:
            delta: Delta of the claim, in (0, 1).

        Returns:
            The finished run.

        Raises:
            IntegrityError: If nothing was released, or a file of the run was altered.
        """
        from dpaudit.trainer.session.checkpoint import write_weights  # noqa: PLC0415  torch

        run, ledger = self.directory, self.ledger
        # The claim is computed first, so that an error leaves no files.
        claim = claim_from_ledger(run.read_ledger(), delta, CLAIM_ACCOUNTANT)
        metadata = {RUN_KEY: ledger.header.run, RELEASES_KEY: str(ledger.releases)}
        write_weights(run.model, _tensors(self.weights), metadata)
        seal_run(run, self._writer, claim)
        remove_checkpoints(run.checkpoints)
        return run

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue the run."""
        self.ledger.close()

    @property
    def _writer(self) -> LedgerWriter:
        assert self.ledger.writer is not None  # open() gives every run a file
        return self.ledger.writer

    def _write_checkpoint(self, progress: Progress) -> None:
        """Write the model into a new folder, and remove all but the newest two."""
        from dpaudit.trainer.session.checkpoint import save_weights  # noqa: PLC0415  torch

        checkpoints = self.directory.checkpoints
        folder = new_checkpoint_folder(checkpoints, progress.steps_done)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise write_error("folder", folder, error) from error
        save_weights(folder / MODEL, _tensors(self.weights))
        write_json(folder / PROGRESS, progress, PRIVATE)
        # Files, then digests in the ledger, then the marker, as for every checkpoint.
        self._writer.checkpointed(CheckpointEntry(progress.steps_done, digests_of(folder)))
        write_bytes(folder / MARKER, b"")
        for old in complete_checkpoints(checkpoints)[:-CHECKPOINTS_KEPT]:
            remove_checkpoint(old)


def _checked_model(initial: Mapping[str, NDArray[Any]]) -> Update:
    """Return copies of the model's arrays; refuse any but finite float32."""
    if not initial:
        raise InvalidArgument("initial", "no array", "at least one array of float32 by name")
    for name, part in initial.items():
        if part.dtype != np.float32 or not np.isfinite(part).all():
            raise InvalidArgument(
                f"array {name}", part.dtype, "of float32 and finite; send trained parameters alone"
            )
    return {name: np.array(part, np.float32) for name, part in initial.items()}


def _earlier(out: Path) -> PrivacyLedger | None:
    """Return the ledger of a run that is continued; None if there is no release or round yet."""
    run = RunDirectory(out)
    if not run.ledger.exists():
        return None
    found = run.read_unfinished()
    return found if found.releases or found.rounds else None


def _next_round(found: PrivacyLedger | None) -> int:
    """Return the first round that no ledger line records."""
    if found is None:
        return 0
    released = [one.step for one in found.releases if one.step is not None]
    return 1 + max([*released, *(one.number for one in found.rounds)], default=-1)


def _require_same_releases(found: PrivacyLedger | None, releases: Collection[Release]) -> None:
    """Refuse to continue a run whose rounds had another noise or participation rate."""
    for one in () if found is None else found.releases:
        if one.mechanism not in releases:
            raise InvalidArgument(
                "noise_multiplier and participation_rate",
                ", ".join(map(str, releases)),
                f"those of {one.mechanism}",
            )


def _newest_model(
    run: RunDirectory, found: PrivacyLedger, initial: Update
) -> tuple[Progress | None, Update]:
    """Return the newest checkpoint; the initial model if the run died before its first one."""
    from dpaudit.trainer.session.checkpoint import newest_checkpoint  # noqa: PLC0415  torch

    kept = newest_checkpoint(run.checkpoints, found)
    if kept is None:
        return None, initial
    return kept.progress, _read_model(kept.folder, initial)


def _read_model(folder: Path, reference: Update) -> Update:
    """Return the arrays of a checkpoint, in the order of ``reference``."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    with open_input(InputFile(folder / MODEL, limit=DATA_LIMIT)):
        pass  # refuses anything but a regular file: safetensors opens the path itself
    try:
        found = load_file(folder / MODEL)
        shapes = {name: part.shape for name, part in found.items()}
        if shapes != {name: part.shape for name, part in reference.items()}:
            raise IntegrityError("it has other parameters than the initial model")
        return {name: found[name] for name in reference}
    except Exception as error:  # safetensors raises its own errors
        raise IntegrityError(f"{folder} is broken, or of another model: {error}") from error


def _tensors(weights: Update) -> dict[str, Any]:
    """Return arrays as tensors, which share their memory."""
    import torch  # noqa: PLC0415  on the first checkpoint

    return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in weights.items()}
