"""The private step: sample, clip, record, add noise, update.

Your own training loop and ``dpaudit train`` take the same step, in the same session.

References: Abadi et al. (2016), arXiv:1607.00133, Algorithm 1, with Poisson sampling.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.adam import set_noise_deviation
from dpaudit.trainer.batches.grouped_records import RecordGroups, Users, average_row_losses
from dpaudit.trainer.batches.samplers import Poisson
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.canaries.run_canaries import Observation, RunCanaries, not_observed
from dpaudit.trainer.clip_rules import ClipRule
from dpaudit.trainer.data_sources.bound_data import BoundData
from dpaudit.trainer.data_sources.data_loaders import LoadableData, LoadingSettings
from dpaudit.trainer.distributed import set_gradients, unsharded_parameters
from dpaudit.trainer.drawn_batches import (
    DrawnBatches,
    Transform,
    count_of_steps,
    floating_type,
)
from dpaudit.trainer.engine import Engine, PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch, count_records
from dpaudit.trainer.engine.model_state import seed_torch
from dpaudit.trainer.engine.spot_checks import CheckSchedule
from dpaudit.trainer.noise.gradient_noise import (
    GradientSums,
    count_coordinates,
    divide,
    noisy_means,
)
from dpaudit.trainer.noise.randomness import NotCopyable, Purpose
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.trainer.session.settings import StepSettings
from dpaudit.trainer.session.training_plan import TrainingPlan
from dpaudit.trainer.session.training_session import Session
from dpaudit.trainer.trainable import require_all_parameters
from dpaudit.vocabulary.errors import (
    BudgetExceeded,
    GradientsDisagree,
    InvalidArgument,
)
from dpaudit.vocabulary.ledger import GRADIENT_SUM, LedgerHeader, Randomness
from dpaudit.vocabulary.mechanism import Gaussian, Release
from dpaudit.vocabulary.privacy_terms import Bound, Unit


class Private(NotCopyable):
    """Takes private steps on one model; made by ``make_private``.

    A trainer belongs to the process that made it. A forked child, a copy or a pickle would repeat
    its noise, and is refused.

    Args:
        session: The training session, which records releases.
        step_settings: Settings of every step.
        rule: The clip rule.
        settings: Every setting that privacy depends on, as one text per setting, for checkpoints.
        canaries: Gradient canaries of the run; None: there are none.
        canary_file: The trainer's canary file, if records include canaries.
        plan: Steps, delta and budget; None: the caller gives them to the methods.
        loadable: The data, and how they are loaded; None: the caller gives them to ``batches``.
        loading: How data that are given to ``batches`` are loaded; None: by default.

    Attributes:
        model: The model that is trained.
        optimizer: The optimizer that updates it.
        step_settings: Settings of every step.
        clip_rule: The clip rule in its present state.
        canaries: Gradient canaries of the run; None: there are none.
        canary_file: The trainer's canary file, if records include canaries.
        plan: Steps, delta and calibrated noise of ``make_private``; None: there is no plan.

    Example:
        >>> import torch
        >>> from dpaudit.trainer.attach import make_private
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with make_private(model, optimizer, noise_multiplier=2.0, sampling_rate=0.25,
        ...                   expected_batch_size=2) as private:
        ...     for batch in private.batches(torch.randn(8, 2)):
        ...         private.step(lambda model, rows: model(rows)[:, 0] ** 2, batch)
        ...     private.steps
        4
    """

    description = "a private trainer"

    def __init__(
        self,
        session: Session,
        step_settings: StepSettings,
        rule: ClipRule,
        settings: dict[str, str],
        canaries: RunCanaries | None = None,
        canary_file: CanaryFile | None = None,
        *,
        plan: TrainingPlan | None = None,
        loadable: LoadableData | None = None,
        loading: LoadingSettings | None = None,
    ) -> None:
        self._session, self.step_settings, self.clip_rule = session, step_settings, rule
        self._settings, self.canaries, self.canary_file = settings, canaries, canary_file
        self.model, self.optimizer = session.trained.model, session.trained.optimizer
        self._engine = Engine(self.model, _missing_loss, _check_schedule(session))
        self._shapes: dict[str, torch.Size] = {}
        self.plan = plan
        bound = BoundData(loadable, loading or LoadingSettings(), floating_type(self.model))
        self._batches = DrawnBatches(session, step_settings.sampler, bound, canary_file)
        self._drawn = session.steps  # number of batches drawn
        self._sums_taken = 0  # in this process
        self._drawn_records = 0  # records, or users, of the batch drawn last
        # Of the step that ``_next_release`` was asked for last.
        self._release: tuple[StepSettings, int, Release | None] | None = None

    @property
    def steps(self) -> int:
        """The number of steps taken, those before a checkpoint included."""
        return self._session.steps

    @property
    def header(self) -> LedgerHeader:
        """The ledger's header, which holds for the whole run."""
        return self._session.header

    @property
    def observations(self) -> Sequence[Observation]:
        """The observations of the gradient canaries, one per step."""
        return self._session.observations

    def batches(
        self,
        data: Any = None,
        *,
        steps: int | None = None,
        users: Users | None = None,
        transform: Transform | None = None,
    ) -> Iterator[Batch]:
        """Yield the batch of each step: ``steps`` steps, or what is left of the plan.

        Ends before the step that would exceed the budget of ``target_epsilon`` or ``stop_at``.

        Args:
            data: The records, as ``make_private`` takes them; None: those given to it.
            steps: Number of steps; None: the rest of the plan's steps, or without a plan as many
                as draw each record once, on average.
            users: The owners of the records: users are drawn in place of records, and
                ``RecordGroups`` are yielded. Required if ``unit`` is not ``record``, and only then.
            transform: Changes each batch, record by record, before it is yielded. A transform
                that mixes records, as mixup or standardization over the batch, is refused.

        Yields:
            The drawn records of this rank, possibly none.

        Raises:
            InvalidArgument: If no step was taken on the previous batch, or an argument does not
                fit. Also if canaries of the canary file are missing, or ranks have different
                data.
            UserCodeError: If the data set or ``collate_fn`` raises an exception.
        """
        if (users is None) != (self.step_settings.unit is Unit.RECORD):
            raise InvalidArgument(
                "users", users, f"given if, and only if, the unit is not a record; it is "
                f"{self.step_settings.unit.value!r}",
            )  # fmt: skip
        session = self._session
        times = self._steps_left() if steps is None else count_of_steps(steps)
        bound = self._batches.bind(data, users, times)
        with self._batches.load(bound, times) as loaded:
            for number in range(times):
                session.require_open()
                # A step on each batch is required, except across calls: an interrupted loop may
                # continue with the batch that it had.
                if number and self._drawn > self.steps:
                    raise InvalidArgument(
                        "batches", "a batch without a step", "followed by one private.step "
                        "each: a dropped batch makes the sampling differ from the recorded one",
                    )  # fmt: skip
                if not session.has_room(self._next_release()):
                    return
                one = next(loaded)
                batch = self._batches.prepare(one, bound, transform, self._engine)
                self._drawn, self._drawn_records = self.steps + 1, one.drawn
                yield batch

    def step(self, per_sample_loss: PerSampleLoss, batch: Batch) -> None:
        """Take one private step on a batch of ``batches``.

        The release is on disk in the ledger before its noise is drawn. A step can be
        refused before that, because its loss or batch cannot be used. It then records nothing,
        and can be taken again on the same batch. An empty batch takes a step like any other.

        Args:
            per_sample_loss: (model, batch) to losses of shape ``(records,)``.
            batch: A batch that ``batches`` yielded, moved or changed record by record; or
                ``RecordGroups`` of it, whose rows' losses are averaged before clipping.

        Raises:
            InvalidArgument: If the batch was not drawn here, or the model mixes records.
            BudgetExceeded: If one more step would exceed the budget.
            UnrecordedChange: If the model was changed since the last step.
            ForkedSession: If this process is a fork of the one that made the trainer.
            NoiseReused: If another thread is in the middle of a step.
            GradientsDisagree: If a spot check fails, in this step or an earlier one.
        """
        session = self._session
        with session.one_step():
            self._require_drawn(batch)
            if not session.has_room(self._next_release()):
                raise BudgetExceeded("one more step would exceed the budget that was set")
            require_all_parameters(self.model, self.optimizer)
            self._engine.loss = (
                average_row_losses(per_sample_loss)
                if isinstance(batch, RecordGroups)
                else per_sample_loss
            )
            self._batches.require_loss_without_padding(self.model, self._engine.loss, batch)
            step, noise_multiplier = self.steps, self.step_settings.noise_multiplier(self.steps)
            norm = self.clip_rule.sensitivity(step, noise_multiplier)
            joined = self._canaries_that_join(step)
            sums = self._checked_sums(batch, joined, noise_multiplier)
            if (release := self._next_release()) is not None:
                session.record(GRADIENT_SUM, release, step)
            # After the record, so that no rank has the sum before the release is on disk.
            session.ranks.sum_over_ranks(sums)
            self._descend(sums, joined, noise_multiplier, norm)

    def also_released(self, what: str, release: Release) -> None:
        """Record another release about the same records, before it is made.

        For example a noisy accuracy or a noisy number of records; your own code adds the noise.
        Every rank calls this.

        Args:
            what: What is released.
            release: Its mechanism, as ``Gaussian(2.0)``.

        Raises:
            InvalidArgument: If it is not a mechanism, or ranks give different ones.
            UnsupportedMechanism: If no accountant composes it with what this run records.
            BudgetExceeded: If it would exceed the budget of ``stop_at``.
        """
        self._session.require_open()
        self._session.require_room(what, release)
        self._session.ranks.require_same_settings({"also released": f"{what} {release!r}"})
        self._session.record(what, release, self.steps)

    def receive_model(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Set the trainable parameters to a model that a federation released, between steps.

        For participants of a federation: in each round, local training continues from the global
        model. This is post-processing as long as the weights were computed from recorded
        releases, of this participant and of others, and from nothing else. Use
        ``declare_change`` for any other change. The optimizer's state is reset, as it belongs to
        the earlier weights. Changes made before, outside of steps, are still detected.

        Args:
            weights: One finite tensor for each trainable parameter, by name, with its shape.

        Raises:
            InvalidArgument: If a name, shape or value does not fit; the model is unchanged. Also
                if the weights are averaged over steps.
            NoiseReused: If a step is in progress.
            UnrecordedChange: If the model was changed since the last step.

        Example:
            >>> import torch
            >>> from dpaudit.trainer.attach import make_private
            >>> model = torch.nn.Linear(2, 1)
            >>> private = make_private(
            ...     model, torch.optim.SGD(model.parameters(), lr=0.1), noise_multiplier=1.0,
            ...     sampling_rate=0.5, expected_batch_size=4)
            >>> private.receive_model({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
            >>> model.weight.tolist()
            [[1.0, 1.0]]
        """
        session = self._session
        if session.trained.average is not None:
            raise InvalidArgument("average_decay", "a number", "None in a federation")
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        _require_weights_fit(own, weights)
        with session.receiving(), torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
            self.optimizer.state.clear()

    def declare_change(self, what: str) -> None:
        """Declare a change of the model that is not the result of a recorded step.

        Call it after the change and before the next step, ``checkpoint`` or ``finish``, which
        refuse a model that changed in between. The ledger records it, and the claim lists it as
        not covered. Every rank calls this.

        Args:
            what: What was changed and why.

        Raises:
            InvalidArgument: If the text is empty, or the run is finished.
        """
        self._session.declare_change(what)
        self._engine.forget()

    def checkpoint(self, folder: Path | str) -> None:
        """Write model, optimizer and progress into ``folder``; the newest two are kept.

        No key is written: a resumed run draws a fresh one, and records the steps that it takes
        again. Earlier releases of these steps stay recorded.

        Args:
            folder: The folder of the run's checkpoints.

        Raises:
            InvalidArgument: If the run has no ledger file, without which it cannot be resumed.
            UnrecordedChange: If the model was changed since the last step.
        """
        self._session.checkpoint(
            Path(folder),
            expected_batch_size=self.step_settings.expected_batch_size,
            clip_norm=self.clip_rule.learned_clip_norm,
            settings=self._settings,
        )

    def finish(self, *, delta: float | None = None) -> RunDirectory:
        """End the run: the ledger's folder becomes a finished run directory.

        It holds ``model.safetensors`` (the released weights), ``claim.json`` (the claim at
        ``delta``), and the ledger, which is sealed last. ``dpaudit gate`` and ``dpaudit report``
        read it like any run. Every rank calls this and waits until the files are written; shards
        are gathered.

        Args:
            delta: Delta of the claim, in [1e-300, 1); None: that of ``make_private``.

        Returns:
            The run directory.

        Raises:
            InvalidArgument: If no step was taken, the run is finished, or the ledger is not a file
                named ``ledger.jsonl``.
            UnrecordedChange: If the model was changed since the last step.
        """
        return self._session.seal(self._delta(delta), self.canaries)

    def close(self) -> None:
        """End the session without finishing the run, which can be resumed.

        A second call does nothing. A ``with make_private(...) as private:`` block calls it at its
        end.
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

    def epsilon(self, *, delta: float | None = None) -> Bound:
        """Return certified bounds of epsilon for all releases so far.

        Args:
            delta: Delta, in [1e-300, 1); None: that of ``make_private``.

        Returns:
            Lower and upper bound of epsilon; both 0 if nothing was released.

        Raises:
            InvalidArgument: If delta is out of range, or given nowhere.
        """
        return self._session.epsilon(self._delta(delta))

    def _delta(self, delta: float | None) -> float:
        """Return a given delta, or that of the plan."""
        own = self.plan.delta if delta is None and self.plan is not None else delta
        if own is None:
            raise InvalidArgument("delta", None, "given here or to make_private, as 1e-5")
        return own

    def stop_at(self, *, epsilon: float, delta: float) -> None:
        """Set a privacy budget: ``batches`` ends before the step that would exceed it.

        Args:
            epsilon: Upper limit of epsilon, above 0.
            delta: Delta of the limit, in [1e-300, 1).

        Raises:
            InvalidArgument: If an argument is out of range, or ranks have different budgets.
        """
        self._session.stop_at(PrivacyBudget(epsilon, delta))

    def _steps_left(self) -> int:
        """Return the number of steps that are left of the plan, or those of about one pass."""
        if self.plan is None or self.plan.steps is None:
            return self.step_settings.sampler.steps_in_a_pass
        return max(0, self.plan.steps - self.steps)

    def _require_drawn(self, batch: Batch) -> None:
        """Refuse a batch that was not drawn, or has more records than were drawn."""
        if self._drawn <= self.steps:
            raise InvalidArgument(
                "batch", "one that was not drawn by private.batches", "drawn by it, one per step: "
                "the ledger records its sampling",
            )  # fmt: skip
        if count_records(batch) > self._drawn_records:
            raise InvalidArgument(
                "batch", "one of more records than were drawn", "changed record by record: "
                "put several rows of one record, such as views, into RecordGroups",
            )  # fmt: skip

    def _canaries_that_join(self, step: int) -> NDArray[np.bool_]:
        """Return the canaries in the batch, shape ``(m,)``; none on other ranks than the first."""
        if self.canaries is None:
            return np.zeros(0, dtype=np.bool_)
        sampler = self.step_settings.sampler
        assert isinstance(sampler, Poisson)  # make_private refuses other samplers with canaries
        joined = self.canaries.joined(self._session.stream, step, sampler.sampling_rate)
        return joined if self._session.ranks.rank == 0 else np.zeros_like(joined)

    @property
    def record_by_record(self) -> tuple[str, ...]:
        """Names of the parameters that need a backward pass per record, which is slow.

        Known after the first step. A parameter without a gradient, as in an adapter that starts
        at zero, is listed until gradients flow.
        """
        return self._engine.record_by_record

    def _checked_sums(
        self, batch: Batch, joined: NDArray[np.bool_], noise_multiplier: float
    ) -> GradientSums:
        """Return the sums of a step; record its spot check, if there was one."""
        if self._engine.disagreement is not None:
            raise self._engine.disagreement
        try:
            sums = self._clipped_sums(batch, joined, noise_multiplier)
        except GradientsDisagree as error:
            self._session.record_spot_check(self.steps, str(error))
            raise
        # Whatever was compared: the line must not tell how many records the batch had.
        if self._engine.checked:
            self._session.record_spot_check(self.steps)
        self._sums_taken += 1
        if self._sums_taken == WARNED_STEP and self.record_by_record:
            warnings.warn(self._slow_parameters(), stacklevel=3)
        return sums

    def _slow_parameters(self) -> str:
        """Return the warning that names slow parameters, with their cost."""
        slow, share = self.record_by_record, self._engine.slow_share
        shown = ", ".join(slow[:MAX_NAMES_SHOWN]) + (", ..." if len(slow) > MAX_NAMES_SHOWN else "")
        return (
            f"{len(slow)} parameters have no fast rule and take {share:.0%} of the CPU time of a "
            f"step, by one backward pass per record: {shown} (all: private.record_by_record); "
            "freeze them, or express the operation by layers of torch.nn"
        )

    def _clipped_sums(
        self, batch: Batch, joined: NDArray[np.bool_], noise_multiplier: float
    ) -> GradientSums:
        """Return this rank's sums over records and canaries, and the rule's extra coordinates."""
        stream, clipping = self._session.stream, self.clip_rule.at(self.steps)
        # Dropout draws from torch's generator, which is seeded from the key: a resumed or
        # repeated step does not depend on earlier draws.
        with torch.random.fork_rng(devices=[]), unsharded_parameters(self.model):
            seed_torch(stream.seed_for(Purpose.DROPOUT, self.steps) + self._session.ranks.rank)
            clipped = self._engine.clipped_sum(
                batch, clipping, self.step_settings.physical_batch_size
            )
        sums = clipped.sums
        if self.canaries is not None:
            self._require_same_coordinates(sums)
            sums = self.canaries.add(sums, joined, clipping.sensitivity)
        return {**sums, **self.clip_rule.extra_coordinates(clipped, noise_multiplier)}

    def _require_same_coordinates(self, sums: GradientSums) -> None:
        """Refuse changed trainable parameters if canaries have directions among them."""
        assert self.canaries is not None
        shapes = {name: part.shape for name, part in sums.items()}
        if self._shapes and self._shapes != shapes and not self.canaries.in_separate_coordinates:
            allowed = "the same as before: canaries have directions among the parameters"
            raise InvalidArgument("trainable parameters", sorted(shapes), allowed)
        self._shapes = shapes

    def _descend(
        self, sums: GradientSums, joined: NDArray[np.bool_], noise_multiplier: float, norm: float
    ) -> None:
        """Add the noise of this step, once, and update the parameters."""
        session, noise = self._session, self.step_settings.noise
        expected = self.step_settings.expected_batch_size
        context = session.next_noise_context()
        # An interrupt from here on leaves a step without an observation.
        if self.canaries is not None:
            session.observations.append(not_observed(len(joined)))
        deviation = noise.deviation(noise_multiplier, norm, count_coordinates(sums), context)
        if self.canaries is None and self.clip_rule.learned_clip_norm is None:
            means = noisy_means(noise, sums, context, noise_multiplier, norm, expected)
        else:
            noisy = noise.add_noise(sums, context, noise_multiplier, norm)
            if self.canaries is not None:  # before the sums are divided in place
                session.observations[-1] = self.canaries.observe(noisy, joined, norm)
            self.clip_rule = self.clip_rule.updated(noisy, noise_multiplier, expected)
            means = divide(noisy, expected)
        set_gradients(self.model, means)
        set_noise_deviation(self.optimizer, deviation / expected)
        self.optimizer.step()
        if session.trained.average is not None:
            session.trained.average.update_parameters(self.model)

    def _next_release(self) -> Release | None:
        """Return the release to record before the next step; None if an earlier one covers it."""
        settings, step = self.step_settings, self.steps
        known = self._release
        if known is None or known[0] is not settings or known[1] != step:
            noise = _gaussian(settings.noise_multiplier(step))
            release = settings.sampler.release_at(noise, step, self._session.first)
            self._release = known = settings, step, release
        return known[2]


@lru_cache(maxsize=1)
def _gaussian(noise_multiplier: float) -> Gaussian:
    """Return the Gaussian mechanism of a step, which usually is that of the step before."""
    return Gaussian(noise_multiplier)


WARNED_STEP = 4
"""The step after which slow parameters are named, once: by then, plans have been made again."""

SLOW_PARAMETERS_PATTERN = r"\d+ parameters have no fast rule"
"""Start of the warning that names slow parameters, for those who train many models alike."""

MAX_NAMES_SHOWN = 5
"""Names of slow parameters in the warning."""

SEEDED_CHECK_RATE = 1 / 256
"""Probability of a spot check in seeded runs, in which nothing may depend on the time taken."""


def _check_schedule(session: Session) -> CheckSchedule:
    """Return which steps are checked, by random numbers that only this process can know."""

    def draw(_: int) -> float:  # of the session's step: equal in a resumed, seeded run
        return session.stream.seed_for(Purpose.SPOT_CHECKS, session.steps) / 2**63

    seeded = session.stream.randomness is Randomness.SEEDED
    return CheckSchedule(draw, SEEDED_CHECK_RATE if seeded else None)


def _require_weights_fit(
    own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> None:
    """Refuse weights that are not one finite tensor for each trainable parameter."""
    if weights.keys() != own.keys():
        differing = sorted(weights.keys() ^ own.keys())
        raise InvalidArgument("weights", differing, "one tensor for each trainable parameter")
    for name, parameter in own.items():
        given = weights[name]
        if given.shape != parameter.shape or not bool(torch.isfinite(given).all()):
            allowed = f"finite, of shape {tuple(parameter.shape)}"
            raise InvalidArgument(f"weights[{name!r}]", f"shape {tuple(given.shape)}", allowed)


def _missing_loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Placeholder for the loss until a step gives it."""
    raise InvalidArgument("per_sample_loss", None, "given to private.step")
