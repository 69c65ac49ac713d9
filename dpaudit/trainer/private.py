"""Private steps on one model: draw, clip, book, add noise, descend.

Abadi et al. 2016, arXiv:1607.00133, Algorithm 1, with independent sampling of records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dpaudit.accountants import calibrate, pld
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.adam import tell_noise
from dpaudit.trainer.added_noise import Moment, Sums, size
from dpaudit.trainer.bags import Bags, Users, averaged
from dpaudit.trainer.books import Book
from dpaudit.trainer.checkpoint import (
    Progress,
    write_checkpoint,
)
from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.engine import Engine, PerSampleLoss
from dpaudit.trainer.engine.batches import Batch, count
from dpaudit.trainer.finishing import finish_run, run_of, shards_of
from dpaudit.trainer.peers import Peers
from dpaudit.trainer.randomness import Keystream
from dpaudit.trainer.recipe import Recipe
from dpaudit.trainer.sharding import set_gradients, whole_parameters
from dpaudit.trainer.sources import source_of
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    InvalidArgument,
    require_delta,
    require_positive,
)
from dpaudit.vocabulary.ledger import BookedRelease, LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Mechanism, Release, Repeated

GRADIENT_SUM = "gradient sum"


@dataclass(frozen=True)
class Budget:
    """What must not be exceeded: training stops before the step that would."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)


@dataclass(frozen=True)
class Started:
    """Where a run begins, or goes on.

    Attributes:
        header: Of its ledger.
        book: Where its releases are booked.
        rule: How clipping stands.
        step: How many steps were taken before.
        releases: What was booked before.
        ledger: The file of the book, whichever rank writes it; None: there is none.
    """

    header: LedgerHeader
    book: Book
    rule: ClipRule
    step: int = 0
    releases: tuple[Release, ...] = ()
    ledger: Path | None = None


