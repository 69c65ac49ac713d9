"""Look at a run while another process trains it; nothing is locked and nothing is written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from dpaudit.accountants.answers import claim_of, epsilon_by
from dpaudit.files.opening import LEDGER, MIB, InputFile, opened
from dpaudit.gate.policy import Policy
from dpaudit.report.watch_text import Glimpse, Limit, Measured, Stage
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.errors import (
    AccountingError,
    DpauditError,
    UnsupportedMechanism,
)
from dpaudit.vocabulary.ledger import BookedRelease, PrivacyLedger, Resumed
from dpaudit.vocabulary.mechanism import Composed, Release, Repeated
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta

if TYPE_CHECKING:
    from dpaudit.workflow.accuracy_so_far import AccuracySoFar

MOMENTS = 30
"""How many past looks the rate of steps is an average over."""

SILENT_SECONDS, SILENT_STEPS = 60.0, 20.0
"""Without a step for as long as both, a run may have died: a reader cannot know."""


@dataclass(frozen=True)
class Asked:
    """At what epsilon counts, by which accountant, and what it may be at most."""

    delta: float
    accountant: str
    limit: Limit | None


@dataclass(frozen=True)
class Moment:
    """How many steps were booked at a time, in seconds since 1970."""

    time: float
    steps_done: int


class Observer:
    """Looks at one run again and again, and computes only what has changed since.

    Args:
        run: The run; it may be unfinished.
        policy: Whose limit, delta and accountant count, if there is one.
        clock: The time, in seconds since 1970.
    """

    def __init__(
        self, run: RunDirectory, policy: Policy | None, clock: Callable[[], float]
    ) -> None:
        self._run, self._policy, self._clock = run, policy, clock
        self._pace = Pace()
        self._prices = Prices()
        self._accuracy: AccuracySoFar | None = None

    def look(self) -> Glimpse:
        """Return how far the run is.

        Raises:
            IntegrityError: its ledger is damaged or altered, or another file of the run
            contradicts it.
            InvalidArgument: neither its settings nor a policy names a delta.
        """
        name = self._run.name
        ledger = _read(self._run)
        if ledger is None or not ledger.releases:
            return Glimpse(run=name, stage=Stage.BEGINNING)
        asked, steps, done = self._asked(ledger), _steps_asked(self._run), steps_done(ledger)
        self._pace.see(Moment(self._run.ledger.stat().st_mtime, done), _began(self._run, ledger))
        spent, unknown = self._prices.spent(ledger, asked)
        finished, now = ledger.seal is not None, self._clock()
        left = 0 if finished or steps is None else steps - done
        accuracy, unmeasured = self._measured(finished, done)
        return Glimpse(
            run=name,
            stage=Stage.FINISHED if finished else self._pace.stage(now),
            steps_done=done,
            steps=steps,
            delta=asked.delta,
            spent=spent,
            projected=None if steps is None else self._prices.projected(ledger, asked, left),
            limit=asked.limit,
            unknown=unknown,
            steps_per_second=self._pace.steps_per_second,
            ends=None if finished or steps is None else self._pace.ends(left, now),
            accuracy=accuracy,
            unmeasured=unmeasured,
        )

    def _asked(self, ledger: PrivacyLedger) -> Asked:
        claim = None if self._policy is None else self._policy.claim
        budget = ledger.header.budget
        if claim is not None:
            return Asked(claim.delta, claim.accountant, Limit(claim.max_epsilon, "the policy's"))
        if budget is not None:
            return Asked(budget.delta, CLAIMING_ACCOUNTANT, Limit(budget.epsilon, "the filter's"))
        return Asked(claim_delta(self._run), CLAIMING_ACCOUNTANT, None)

    def _measured(self, finished: bool, done: int) -> tuple[Measured | None, str]:
        run = self._run
        if not run.config.exists() or not (finished or run.checkpoints.is_dir()):
            return None, ""
        if self._accuracy is None:
            try:
                from dpaudit.workflow.accuracy_so_far import AccuracySoFar  # noqa: PLC0415  torch
            except DpauditError as error:
                return None, str(error)
            self._accuracy = AccuracySoFar(run)
        return self._accuracy.newest(done if finished else None)


@dataclass
class Pace:
    """How fast steps are booked, by the times at which the ledger was last written."""

    _moments: deque[Moment] = field(default_factory=lambda: deque(maxlen=MOMENTS))

    def see(self, moment: Moment, began: float | None) -> None:
        """Take in a look; ``began`` is when the first step did, where that is known."""
        if self._moments and moment.steps_done < self._moments[-1].steps_done:
            self._moments.clear()  # it was resumed from a checkpoint
        elif not self._moments and began is not None:
            self._moments.append(Moment(began, 0))
        if not self._moments or moment.steps_done > self._moments[-1].steps_done:
            self._moments.append(moment)

    @property
    def steps_per_second(self) -> float | None:
        """The average over the looks that are remembered."""
        if len(self._moments) < 2:
            return None
        first, last = self._moments[0], self._moments[-1]
        seconds = last.time - first.time
        return (last.steps_done - first.steps_done) / seconds if seconds > 0 else None

    def stage(self, now: float) -> Stage:
        """Return whether a run that is not finished is still heard of."""
        return Stage.SILENT if self._silent(now) else Stage.TRAINING

    def ends(self, steps_left: int, now: float) -> datetime | None:
        """Return when the last step is due, if the run is still heard of."""
        rate = self.steps_per_second
        if rate is None or self._silent(now):
            return None
        due = max(now, self._moments[-1].time + steps_left / rate)
        return datetime.fromtimestamp(due, UTC)

    def _silent(self, now: float) -> bool:
        rate = self.steps_per_second
        for_long = SILENT_SECONDS if rate is None else max(SILENT_SECONDS, SILENT_STEPS / rate)
        return bool(self._moments) and now - self._moments[-1].time > for_long


class Prices:
    """Epsilons that were computed: a look at a ledger that has not grown computes none."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[float | None, str]] = {}

    def spent(self, ledger: PrivacyLedger, asked: Asked) -> tuple[float | None, str]:
        """Return an upper bound of epsilon so far, or None and why it cannot be told."""
        return self._once(
            (ledger.head, asked),
            lambda: claim_of(ledger, asked.delta, asked.accountant).epsilon.upper,
        )

    def projected(self, ledger: PrivacyLedger, asked: Asked, left: int) -> float | None:
        """Return an upper bound of epsilon once ``left`` more steps like the last are booked."""
        if left <= 0:
            return self.spent(ledger, asked)[0]
        header, last = ledger.header, _last_step(ledger)
        if last is None or not header.schedule_fixed_in_advance:
            return None  # the steps that are left may be any
        counts = Counter(release.mechanism for release in ledger.releases)
        counts[last] += left
        parts = tuple(Repeated(release, times) for release, times in counts.items())
        ask = (asked.accountant, Composed(parts), asked.delta, header.adjacency, header.sampling)
        return self._once(ask, lambda: epsilon_by(*ask).epsilon.upper)[0]

    def _once(self, key: object, compute: Callable[[], float]) -> tuple[float | None, str]:
        if key not in self._known:
            try:
                self._known[key] = compute(), ""
            except (AccountingError, UnsupportedMechanism) as error:
                self._known[key] = None, str(error)
        return self._known[key]


def steps_done(ledger: PrivacyLedger) -> int:
    """Return how many steps are done; after a crash the run goes back to its checkpoint."""
    done = 0
    for line in ledger.lines:
        match line:
            case BookedRelease(step=int(step)):
                done = step + 1
            case Resumed(step=step):
                done = step
    return done


def _last_step(ledger: PrivacyLedger) -> Release | None:
    steps = (line.mechanism for line in reversed(ledger.releases) if line.step is not None)
    return next(steps, None)


def _read(run: RunDirectory) -> PrivacyLedger | None:
    """Return a ledger, cross-checked with its run; None before its first line is whole."""
    with opened(InputFile(run.ledger, limit=LEDGER)) as file:
        begun = file.readline(MIB).endswith(b"\n")
    return run.read_unfinished() if begun else None


def _steps_asked(run: RunDirectory) -> int | None:
    return run.read_config().privacy.steps if run.config.exists() else None


def _began(run: RunDirectory, ledger: PrivacyLedger) -> float | None:
    """Return when the run began; of one that was resumed that says nothing of its pace."""
    resumed = any(isinstance(line, Resumed) for line in ledger.lines)
    return None if resumed or not run.config.exists() else run.config.stat().st_mtime
