"""One training session: its key, its ledger, its budget, and the state that it may ship.

Every private training goes through these five: begin, record, checkpoint, resume, seal. The
step (``private.py``) computes; the session makes sure that what it releases is recorded
before its noise exists, that no noise is used twice, and that what ships is the result of
what was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

import msgspec
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from dpaudit.accountants import calibrate, pld
from dpaudit.accountants.answers import claim_of, require_sampling_of
from dpaudit.runs.checkpoints import Progress
from dpaudit.runs.crosscheck import RELEASES_KEY, RUN_KEY
from dpaudit.runs.directory import RunDirectory, files_in_the_way
from dpaudit.runs.files import sha256, write_secret_arrays, write_toml
from dpaudit.runs.ledger_file import LedgerWriter, read_unfinished
from dpaudit.runs.sealing import seal_run
from dpaudit.trainer.added_noise import Moment
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.canary_file import CanaryFile
from dpaudit.trainer.checkpoint import write_checkpoint, write_weights
from dpaudit.trainer.observations import Observation, as_arrays
from dpaudit.trainer.peers import Peers
from dpaudit.trainer.randomness import Keystream, NotCopied
from dpaudit.trainer.sharding import is_sharded, whole
from dpaudit.trainer.state_watch import StateWatch
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    InvalidArgument,
    NoiseReused,
    RunExists,
    UnrecordedChange,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import (
    BookedRelease,
    DeclaredChange,
    LedgerHeader,
    Randomness,
    Resumed,
)
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Release, Repeated

ACCOUNTANT = "pld"
SOME_DELTA = 1e-5  # at which a further release is tried, where no budget names one
SHOWN = 3  # names of changed tensors in a message


@dataclass(frozen=True)
class Budget:
    """What must not be exceeded: training stops before the step that would."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)


@dataclass(frozen=True)
class Trained:
    """What steps change: the model, its optimizer, and the average of its weights, if any.

    Attributes:
        model: The model that is trained.
        optimizer: Over its trainable parameters.
        average: Exponential average of the weights over the steps, which ships in place of
            the last weights; None: the last weights ship.
    """

    model: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None = None

    @property
    def ships(self) -> nn.Module:
        """The model that ``seal`` writes."""
        return self.model if self.average is None else self.average.module

    @property
    def watched(self) -> dict[str, nn.Module]:
        """The modules that must not change between steps, by a prefix for their tensors."""
        averaged = {} if self.average is None else {"average of ": self.average}
        return {"": self.model, **averaged}


class Recorder(Protocol):
    """Where releases are recorded; when ``book`` returns, the release counts."""

    def book(self, release: BookedRelease) -> None:
        """Record one release."""

    def declare(self, change: DeclaredChange) -> None:
        """Record a change of the model that is no result of a recorded step."""


class MemoryRecorder:
    """Keeps nothing on disk: a run without a ledger, or a rank whose first one writes it."""

    def book(self, release: BookedRelease) -> None:
        """See ``Recorder``."""

    def declare(self, change: DeclaredChange) -> None:
        """See ``Recorder``."""


