"""The one private step: draw, clip, record, add noise, descend.

Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with independent sampling of records. A
loop of your own and ``dpaudit train`` take the same step, in the same session.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.adam import tell_noise
from dpaudit.trainer.added_noise import Sums, size
from dpaudit.trainer.bags import Bags, Users, averaged
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.canary_file import CanaryFile
from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.engine import Engine, PerSampleLoss
from dpaudit.trainer.engine.batches import Batch, count
from dpaudit.trainer.engine.seeding import seed_torch
from dpaudit.trainer.observations import Observation, unseen
from dpaudit.trainer.randomness import NotCopied, Purpose
from dpaudit.trainer.recipe import Recipe
from dpaudit.trainer.sampling import Poisson
from dpaudit.trainer.session import Budget, Session
from dpaudit.trainer.sharding import set_gradients, whole_parameters
from dpaudit.trainer.sources import source_of
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import BudgetExceeded, InvalidArgument, require_count
from dpaudit.vocabulary.ledger import LedgerHeader
from dpaudit.vocabulary.mechanism import Gaussian, Release
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.vocabulary.unit import Unit


class Private(NotCopied):
    """Private steps on one model: made by ``make_private``.

    It belongs to the process that made it. A forked child, a copy or a pickle of it would
    repeat its noise, and is refused.
    """

    called = "a private trainer"

    def __init__(
        self,
        session: Session,
        recipe: Recipe,
        rule: ClipRule,
        settings: dict[str, str],
        canaries: Canaries | None = None,
    ) -> None:
        self._session, self.recipe, self.clip_rule = session, recipe, rule
        self._settings, self.canaries = settings, canaries
        self.model, self.optimizer = session.trained.model, session.trained.optimizer
        self._engine = Engine(self.model, _losses_of_no_step)
        self._shapes: dict[str, torch.Size] = {}
        self.planted: CanaryFile | None = None  # canaries among the records
        self._looked_through: Any = None  # the last data set that was seen to hold them
        self._held: tuple[tuple[int, ...], Any] | None = None  # the records drawn by position
        self._drawn = session.steps
        self._most = 0  # records, or users, that the batch at hand was drawn with

    @property
    def steps(self) -> int:
        """How many steps were taken, those before a checkpoint included."""
        return self._session.steps

    @property
    def header(self) -> LedgerHeader:
        """What the ledger says of the whole run."""
        return self._session.header

    @property
    def observations(self) -> Sequence[Observation]:
        """What each step showed of the gradient canaries."""
        return self._session.observations

    def batches(
        self, dataset: Any, *, steps: int | None = None, users: Users | None = None
    ) -> Iterator[Batch]:
        """Yield the batch of each step, for ``steps`` steps or about one pass.

        Ends before the step that would exceed the budget of ``stop_at``.

        Args:
            dataset: Tensors with records first, in a tuple, dict or dataclass; or anything
                with a length and records by index, as torch's own.
            steps: How many; None: as many as draw each record once, on average.
            users: Whose the records are: users are drawn in their place, and what is
                yielded are ``Bags``. Needed where ``unit`` is anything but a record.

        Raises:
            InvalidArgument: A batch was drawn and no step taken on it; or ranks were given
                data of different lengths.
        """
        if (users is None) != (self.recipe.unit is Unit.RECORD):
            raise InvalidArgument(
                "users", users, f"given if, and only if, the unit is another than a record; it "
                f"is {self.recipe.unit.value!r}",
            )  # fmt: skip
        session, sampler, take = self._session, self.recipe.sampler, source_of(dataset, users)
        times = sampler.steps_in_a_pass if steps is None else _count_of_steps(steps)
        self._require_same_records(dataset)
        if self.planted is not None and dataset is not self._looked_through:
            self.planted.require_among(dataset)
            self._looked_through = dataset
        session.ranks.require_same_settings(
            {"records": str(take.records), "steps": str(times), "step": str(self.steps)}
        )
        for number in range(times):
            session.require_open()
            # A loop that was interrupted goes on with the batch that it had.
            if number and self._drawn > self.steps:
                raise InvalidArgument(
                    "batches", "a batch that no step was taken on", "answered by private.step: "
                    "a batch that is looked at and dropped was drawn in vain",
                )  # fmt: skip
            if not session.has_room(self._next_release()):
                return
            drawn = sampler.draw(session.stream, self.steps, take.records)
            drawn = session.ranks.share(drawn)
            batch = take(drawn, session.stream, self.steps)
            self._drawn, self._most = self.steps + 1, len(drawn)
            yield batch

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step on a batch of ``batches``.

        The release is on disk in the ledger before its noise is drawn. A step that is
        refused before that, as its loss or batch cannot be used, records nothing, and can be
        taken again on the same batch. An empty batch takes a step like any other.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: What ``batches`` yielded, moved or changed as you like, record by record;
                or ``Bags`` of it, whose rows' losses are averaged before anything is clipped.

        Raises:
            InvalidArgument: The batch was not drawn here, or the model mixes records.
            BudgetExceeded: One step more would exceed the budget.
            UnrecordedChange: The model was changed since the last step.
            ForkedSession: This is a fork of the process that made the trainer.
            NoiseReused: Another thread is in the middle of a step.
        """
        session = self._session
        with session.one_step():
            self._require_drawn(batch)
            if not session.has_room(self._next_release()):
                raise BudgetExceeded("one step more would exceed the budget that was set")
            require_same_parameters(self.model, self.optimizer)
            self._engine.loss = (
                averaged(per_sample_loss) if isinstance(batch, Bags) else per_sample_loss
            )
            step, noise_multiplier = self.steps, self.recipe.noise_multiplier(self.steps)
            norm = self.clip_rule.sensitivity(step, noise_multiplier)
            joined = self._canaries_that_join(step)
            sums = self._clipped_sums(batch, joined, noise_multiplier)
            if (release := self._next_release()) is not None:
                session.record(GRADIENT_SUM, release, step)
            # After the record: a rank has the sum, and so its noise, only once that is on disk.
            session.ranks.add_up(sums)
            self._descend(sums, joined, noise_multiplier, norm)

    def also_released(self, what: str, release: Release) -> None:
        """Record something else about the same records, before it is made.

        A noisy accuracy, say, or how many records there are: your own loop adds the noise.
        Every rank calls this.

        Raises:
            InvalidArgument: It is no release, or ranks name different ones.
            UnsupportedMechanism: No claim could be made of it beside what this run records.
            BudgetExceeded: It would exceed the budget of ``stop_at``.
        """
        self._session.require_open()
        self._session.require_room(what, release)
        self._session.ranks.require_same_settings({"also released": f"{what} {release!r}"})
        self._session.record(what, release, self.steps)

    def declare_change(self, what: str) -> None:
        """Declare a change of the model that is no result of a recorded step.

        Call it after the change and before the next step, ``checkpoint`` or ``finish``, which
        refuse a model that changed in between. The ledger holds it, and the claim names it as
        not covered. Every rank calls this.

        Args:
            what: What was changed and why, in words.

        Raises:
            InvalidArgument: Nothing is said, or the run is finished.
        """
        self._session.declare_change(what)
        self._engine.forget()

    def checkpoint(self, folder: Path | str) -> None:
        """Write model, optimizer and progress into ``folder``; the newest two are kept.

        No key is written: a run that is resumed draws a fresh one, and records the steps
        that it takes again. What was released meanwhile stays recorded.

        Raises:
            InvalidArgument: The run has no ledger that could be resumed with it.
            UnrecordedChange: The model was changed since the last step.
        """
        self._session.checkpoint(
            Path(folder),
            expected_batch_size=self.recipe.expected_batch_size,
            clip_norm=self.clip_rule.learned,
            settings=self._settings,
        )

    def finish(self, *, delta: float) -> RunDirectory:
        """End the run: the ledger's folder becomes a run directory, which nothing changes.

        Beside the ledger, which is sealed last, come ``model.safetensors``, the weights as
        the last step left them, and ``claim.json``, the claim at ``delta``. ``dpaudit gate``
        and ``dpaudit report`` read it as they read any run. Every rank calls this, and goes
        on when the files are there; shards are put together.

        Raises:
            InvalidArgument: No step was taken, it is finished already, or the ledger is no
                file of the name ``ledger.jsonl``.
            UnrecordedChange: The model was changed since the last step.
        """
        return self._session.seal(delta, self.canaries)

    def close(self) -> None:
        """End the session without finishing the run, which can be resumed; again: nothing.

        ``with make_private(...) as private:`` does so when its block is left.
        """
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def epsilon(self, *, delta: float) -> Bound:
        """Return the certified interval of epsilon of all that was released so far."""
        return self._session.epsilon(delta)

    def stop_at(self, *, epsilon: float, delta: float) -> None:
        """Let ``batches`` end before the step that would cost more than ``epsilon``."""
        self._session.stop_at(Budget(epsilon, delta))

    def _require_drawn(self, batch: Batch) -> None:
        if self._drawn <= self.steps:
            raise InvalidArgument(
                "batch", "one that was not drawn by private.batches", "drawn by it, one a step: "
                "what is recorded is how it draws",
            )  # fmt: skip
        if count(batch) > self._most:
            raise InvalidArgument(
                "batch", "one of more records than were drawn", "changed record by record: "
                "several rows of one record, as its views, go into Bags",
            )  # fmt: skip

    def _require_same_records(self, dataset: Any) -> None:
        """Refuse other records in the middle of what a sampler draws by position.

        Where one release covers a pass or the run, each record has a place of its own in it:
        in another order, a record would join twice.
        """
        sampler = self.recipe.sampler
        if sampler.steps_a_booking == 1:
            return
        # What it holds is compared: a tuple of the same tensors is the same data set.
        held = tuple(map(id, _columns_of(dataset)))
        begins = self.steps % sampler.steps_a_booking == 0
        if self._held and held != self._held[0] and not begins:
            raise InvalidArgument(
                "dataset", "another one than before", "the same object, in the same order, within "
                "what one release covers: this sampler draws by position",
            )  # fmt: skip
        self._held = (held, dataset)

    def _canaries_that_join(self, step: int) -> NDArray[np.bool_]:
        """Return the canaries in the batch, shape ``(m,)``: the first rank adds them for all."""
        if self.canaries is None:
            return np.zeros(0, dtype=np.bool_)
        sampler = self.recipe.sampler
        assert isinstance(sampler, Poisson)  # nothing else is attached
        joined = self.canaries.joined(self._session.stream, step, sampler.sampling_rate)
        return joined if self._session.ranks.rank == 0 else np.zeros_like(joined)

    def _clipped_sums(
        self, batch: Batch, joined: NDArray[np.bool_], noise_multiplier: float
    ) -> Sums:
        """Return this rank's sums over its records, the canaries, and what the rule adds."""
        stream, clipping = self._session.stream, self.clip_rule.at(self.steps)
        # Dropout draws from torch's own generator: from the key, and not from its own past.
        with torch.random.fork_rng(devices=[]), whole_parameters(self.model):
            seed_torch(stream.seed_for(Purpose.DROPOUT, self.steps) + self._session.ranks.rank)
            clipped = self._engine.clipped_sum(batch, clipping, self.recipe.physical_batch_size)
        sums = clipped.sums
        if self.canaries is not None:
            self._require_same_coordinates(sums)
            sums = self.canaries.add(sums, joined, clipping.sensitivity)
        return {**sums, **self.clip_rule.beside(clipped, noise_multiplier)}

    def _require_same_coordinates(self, sums: Sums) -> None:
        """Refuse other trainable parameters than before where canaries point among them."""
        assert self.canaries is not None
        shapes = {name: part.shape for name, part in sums.items()}
        if self._shapes and self._shapes != shapes and not self.canaries.beside_parameters:
            allowed = "the same as before, where canaries point among the parameters"
            raise InvalidArgument("trainable parameters", sorted(shapes), allowed)
        self._shapes = shapes

    def _descend(
        self, sums: Sums, joined: NDArray[np.bool_], noise_multiplier: float, norm: float
    ) -> None:
        """Add the noise of this step, once, and let the optimizer step on what results."""
        session, noise, expected = (
            self._session,
            self.recipe.noise,
            self.recipe.expected_batch_size,
        )
        moment = session.next_noise()
        if self.canaries is not None:  # an interrupt from here on leaves a step that shows nothing
            session.observations.append(unseen(len(joined)))
        deviation = noise.deviation(noise_multiplier, norm, size(sums), moment)
        noisy = noise.added(sums, moment, noise_multiplier, norm)
        if self.canaries is not None:  # before what becomes a gradient is divided in place
            session.observations[-1] = self.canaries.observe(noisy, joined, norm)
        self.clip_rule = self.clip_rule.after(noisy, noise_multiplier, expected)
        set_gradients(self.model, noisy, expected)
        tell_noise(self.optimizer, deviation / expected)
        self.optimizer.step()
        if session.trained.average is not None:
            session.trained.average.update_parameters(self.model)

    def _next_release(self) -> Release | None:
        """Return what is recorded before the next step; None: an earlier step recorded it."""
        noise = Gaussian(self.recipe.noise_multiplier(self.steps))
        return self.recipe.sampler.booked(noise, self.steps, self._session.first)


def _count_of_steps(steps: object) -> int:
    """Return a whole number of Python or NumPy, at least 0."""
    try:
        times = operator.index(steps)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidArgument("steps", steps, "a whole number of at least 0") from error
    require_count("steps", times, least=0)
    return times


def _columns_of(dataset: Any) -> tuple[Any, ...]:
    """Return what a data set holds: its columns, or itself."""
    if isinstance(dataset, dict):
        return tuple(dataset.values())
    if isinstance(dataset, TensorDataset):
        return tuple(dataset.tensors)
    return tuple(dataset) if isinstance(dataset, tuple) else (dataset,)


def require_same_parameters(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that lacks a trainable parameter of the model.

    Raises:
        InvalidArgument: Names the parameters.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held
    ]
    if missing:
        raise InvalidArgument(
            "optimizer",
            type(optimizer).__name__,
            f"one over all trainable parameters; it lacks {', '.join(missing)} (freeze them, "
            "or add them by optimizer.add_param_group)",
        )


def _losses_of_no_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Stand in until a step gives its loss."""
    raise InvalidArgument("per_sample_loss", None, "given with the step")
