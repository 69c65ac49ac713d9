"""A training session: its key, its ledger, its privacy budget, and the state that it may release.

Every private training uses five operations: begin, record, checkpoint, resume, seal. The step
(``trainer/private.py``) computes. The session ensures that a release is recorded before its
noise exists, and that no noise is used twice. It also ensures that the released model is the
result of what was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

import msgspec
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.checkpoints import Progress
from dpaudit.runs.consistency import RELEASES_KEY, RUN_KEY
from dpaudit.runs.directory import RunDirectory, conflicting_files, seal_run
from dpaudit.runs.file_io import sha256, write_secret_arrays, write_toml
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.canaries.run_canaries import Observation, RunCanaries, observations_to_arrays
from dpaudit.trainer.distributed import RankGroup, gather_shards, is_sharded
from dpaudit.trainer.noise.gradient_noise import NoiseContext
from dpaudit.trainer.noise.randomness import Keystream, NotCopyable
from dpaudit.trainer.session.change_detection import ChangeDetector
from dpaudit.trainer.session.checkpoint import write_checkpoint, write_weights
from dpaudit.trainer.session.release_account import PrivacyBudget, ReleaseAccount
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    NoiseReused,
    RunExists,
    UnrecordedChange,
    require_delta,
)
from dpaudit.vocabulary.ledger import (
    ChangeEntry,
    LedgerHeader,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    SpotCheckEntry,
)
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.privacy_terms import Bound

ACCOUNTANT = "pld"
MAX_NAMES_SHOWN = 3  # names of changed tensors in a message


@dataclass(frozen=True)
class SessionState:
    """What steps change: the model, its optimizer, and the average of its weights, if any.

    Attributes:
        model: The model that is trained.
        optimizer: The optimizer of its trainable parameters.
        average: Exponential average of the weights over the steps, released in place of the last
            weights; None: the last weights are released.
        released: Names of the tensors that are released; None: all of them.
    """

    model: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None = None
    released: frozenset[str] | None = None

    @property
    def ships(self) -> nn.Module:
        """The model whose weights ``seal`` writes."""
        return self.model if self.average is None else self.average.module

    def weights(self) -> nn.Module | dict[str, Tensor]:
        """Return what ``seal`` writes; shards are gathered, for which all ranks must call this."""
        if self.released is None:
            return _shards_of(self.ships) or self.ships
        tensors = {**dict(self.ships.named_parameters()), **dict(self.ships.named_buffers())}
        return {
            name: gather_shards(tensors[name].detach()).contiguous()
            for name in sorted(self.released)
        }

    @property
    def watched(self) -> dict[str, nn.Module]:
        """The modules that must not change between steps, by a prefix for their tensors' names."""
        averaged = {} if self.average is None else {"average of ": self.average}
        return {"": self.model, **averaged}


class ReleaseRecorder(Protocol):
    """Records releases; a release counts once ``record_release`` returns."""

    def record_release(self, release: ReleaseEntry) -> None:
        """Record one release.

        Args:
            release: The release and its step.
        """

    def declare(self, change: ChangeEntry) -> None:
        """Record a change of the model that is not the result of a recorded step.

        Args:
            change: The declared change and its step.
        """

    def record_spot_check(self, check: SpotCheckEntry) -> None:
        """Record that the gradients of a step were checked.

        Args:
            check: The step and the result.
        """


class MemoryRecorder:
    """Stores nothing on disk: for a run without a ledger, or a rank other than the first."""

    def record_release(self, release: ReleaseEntry) -> None:
        """Accept a release; the session itself counts it.

        Args:
            release: The release and its step.
        """

    def declare(self, change: ChangeEntry) -> None:
        """Accept a declared change, and store nothing.

        Args:
            change: The declared change and its step.
        """

    def record_spot_check(self, check: SpotCheckEntry) -> None:
        """Accept a spot check, and store nothing.

        Args:
            check: The step and the result.
        """


