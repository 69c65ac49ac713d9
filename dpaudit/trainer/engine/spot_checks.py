"""Spot checks: at random steps, what a step took by rule is compared with the slow way.

A plan is verified when it is made, and again now and then. A spot check looks at a step as it is
taken: at the gradients that are about to be released, in the mode and on the records of the
step. It finds a rule that has become wrong, a norm that is too small, and an operation that has
begun to mix records. No one can tell in advance which steps are checked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from dpaudit.trainer.engine.batch_structure import (
    Batch,
    concatenate_batches,
    count_records,
    slice_records,
    take_records,
)
from dpaudit.trainer.engine.generators import GeneratorStates
from dpaudit.trainer.engine.gradient_forms import GradientForm
from dpaudit.trainer.engine.independence import others_moved, perturbed_records, random_index
from dpaudit.trainer.engine.per_record_gradients import USER_ERRORS, gradients_of
from dpaudit.trainer.engine.planned_gradients import PLAN_TOLERANCE, PlannedGradients
from dpaudit.vocabulary.errors import DpauditError, GradientsDisagree

CHECKED_RECORDS = 2
"""Records whose gradients are compared in one spot check."""

CHECKED_SHARE = 0.008
"""Share of the CPU time that spot checks may take on average; below 1%, as costs vary."""

FIRST_CHECKED_STEP = 16
"""Steps before spot checks begin: by then the cost of a step is known."""

SMALLEST_NORM = 1e-3
"""Scale below which a record's gap is not relative to its norm, as a share of the mean norm."""

COST_MEMORY = 0.9
"""Weight of earlier costs in the moving average of the cost of a step or a check."""


class CheckSchedule:
    """Chooses the steps that are checked at random, so that checks take a fixed share of the time.

    With costs s of a step and c of a check, a step is checked with probability share * s / c.

    Args:
        draw: Uniform number in [0, 1) for a step, which nothing else depends on.
        rate: Probability of a check, whatever it costs; None follows the costs. For seeded runs,
            in which everything is to be reproducible.

    Attributes:
        checked: Number of checked steps.
        check_seconds: CPU seconds of all checks.
        step_seconds: CPU seconds of all steps, without their checks.
    """

    def __init__(self, draw: Callable[[int], float], rate: float | None = None) -> None:
        self._draw, self._rate = draw, rate
        self.checked, self.check_seconds, self.step_seconds = 0, 0.0, 0.0
        self._step_cost = self._check_cost = 0.0

    @property
    def probability(self) -> float:
        """Probability that the next step is checked."""
        if self._rate is not None:
            return self._rate
        # Before the first check, it is taken to cost what a step costs.
        cost = self._check_cost or self._step_cost
        return min(1.0, CHECKED_SHARE * self._step_cost / cost) if cost else 0.0

    def due(self, step: int) -> bool:
        """Return whether a step is checked.

        Args:
            step: Number of the step, from 0.

        Returns:
            False for the first steps, whose costs are not typical; they are verified otherwise.
        """
        known = self._rate is not None or step >= FIRST_CHECKED_STEP
        return known and self._draw(step) < self.probability

    def note_step(self, seconds: float) -> None:
        """Note what a step has cost, without its check.

        Args:
            seconds: CPU seconds.
        """
        self.step_seconds += seconds
        self._step_cost = _average(self._step_cost, seconds)

    def note_check(self, seconds: float) -> None:
        """Note what a check has cost.

        Args:
            seconds: CPU seconds.
        """
        self.checked += 1
        self.check_seconds += seconds
        self._check_cost = _average(self._check_cost, seconds)


def _average(before: float, now: float) -> float:
    """Return a moving average; the first value counts in full."""
    return COST_MEMORY * before + (1 - COST_MEMORY) * now if before else now


@dataclass(frozen=True)
class TakenGradients:
    """What a step took of some records, before it is summed up.

    Attributes:
        forms: Gradients by parameter name; None where no loss depends on the parameter.
        squares: Squared norms, shape ``(parameters, records)``.
        factors: Clip factors, shape ``(parameters, finite records)``.
        kept: Mask of the records that have finite gradients, shape ``(records,)``.
        by_rule: Names of the parameters whose gradients come from rules.
        sensitivity: Largest norm of what one record adds to the sum.
        every: Whether all records are kept.
    """

    forms: dict[str, GradientForm | None]
    squares: Tensor
    factors: Tensor
    kept: Tensor
    by_rule: tuple[str, ...]
    sensitivity: float
    every: bool

    @torch.no_grad()
    def fault(self, record: int, truth: Mapping[str, Tensor | None], least: float) -> str | None:
        """Return in what the gradients of one record differ from those of the slow way.

        Args:
            record: Number of a record with finite gradients.
            truth: Its gradients by the slow way; only these parameters are compared.
            least: Norm below which a gap is not relative to the norm.

        Returns:
            A description for an error; None if they agree.
        """
        only = torch.arange(self.squares.shape[1], device=self.squares.device) == record
        place = int(self.kept[:record].sum())  # among the factors
        gap = size = own_size = added = 0.0
        for name, squares, factors in zip(self.forms, self.squares, self.factors, strict=True):
            if name not in truth:
                continue
            form, true = self.forms[name], truth[name]
            own = None if form is None else form.only(only).dense().double().flatten()
            true = None if true is None else true.double().flatten()
            square = 0.0 if true is None else float(true.square().sum())
            gap += _square_gap(own, true)
            size += square
            own_size += float(squares[record])
            added += float(factors[place]) ** 2 * square
        norm, most = math.sqrt(size), PLAN_TOLERANCE * max(math.sqrt(size), least)
        if not math.sqrt(gap) <= most:
            return f"a gradient differs by {math.sqrt(gap) / max(norm, least):.2g} of its norm"
        if not math.sqrt(own_size) >= norm - most:
            return f"a norm is {math.sqrt(own_size) / norm:.2g} times the true norm"
        if not math.sqrt(added) <= self.sensitivity * (1 + PLAN_TOLERANCE):
            return f"a record adds {math.sqrt(added) / self.sensitivity:.2g} times the sensitivity"
        return None