class Session(NotCopied):
    """One training session of one process; its ranks hold one each.

    Args:
        header: What holds for the whole run.
        stream: Where coins and noise come from, the same on every rank.
        ranks: Who trains.
        trained: What steps change.
        recorder: Where releases are recorded.
        ledger: The ledger's file, whichever rank writes it; None: there is none.
        step: How many steps were taken before this session.
        releases: What was recorded before it.
        observations: What steps before it showed of canaries.
    """

    called = "a training session"

    def __init__(
        self,
        header: LedgerHeader,
        stream: Keystream,
        ranks: Peers,
        trained: Trained,
        recorder: Recorder,
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
        self._budget: Budget | None = None
        self._room: dict[Release, int] = {}  # how many more the budget was seen to allow
        self._recorded: dict[Release, int] = {}
        for release in releases:
            self._count(release)
        self._watch = StateWatch(trained.watched, trained.optimizer)
        self._watch.note()  # nothing but steps may change the model from here on
        self._finished, self._closed, self._busy = False, False, Lock()
        self._ending = False

    @classmethod
    def begin(
        cls,
        header: LedgerHeader,
        stream: Keystream,
        ranks: Peers,
        trained: Trained,
        ledger: Path | None,
    ) -> Session:
        """Return a new session; its ledger is the first file of its run directory.

        Raises:
            InvalidArgument: The ledger's folder cannot be made.
            RunExists: The ledger is there, or another file of an earlier run.
        """
        recorder: Recorder = MemoryRecorder()
        if ledger is not None and ranks.rank == 0:
            recorder = _new_ledger(ledger, header)
        path = None if ledger is None else ledger.absolute()
        return cls(header, stream, ranks, trained, recorder, ledger=path)

    @classmethod
    def resume(
        cls,
        stream: Keystream,
        ranks: Peers,
        trained: Trained,
        ledger: Path,
        *,
        step: int,
        observations: tuple[Observation, ...] = (),
    ) -> Session:
        """Return a session that goes on with an interrupted run's ledger at ``step``.

        A secure run draws a fresh key, so that no noise is used twice; steps since the
        checkpoint are taken, and recorded, again.

        Args:
            stream: Where coins and noise come from.
            ranks: Who trains.
            trained: What the checkpoint has filled.
            ledger: The ledger's file.
            step: How many steps the checkpoint had taken.
            observations: What these steps showed of canaries.

        Raises:
            IntegrityError: The ledger is broken, or changed since it was read.
            RunExists: The run is finished, or another process writes it.
        """
        recorder: Recorder = MemoryRecorder()
        if ranks.rank == 0:
            recorder = LedgerWriter.resume(ledger, Resumed(step, stream.randomness))
        ranks.require_same("step", step)  # waits for the first rank, too
        # Again: where the last line was incomplete, a release was recorded for it.
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

    # Begin

    def bind(
        self,
        canaries: Canaries | None,
        config: msgspec.Struct | None = None,
        planted: CanaryFile | None = None,
    ) -> None:
        """Write settings and canaries beside the ledger, which from then on holds their digests.

        Nothing is written by other ranks than the first, or without a run directory.
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
        if planted is not None:
            planted.write(run.planted_canaries)
            bound.append(run.planted_canaries)
        if bound:
            self._recorder.begin({path.name: sha256(path) for path in bound})

    # Record

    def record(self, what: str, release: Release, step: int | None = None) -> None:
        """Record a release; when this returns, the line is on the disk and counts."""
        self._count(release)  # first: an interrupt in between counts one too many here
        self._recorder.book(BookedRelease(what, release, step=step))

    def declare_change(self, what: str) -> None:
        """Record that the model was changed outside of the recorded steps.

        Args:
            what: In words, for whoever reads the claim: it is named there as not covered.

        Raises:
            InvalidArgument: Nothing is said, or the session is finished.
        """
        self.require_open()
        if not isinstance(what, str) or not what.strip():
            raise InvalidArgument("what", what, "what was changed and why, in words")
        self.ranks.require_same_settings({"declared change": what})  # the first one records it
        self._recorder.declare(DeclaredChange(" ".join(what.split()), self.steps))
        self._watch.note()

    def require_unchanged(self, *, thoroughly: bool = True) -> None:
        """Refuse a model that is not as the last step left it.

        Args:
            thoroughly: Compare every word of its state; else where something hints at a change.

        Raises:
            UnrecordedChange: Names parameters and buffers that changed since.
        """
        changed = self._watch.changed(thoroughly=thoroughly)
        if changed:
            named = ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
            raise UnrecordedChange(
                f"the model changed outside of private.step since step {self.steps}: {named} "
                f"({len(changed)} in all); remove what changes it (another optimizer.step, "
                "load_state_dict, a forward pass that moves buffers; load weights before "
                "make_private), or name it by private.declare_change(...), after which no claim "
                "covers it"
            )

    def _require_unchanged_everywhere(self) -> None:
        """Refuse, on every rank, a model that changed on any of them."""
        try:
            self.require_unchanged()
        except UnrecordedChange as error:
            self.ranks.require_same_settings({"model": str(error)})
            raise
        self.ranks.require_same_settings({"model": "as the last step left it"})

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """Hold the session for one step, and take the state after it as its result.

        Raises:
            ForkedSession: This is a fork of the process that began the session.
            NoiseReused: Another thread is in the middle of a step.
            UnrecordedChange: The model is not as the last step left it.
        """
        self.require_open()
        if not self._busy.acquire(blocking=False):
            raise NoiseReused("another thread takes a step of this session: take one at a time")
        began = self.steps
        try:
            self.require_unchanged(thoroughly=False)
            yield
        finally:
            # Once its noise is drawn, whatever the step did to the model is its result.
            if self.steps != began:
                self._watch.note(frozen=True)
            self._busy.release()

    def next_noise(self) -> Moment:
        """Return where the noise of this step is drawn; each is handed out once.

        From here on, whatever fails, the step counts as taken.
        """
        moment = Moment(self.stream, self.steps, self.first)
        self.steps += 1
        return moment

    def require_open(self) -> None:
        """Refuse a session that is sealed or closed, or was carried into another process.

        Raises:
            InvalidArgument: It is sealed or closed.
            ForkedSession: This is a fork of the process that began it.
        """
        self.stream.require_own_process()
        if self._ending and not self._finished:
            raise InvalidArgument(
                "private", "one whose finish() was interrupted", "finished: call finish() again"
            )
        if self._finished:
            raise InvalidArgument(
                "private", "one that is finished", "one that goes on: a sealed ledger records "
                "nothing more",
            )  # fmt: skip
        if self._closed:
            raise InvalidArgument(
                "private", "one that is closed", "open: go on by make_private(resume=...)"
            )

    # Budget

    @property
    def recorded(self) -> dict[Release, int]:
        """How often each release was recorded."""
        return dict(self._recorded)

    def epsilon(self, delta: float) -> Bound:
        """Return the certified interval of epsilon of all that was released so far."""
        require_delta("delta", delta)
        if not self._recorded:
            return Bound(0.0, 0.0)
        return pld.profile(self._spent(), adjacency=self.header.adjacency).epsilon(delta=delta)

    def stop_at(self, budget: Budget) -> None:
        """Set what must not be exceeded, the same on every rank."""
        self.ranks.require_same_settings({"budget": repr(budget)})
        self._budget, self._room = budget, {}

    def require_room(self, what: str, release: Release) -> None:
        """Refuse a release that cannot be claimed of, or would exceed the budget.

        Raises:
            InvalidArgument: It is no release.
            UnsupportedMechanism: No accountant prices it beside what this run records.
            BudgetExceeded: It would exceed the budget.
        """
        if not isinstance(what, str) or not what.strip():
            raise InvalidArgument("what", what, "what was released, in words")
        if not isinstance(release, Release):
            raise InvalidArgument("release", release, "a mechanism, as Gaussian(2.0)")
        require_sampling_of(self.header, release)
        # What cannot be priced is refused before it is recorded: no claim could be made of it.
        spent = pld.profile(self._spent(release, 1), adjacency=self.header.adjacency)
        if self._budget is None:
            spent.epsilon(delta=SOME_DELTA)
            return
        if not spent.epsilon(delta=self._budget.delta).upper <= self._budget.epsilon:
            raise BudgetExceeded(f"{what} would exceed the budget that was set")

    def has_room(self, release: Release | None) -> bool:
        """Return whether the budget, if any, has room for the release of the next step.

        How many releases like it fit is computed once, and again when they are used up.
        """
        if self._budget is None or release is None or self._room.get(release, 0) > 0:
            return True
        with suppress(InvalidArgument):  # not even one
            found = calibrate.steps(
                lambda times: self._spent(release, times),
                target_epsilon=self._budget.epsilon,
                delta=self._budget.delta,
                adjacency=self.header.adjacency,
            )
            self._room = {release: found.value}
            return True
        return False

    def _count(self, release: Release) -> None:
        """Count a release; whatever else had room is computed anew."""
        self._recorded[release] = self._recorded.get(release, 0) + 1
        self._room = {release: self._room.get(release, 0) - 1}

    def _spent(self, more: Release | None = None, times: int = 0) -> Mechanism:
        parts = [Repeated(release, count) for release, count in self._recorded.items()]
        return Composed((*parts, *([Repeated(more, times)] if more is not None else [])))

    # Checkpoint and seal

    @property
    def has_run_directory(self) -> bool:
        """Whether the ledger is named as in a run directory."""
        return self._ledger is not None and is_run_ledger(self._ledger)

    def run_directory(self) -> RunDirectory:
        """Return the run directory that the ledger is in.

        Raises:
            InvalidArgument: There is no ledger's file, or it has another name.
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

        Raises:
            InvalidArgument: The run has no ledger that could be resumed with it.
            UnrecordedChange: The model is not as the last step left it.
        """
        self.require_open()
        self.require_unchanged()
        if self.ranks.rank != 0:
            return
        if not isinstance(self._recorder, LedgerWriter):
            raise InvalidArgument("ledger", None, "a file, so that a resumed run goes on with it")
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

    def seal(self, delta: float, canaries: Canaries | None) -> RunDirectory:
        """End the run: write what ships, the claim at ``delta`` and the seal, in this order.

        Raises:
            InvalidArgument: Nothing was released, or the ledger is in no run directory.
            UnrecordedChange: The model is not as the last step left it.
        """
        require_delta("delta", delta)
        if not self._ending or self._finished:
            self.require_open()
        run = self.run_directory()
        if not self.steps:
            raise InvalidArgument("steps", self.steps, "at least 1 before a run is finished")
        self.ranks.require_same_settings({"delta": repr(delta)})
        self._require_unchanged_everywhere()
        shards = _shards_of(self.trained.ships)
        if isinstance(self._recorder, LedgerWriter):
            self._write_sealed(run, self._recorder, shards, delta, canaries)
        self._finished = True
        self.ranks.require_same("steps", self.steps)  # waits for the files, too
        return run

    def close(self) -> None:
        """Give the ledger back, so that another process can go on with the run."""
        self._closed = True
        if isinstance(self._recorder, LedgerWriter):
            self._recorder.close()

    def _write_sealed(
        self,
        run: RunDirectory,
        writer: LedgerWriter,
        shards: dict[str, Tensor],
        delta: float,
        canaries: Canaries | None,
    ) -> None:
        # First, so that what cannot be priced is refused before anything is written.
        if self._ending and read_unfinished(run.ledger).seal is not None:
            return  # an earlier finish() was interrupted after its seal
        claim = claim_of(run.read_ledger(), delta, ACCOUNTANT)
        metadata = {RUN_KEY: self.header.run, RELEASES_KEY: str(writer.releases)}
        write_weights(run.model, shards or self.trained.ships, metadata)
        if canaries is not None:
            write_secret_arrays(run.observations, **as_arrays(self.observations))
        # Once the claim is there, more steps would contradict it.
        self._ending = True
        seal_run(run, writer, claim)


def is_run_ledger(path: Path) -> bool:
    """Return whether a ledger has the name that it has in a run directory."""
    return RunDirectory(path.parent).ledger == path


def _new_ledger(path: Path, header: LedgerHeader) -> LedgerWriter:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        allowed = f"in a folder that can be made ({error.strerror})"
        raise InvalidArgument("ledger", str(path), allowed) from error
    run = RunDirectory(path.parent)
    left = files_in_the_way(run) if run.ledger == path else []
    if left:
        raise RunExists(f"{left[0]} is of an earlier run: choose another folder, or remove it")
    return LedgerWriter.create(path, header)


def _shards_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a sharded model put together, for which all ranks have to ask.

    Nothing is returned of any other model.
    """
    weights = model.state_dict()
    if not any(isinstance(value, Tensor) and is_sharded(value) for value in weights.values()):
        return {}
    return {name: whole(tensor).contiguous() for name, tensor in weights.items()}