class Session(NotCopyable):
    """One training session of one process; in a process group, each rank has one.

    Args:
        header: The ledger's header, which holds for the whole run.
        stream: Keystream of coins and noise, the same on every rank.
        ranks: The group of ranks.
        trained: The state that steps change.
        recorder: Where releases are recorded.
        ledger: The ledger's file, whichever rank writes it; None: there is none.
        step: Number of steps taken before this session.
        releases: Releases recorded before this session.
        observations: Observations of gradient canaries of the steps before this session.
    """

    description = "a training session"

    def __init__(
        self,
        header: LedgerHeader,
        stream: Keystream,
        ranks: RankGroup,
        trained: SessionState,
        recorder: ReleaseRecorder,
        *,
        ledger: Path | None = None,
        step: int = 0,
        releases: tuple[Release, ...] = (),
        observations: tuple[Observation, ...] = (),
    ) -> None:
        self.header, self.stream, self.ranks, self.trained = header, stream, ranks, trained
        self.steps = step
        self.observations = list(observations)
        # The step at which this key began: a seeded key is the same from step 0 on.
        self.first = 0 if stream.randomness is Randomness.SEEDED else step
        self._recorder, self._ledger = recorder, ledger
        self._account = ReleaseAccount(header, releases)
        self._watch = ChangeDetector(trained.watched, trained.optimizer)
        self._watch.note()  # nothing but steps may change the model from here on
        self._finished, self._closed, self._busy = False, False, Lock()
        self._ending = False

    @classmethod
    def begin(
        cls,
        header: LedgerHeader,
        stream: Keystream,
        ranks: RankGroup,
        trained: SessionState,
        ledger: Path | None,
    ) -> Session:
        """Return a new session; its ledger is the first file of its run directory.

        Args:
            header: The ledger's header.
            stream: Keystream of coins and noise, the same on every rank.
            ranks: The group of ranks; the first one writes the ledger.
            trained: The state that steps change.
            ledger: A new file; None: releases are recorded in memory.

        Returns:
            The session.

        Raises:
            InvalidArgument: If the ledger's folder cannot be made.
            RunExists: If the ledger, or another file of an earlier run, is there.
        """
        recorder: ReleaseRecorder = MemoryRecorder()
        if ledger is not None and ranks.rank == 0:
            recorder = _new_ledger(ledger, header)
        path = None if ledger is None else ledger.absolute()
        return cls(header, stream, ranks, trained, recorder, ledger=path)

    @classmethod
    def resume(
        cls,
        stream: Keystream,
        ranks: RankGroup,
        trained: SessionState,
        ledger: Path,
        *,
        step: int,
        observations: tuple[Observation, ...] = (),
    ) -> Session:
        """Return a session that continues an interrupted run's ledger at ``step``.

        A secure run draws a fresh key, so no noise is used twice. Steps after the checkpoint are
        taken, and recorded, again.

        Args:
            stream: Keystream of coins and noise, the same on every rank.
            ranks: The group of ranks; the first one writes the ledger.
            trained: The state, filled from the checkpoint.
            ledger: The ledger's file.
            step: Number of steps before the checkpoint.
            observations: Observations of gradient canaries of these steps.

        Returns:
            The session.

        Raises:
            IntegrityError: If the ledger is broken, or changed since it was read.
            RunExists: If the run is finished, or another process writes it.
        """
        recorder: ReleaseRecorder = MemoryRecorder()
        if ranks.rank == 0:
            recorder = LedgerWriter.resume(ledger, ResumeEntry(step, stream.randomness))
        ranks.require_same("step", step)  # waits for the first rank, too
        # Read again: for an incomplete last line, the writer has recorded a release.
        found = read_unfinished(ledger)
        releases = tuple(one.mechanism for one in found.releases)
        return cls(
            found.header,
            stream,
            ranks,
            trained,
            recorder,
            ledger=ledger.absolute(),
            step=step,
            releases=releases,
            observations=observations,
        )

    # Begin.

    def bind(
        self,
        canaries: RunCanaries | None,
        config: msgspec.Struct | None = None,
        canary_file: CanaryFile | None = None,
    ) -> None:
        """Write settings and canaries beside the ledger, and record their digests in it.

        Only the first rank writes, and only in a run directory.

        Args:
            canaries: The run's canaries, if any.
            config: The run's settings, if it has a configuration file.
            canary_file: The trainer's canary file, if records include canaries.
        """
        if not isinstance(self._recorder, LedgerWriter) or not self.has_run_directory:
            return
        run = self.run_directory()
        bound = []
        if config is not None:
            write_toml(run.config, config)
            bound.append(run.config)
        if canaries is not None:
            canaries.write(run)
            bound += [run.canaries, run.secret_canaries]
        if canary_file is not None:
            canary_file.write(run.canary_file_copy)
            bound.append(run.canary_file_copy)
        if bound:
            self._recorder.begin({path.name: sha256(path) for path in bound})

    # Record.

    def record(self, what: str, release: Release, step: int | None = None) -> None:
        """Record a release; when this returns, the line is on the disk and counts.

        Args:
            what: What was released.
            release: Its mechanism.
            step: Number of the step, from 0; None if it belongs to no step.
        """
        # Counted first: an interrupt in between counts one release too many, never too few.
        self._account.count(release)
        self._recorder.record_release(ReleaseEntry(what, release, step=step))

    def record_spot_check(self, step: int, disagreement: str = "") -> None:
        """Record that the gradients of a step were checked; the first rank records its own.

        Args:
            step: Number of the step, from 0.
            disagreement: What was wrong; empty if nothing was.
        """
        self._recorder.record_spot_check(SpotCheckEntry(step, disagreement))

    def declare_change(self, what: str) -> None:
        """Record that the model was changed outside of the recorded steps.

        Args:
            what: What was changed and why; the claim lists it as not covered.

        Raises:
            InvalidArgument: If the text is empty, or the session is finished.
        """
        self.require_open()
        if not isinstance(what, str) or not what.strip():
            raise InvalidArgument("what", what, "a text: what was changed and why")
        self.ranks.require_same_settings({"declared change": what})  # the first rank records it
        self._recorder.declare(ChangeEntry(" ".join(what.split()), self.steps))
        self._watch.note()

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Hold the session while a model of a federation is received, and accept it.

        A change that was made before is not accepted with it: the model must be as the last step
        left it.

        Yields:
            Nothing.

        Raises:
            InvalidArgument: If the session is sealed or closed.
            ForkedSession: If this process is a fork of the one that began the session.
            NoiseReused: If a step of this session is in progress.
            UnrecordedChange: If the model is not as the last step left it.
        """
        self.require_open()
        if not self._busy.acquire(blocking=False):
            raise NoiseReused(
                "a step of this session is in progress: receive a model between steps"
            )
        try:
            self.require_unchanged()
            yield
            self._watch.note()
        finally:
            self._busy.release()

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Refuse a model that is not as the last step left it.

        Args:
            thoroughly: Compare every word of its state; else only where marks differ.

        Raises:
            UnrecordedChange: If it changed; names parameters and buffers.
        """
        changed = self._watch.changed(thoroughly=thoroughly)
        if changed:
            named = ", ".join(changed[:MAX_NAMES_SHOWN]) + (
                ", ..." if len(changed) > MAX_NAMES_SHOWN else ""
            )
            raise UnrecordedChange(
                f"the model changed outside of private.step since step {self.steps}: {named} "
                f"({len(changed)} in all); remove what changes it (another optimizer.step, "
                "load_state_dict, a forward pass that moves buffers; load weights before "
                "make_private), or declare it with private.declare_change(...), after which no "
                "claim covers it"
            )

    def _require_unchanged_everywhere(self) -> None:
        """Refuse, on every rank, a model that changed on any rank."""
        try:
            self.require_unchanged()
        except UnrecordedChange as error:
            self.ranks.require_same_settings({"model": str(error)})
            raise
        self.ranks.require_same_settings({"model": "as the last step left it"})

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Hold the session for one step, and accept the state after it as its result.

        Yields:
            Nothing.

        Raises:
            ForkedSession: If this process is a fork of the one that began the session.
            NoiseReused: If another thread is in the middle of a step.
            UnrecordedChange: If the model is not as the last step left it.
        """
        self.require_open()
        # Not blocking: a waiting step would read a model that the running step changes.
        if not self._busy.acquire(blocking=False):
            raise NoiseReused(
                "another thread is in a step of this session: take one step at a time"
            )
        began = self.steps
        try:
            self.require_unchanged(thoroughly=False)
            yield
        finally:
            # Once its noise is drawn, whatever the step did to the model is its result.
            if self.steps != began:
                self._watch.note(frozen=True)
            self._busy.release()

    def next_noise_context(self) -> NoiseContext:
        """Return the address of this step's noise, and count the step.

        Each address is handed out once. From here on the step counts as taken, whatever fails.

        Returns:
            Keystream and step.
        """
        context = NoiseContext(self.stream, self.steps, self.first)
        self.steps += 1
        return context

    def require_open(self) -> None:
        """Refuse a session that is sealed, closed, or was carried into another process.

        Raises:
            InvalidArgument: If it is sealed or closed.
            ForkedSession: If this process is a fork of the one that began it.
        """
        self.stream.require_own_process()
        if self._ending and not self._finished:
            raise InvalidArgument(
                "private", "one whose finish() was interrupted", "finished: call finish() again"
            )
        if self._finished:
            raise InvalidArgument(
                "private", "one that is finished", "one that is not finished: a sealed ledger "
                "records nothing more",
            )  # fmt: skip
        if self._closed:
            raise InvalidArgument(
                "private", "one that is closed", "open: continue with make_private(resume=...)"
            )

    # Budget.

    @property
    def recorded(self) -> dict[Release, int]:
        """The number of times each release was recorded."""
        return self._account.recorded

    def epsilon(self, delta: float) -> Bound:
        """Return certified bounds of epsilon for all releases so far.

        Args:
            delta: Delta, in [1e-300, 1).

        Returns:
            Lower and upper bound of epsilon; both 0 if nothing was released.

        Raises:
            InvalidArgument: If delta is out of range.
        """
        return self._account.epsilon(delta)

    def stop_at(self, budget: PrivacyBudget) -> None:
        """Set the privacy budget, which must be the same on every rank.

        Args:
            budget: The budget; it replaces an earlier one.

        Raises:
            InvalidArgument: If ranks have different budgets.
        """
        self.ranks.require_same_settings({"budget": repr(budget)})
        self._account.set_budget(budget)

    def require_room(self, what: str, release: Release) -> None:
        """Refuse a release that no claim can cover, or that would exceed the budget.

        Args:
            what: What is released.
            release: Its mechanism.

        Raises:
            InvalidArgument: If it is not a mechanism, or has no description.
            UnsupportedMechanism: If no accountant composes it with what this run records.
            BudgetExceeded: If it would exceed the budget.
        """
        self._account.require_room(what, release)

    def has_room(self, release: Release | None) -> bool:
        """Return whether the budget, if any, has room for the release of the next step.

        Args:
            release: The next step's release; None if an earlier release covers the step.

        Returns:
            True if there is no budget, no release, or room for it.
        """
        return self._account.has_room(release)

    # Checkpoint and seal.

    @property
    def has_run_directory(self) -> bool:
        """Whether the ledger has its name in a run directory."""
        return self._ledger is not None and is_run_ledger(self._ledger)

    def run_directory(self) -> RunDirectory:
        """Return the run directory of the ledger.

        Returns:
            The ledger's folder as a run directory.

        Raises:
            InvalidArgument: If there is no ledger file, or it is not named ``ledger.jsonl``.
        """
        if self._ledger is None or not self.has_run_directory:
            raise InvalidArgument(
                "ledger", None if self._ledger is None else str(self._ledger),
                "runs/NAME/ledger.jsonl, given to make_private: its folder becomes the run "
                "directory",
            )  # fmt: skip
        return RunDirectory(self._ledger.parent)

    def checkpoint(
        self,
        folder: Path,
        *,
        expected_batch_size: float,
        clip_norm: float | None,
        settings: dict[str, str],
    ) -> None:
        """Write model, optimizer and progress into ``folder``; the newest two are kept.

        Args:
            folder: The folder of the run's checkpoints.
            expected_batch_size: The public constant that noisy sums are divided by, in records.
            clip_norm: The learned clip norm; None if nothing is learned.
            settings: Every setting that privacy depends on, as one text per setting.

        Raises:
            InvalidArgument: If the run has no ledger file, without which it cannot be resumed.
            UnrecordedChange: If the model is not as the last step left it.
        """
        self.require_open()
        self.require_unchanged()
        if self.ranks.rank != 0:
            return
        if not isinstance(self._recorder, LedgerWriter):
            raise InvalidArgument("ledger", None, "a file, from which a run can be resumed")
        progress = Progress(
            self.steps,
            self._recorder.releases,
            expected_batch_size,
            clip_norm=clip_norm,
            run=self.header.run,
            settings=settings,
        )
        trained = self.trained
        write_checkpoint(
            folder,
            self._recorder.checkpointed,
            progress,
            trained.model,
            trained.optimizer,
            self.observations,
            trained.average,
        )

    def seal(self, delta: float, canaries: RunCanaries | None) -> RunDirectory:
        """End the run: write the model, the claim at ``delta`` and the seal, in this order.

        Args:
            delta: Delta of the claim, in [1e-300, 1).
            canaries: The run's gradient canaries, whose observations are written; None: there are
                none.

        Returns:
            The finished run directory.

        Raises:
            InvalidArgument: If no step was taken, or the ledger is in no run directory.
            UnrecordedChange: If the model is not as the last step left it.
        """
        require_delta("delta", delta)
        if not self._ending or self._finished:
            self.require_open()
        run = self.run_directory()
        if not self.steps:
            raise InvalidArgument("steps", self.steps, "at least 1 before a run is finished")
        self.ranks.require_same_settings({"delta": repr(delta)})
        self._require_unchanged_everywhere()
        weights = self.trained.weights()
        if isinstance(self._recorder, LedgerWriter):
            self._write_sealed(run, self._recorder, weights, delta, canaries)
        self._finished = True
        self.ranks.require_same("steps", self.steps)  # waits for the files, too
        return run

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue the run."""
        self._closed = True
        if isinstance(self._recorder, LedgerWriter):
            self._recorder.close()

    def _write_sealed(
        self,
        run: RunDirectory,
        writer: LedgerWriter,
        weights: nn.Module | dict[str, Tensor],
        delta: float,
        canaries: RunCanaries | None,
    ) -> None:
        # The claim is computed first, so that an unsupported mechanism leaves no files.
        """Write model, observations, claim and seal; the first rank does this."""
        if self._ending and read_unfinished(run.ledger).seal is not None:
            return  # an earlier finish() was interrupted after its seal
        claim = claim_from_ledger(run.read_ledger(), delta, ACCOUNTANT)
        metadata = {RUN_KEY: self.header.run, RELEASES_KEY: str(writer.releases)}
        write_weights(run.model, weights, metadata)
        if canaries is not None:
            write_secret_arrays(run.observations, **observations_to_arrays(self.observations))
        # Once the claim is on disk, more steps would contradict it.
        self._ending = True
        seal_run(run, writer, claim)


def is_run_ledger(path: Path) -> bool:
    """Return whether a ledger has its name in a run directory.

    Args:
        path: The ledger's file.

    Returns:
        True for ``ledger.jsonl``.
    """
    return RunDirectory(path.parent).ledger == path


def _new_ledger(path: Path, header: LedgerHeader) -> LedgerWriter:
    """Create a ledger and its folder; refuse a run directory with files of an earlier run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"in a folder that can be created ({error.strerror})"
        raise InvalidArgument("ledger", str(path), allowed) from error
    run = RunDirectory(path.parent)
    left = conflicting_files(run) if run.ledger == path else []
    if left:
        raise RunExists(
            f"{left[0]} is a file of an earlier run: choose another folder, or remove it"
        )
    return LedgerWriter.create(path, header)


def _shards_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the gathered weights of a sharded model, for which all ranks must call this.

    For any other model, an empty dict is returned.
    """
    weights = model.state_dict()
    if not any(isinstance(value, Tensor) and is_sharded(value) for value in weights.values()):
        return {}
    return {name: gather_shards(tensor).contiguous() for name, tensor in weights.items()}