class Private:
    """Private steps on one model: made by ``make_private``."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        stream: Keystream,
        ranks: Peers,
        started: Started,
    ) -> None:
        self.model, self.optimizer, self.recipe = model, optimizer, recipe
        self.header, self.clip_rule = started.header, started.rule
        self._stream, self._ranks, self._book = stream, ranks, started.book
        self._ledger, self._finished = started.ledger, False
        self._engine = Engine(model, _losses_of_no_step)
        self._booked: dict[Release, int] = {}
        for release in started.releases:
            self._booked[release] = self._booked.get(release, 0) + 1
        self._budget: Budget | None = None
        self._room: dict[Release, int] = {}  # how many more the budget was seen to allow
        self.steps = self._drawn = started.step
        self._most = 0  # records, or users, that the batch at hand was drawn with
        seeded = stream.randomness is Randomness.SEEDED
        self._first = 0 if seeded else started.step  # where this key began

    def batches(
        self, dataset: Any, *, steps: int | None = None, users: Users | None = None
    ) -> Iterator[Batch]:
        """Yield the batch of each step, for ``steps`` steps or about one pass.

        Args:
            dataset: Tensors with records first, in a tuple, dict or dataclass; or anything
                with a length and records by index, as torch's own.
            steps: How many; None: as many as draw each record once, on average.
            users: Whose the records are: users are drawn in their place, and what is
                yielded are ``Bags``. Needed where ``unit`` is anything but a record.

        Ends before the step that would exceed the budget of ``stop_at``.
        """
        if (users is None) != (self.recipe.unit == "record"):
            raise InvalidArgument(
                "users", users, f"given if, and only if, the unit is another than a record; it "
                f"is {self.recipe.unit!r}",
            )  # fmt: skip
        take = source_of(dataset, users)
        sampler = self.recipe.sampler
        for _ in range(sampler.steps_in_a_pass if steps is None else steps):
            self._require_unfinished()
            if self._drawn > self.steps:
                raise InvalidArgument(
                    "batches", "a batch that no step was taken on", "answered by private.step: "
                    "a batch that is looked at and dropped was drawn in vain",
                )  # fmt: skip
            if not self._may_go_on():
                return
            drawn = self._ranks.share(sampler.draw(self._stream, self.steps, take.records))
            batch = take(drawn, self._stream, self.steps)
            self._drawn, self._most = self._drawn + 1, len(drawn)
            yield batch

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step on a batch of ``batches``.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: What ``batches`` yielded, moved or changed as you like, record by record;
                or ``Bags`` of it, whose rows' losses are averaged before anything is clipped.

        Raises:
            InvalidArgument: the batch was not drawn here, or the model mixes records.
            BudgetExceeded: one step more would exceed the budget.
        """
        self._require_unfinished()
        if self._drawn <= self.steps:
            raise InvalidArgument(
                "batch", "one that was not drawn by private.batches", "drawn by it, one a step: "
                "what is booked is how it draws",
            )  # fmt: skip
        if count(batch) > self._most:
            raise InvalidArgument(
                "batch", "one of more records than were drawn", "changed record by record: "
                "several rows of one record, as its views, go into Bags",
            )  # fmt: skip
        if not self._may_go_on():
            raise BudgetExceeded("one step more would exceed the budget that was set")
        self._engine.loss = (
            averaged(per_sample_loss) if isinstance(batch, Bags) else per_sample_loss
        )
        noise_multiplier = self.recipe.noise_multiplier(self.steps)
        norm = self.clip_rule.sensitivity(self.steps, noise_multiplier)
        with whole_parameters(self.model):
            self._engine.require_independence(batch)
            self._note(self._to_book(noise_multiplier, self.steps))
            sums = self._clipped_sums(batch, noise_multiplier)
        self._ranks.add_up(sums)
        moment = Moment(self._stream, self.steps, self._first)
        self.steps += 1  # from here on, whatever fails: this step's noise is not used again
        noise, expected = self.recipe.noise, self.recipe.expected_batch_size
        deviation = noise.deviation(noise_multiplier, norm, size(sums), moment)
        noisy = noise.added(sums, moment, noise_multiplier, norm)
        self.clip_rule = self.clip_rule.after(noisy, noise_multiplier, expected)
        self._descend(noisy, deviation)

    def also_released(self, what: str, release: Release) -> None:
        """Book something else about the same records, before it is made.

        A noisy accuracy, say, or how many records there are: the loop itself adds the noise.

        Raises:
            BudgetExceeded: it would exceed the budget of ``stop_at``.
        """
        self._require_unfinished()
        if self._budget is not None:
            spent = pld.profile(self._spent(release, 1), adjacency=self.header.adjacency)
            if not spent.epsilon(delta=self._budget.delta).upper <= self._budget.epsilon:
                raise BudgetExceeded(f"{what} would exceed the budget that was set")
        self._book.book(BookedRelease(what, release, step=self.steps))
        self._count(release)

    def checkpoint(self, folder: Path | str) -> None:
        """Write model, optimizer and progress into ``folder``; the newest two are kept.

        No key is written: a run that is resumed draws a fresh one, and books the steps that
        it takes again. What was released meanwhile stays booked.

        Raises:
            InvalidArgument: the run has no ledger that could be resumed with it.
        """
        self._require_unfinished()
        if self._ranks.rank != 0:
            return
        if not isinstance(self._book, LedgerWriter):
            raise InvalidArgument("ledger", None, "a file, so that a resumed run goes on with it")
        progress = Progress(
            self.steps,
            self._book.releases,
            self.recipe.expected_batch_size,
            clip_norm=self.clip_rule.learned,
            run=self.header.run,
        )
        write_checkpoint(Path(folder), progress, self.model, self.optimizer, [])

    def finish(self, *, delta: float) -> RunDirectory:
        """End the run: the ledger's folder becomes a run directory, which nothing changes.

        Beside the ledger, which is sealed, come ``model.safetensors``, the weights as they
        are now, and ``claim.json``, the claim at ``delta``. ``dpaudit gate`` and ``dpaudit
        report`` read it as they read any run. Every rank calls this, and goes on when the
        files are there; shards are put together.

        Raises:
            InvalidArgument: no step was taken, it is finished already, or the ledger is no
                file of the name ``ledger.jsonl``.
        """
        require_delta("delta", delta)
        self._require_unfinished()
        run = run_of(self._ledger)
        if not self._booked:
            raise InvalidArgument("steps", self.steps, "at least 1 before a run is finished")
        shards = shards_of(self.model)
        if isinstance(self._book, LedgerWriter):
            finish_run(run, self.model, shards, self._book, delta)
        self._finished = True
        self._ranks.require_same("steps", self.steps)  # waits for the files, too
        return run

    def epsilon(self, *, delta: float) -> Bound:
        """Return the certified interval of epsilon of all that was released so far."""
        if not self._booked:
            return Bound(0.0, 0.0)
        return pld.profile(self._spent(), adjacency=self.header.adjacency).epsilon(delta=delta)

    def stop_at(self, *, epsilon: float, delta: float) -> None:
        """Let ``batches`` end before the step that would cost more than ``epsilon``."""
        self._budget, self._room = Budget(epsilon, delta), {}

    def _require_unfinished(self) -> None:
        if self._finished:
            raise InvalidArgument(
                "private", "one that is finished", "one that goes on: a sealed ledger books "
                "nothing more",
            )  # fmt: skip

    def _clipped_sums(self, batch: Batch, noise_multiplier: float) -> Sums:
        clipping = self.clip_rule.at(self.steps)
        clipped = self._engine.clipped_sum(batch, clipping, self.recipe.physical_batch_size)
        return {**clipped.sums, **self.clip_rule.beside(clipped, noise_multiplier)}

    def _descend(self, noisy: Sums, deviation: float) -> None:
        expected = self.recipe.expected_batch_size
        self.optimizer.zero_grad()  # what is frozen since must not descend again
        set_gradients(self.model, noisy, expected)
        tell_noise(self.optimizer, deviation / expected)
        self.optimizer.step()

    def _to_book(self, noise_multiplier: float, step: int) -> Release | None:
        return self.recipe.sampler.booked(Gaussian(noise_multiplier), step, self._first)

    def _note(self, release: Release | None) -> None:
        if release is not None:
            self._book.book(BookedRelease(GRADIENT_SUM, release, step=self.steps))
            self._count(release)

    def _count(self, release: Release) -> None:
        """Whatever else had room is asked for anew."""
        self._booked[release] = self._booked.get(release, 0) + 1
        self._room = {release: self._room.get(release, 0) - 1}

    def _spent(self, more: Release | None = None, times: int = 0) -> Mechanism:
        parts = [Repeated(release, count) for release, count in self._booked.items()]
        return Composed((*parts, *([Repeated(more, times)] if more is not None else [])))

    def _may_go_on(self) -> bool:
        """Return whether the budget, if any, has room for the next step.

        How many releases like its own fit is asked once, and again when they are used up.
        """
        if self._budget is None:
            return True
        following = self._to_book(self.recipe.noise_multiplier(self.steps), self.steps)
        if following is None or self._room.get(following, 0) > 0:
            return True
        with suppress(InvalidArgument):  # not even one
            found = calibrate.steps(
                lambda times: self._spent(following, times),
                target_epsilon=self._budget.epsilon,
                delta=self._budget.delta,
                adjacency=self.header.adjacency,
            )
            self._room = {following: found.value}
            return True
        return False


def _losses_of_no_step(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Stand in until a step gives its loss."""
    raise InvalidArgument("per_sample_loss", None, "given with the step")