def _square_gap(own: Tensor | None, true: Tensor | None) -> float:
    """Return the squared norm of a difference; None is zero."""
    if own is None and true is None:
        return 0.0
    gap = true if own is None else own if true is None else own - true
    assert gap is not None
    return float(gap.square().sum())


class SpotCheck:
    """Compares what a step took of some records with the slow way.

    Args:
        gradients: The gradients of the engine.
        batch: The records, at least two.
        generators: States of the random generators before the records were run.
    """

    def __init__(
        self, gradients: PlannedGradients, batch: Batch, generators: GeneratorStates
    ) -> None:
        self._gradients, self._batch, self._generators = gradients, batch, generators
        self._records = count_records(batch)
        self._drawn = generators.advanced()

    def require_right(self, taken: TakenGradients) -> int:
        """Refuse gradients that disagree with the slow way, and records that are mixed.

        Args:
            taken: What the step took.

        Returns:
            Number of records whose gradients were compared.

        Raises:
            GradientsDisagree: If they disagree, or one record changes the loss of another.
        """
        after = self._generators.now()
        try:
            with self._gradients.same_state(self._generators):
                self._require_apart()
                compared = self._require_same_gradients(taken)
        finally:
            after.restore()
        return compared

    def _require_same_gradients(self, taken: TakenGradients) -> int:
        """Compare a few records that have finite gradients."""
        norms = taken.squares.sum(dim=0).sqrt()
        usable = taken.kept.nonzero().squeeze(1).tolist()
        # A record alone draws other random numbers. Then its loss in the batch is differentiated
        # on the same numbers, and only what was taken on these numbers is compared.
        names = taken.by_rule if self._drawn else tuple(taken.forms)
        if not usable or not names:
            return 0
        least = SMALLEST_NORM * float(norms[usable].mean())
        chosen = [
            usable.pop(random_index(len(usable))) for _ in range(min(CHECKED_RECORDS, len(usable)))
        ]
        for record in chosen:
            fault = None if self._drawn else taken.fault(record, self._alone(record), least)
            # A record alone may be rounded to the other side of a kink. In the batch it is not;
            # and no other record reaches it there, as was tested before.
            if self._drawn or fault is not None:
                fault = taken.fault(record, self._within(record, names), least)
            if fault is not None:
                raise GradientsDisagree(
                    f"a spot check against the record's own loss found that {fault}: this step "
                    "is not released, and the run has ended; report the model as a bug of dpaudit"
                )
        return len(chosen)

    def _alone(self, record: int) -> dict[str, Tensor | None]:
        """Return the gradients of a record's loss on a batch of itself alone."""
        return self._gradients.alone(slice_records(self._batch, record, record + 1))

    def _within(self, record: int, names: tuple[str, ...]) -> dict[str, Tensor | None]:
        """Return the gradients of a record's loss in a plain pass over the batch."""
        with torch.enable_grad():
            losses = self._gradients.losses(self._batch)
            parameters = [self._gradients.parameters[name] for name in names]
            found = gradients_of(losses[record], parameters)
        return dict(zip(names, found, strict=True))

    def _require_apart(self) -> None:
        """Refuse a batch in which another record changes a loss."""
        record = random_index(self._records)
        watched = torch.arange(self._records) != record
        with torch.set_grad_enabled(self._gradients.differentiates):
            before = self._gradients.losses(self._batch).detach()
            after = self._with_other(record)
            if not others_moved(before, after, watched):
                return
            # If two equal runs differ, the model draws from a generator that is not known.
            again = self._gradients.losses(self._batch).detach()
        if not others_moved(before, again, watched):
            raise GradientsDisagree(
                "a spot check found that a record changes the losses of others: this step is not "
                "released, and the run has ended; remove the operation that mixes records"
            )

    def _with_other(self, record: int) -> Tensor:
        """Return the losses with another record in the place of one."""
        batch = self._batch
        own = slice_records(batch, record, record + 1)
        parts = (slice_records(batch, 0, record), slice_records(batch, record + 1, self._records))
        with suppress(*USER_ERRORS, DpauditError):  # a model may refuse perturbed values
            other = concatenate_batches(parts[0], perturbed_records(own))
            return self._gradients.losses(concatenate_batches(other, parts[1])).detach()
        index = torch.arange(self._records)
        index[record] = (record + 1) % self._records
        return self._gradients.losses(take_records(batch, index)).detach()
