"""Observe a run while another process trains it; nothing is locked or written."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from dpaudit.accountants.answers import claim_from_ledger, compute_epsilon
from dpaudit.files.regular_files import LEDGER_LIMIT, MIB, InputFile, open_input
from dpaudit.gate.policy import Policy
from dpaudit.report.run_status import (
    EpsilonLimit,
    FederationStatus,
    MeasuredAccuracy,
    RunStage,
    RunStatus,
)
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.errors import (
    AccountingError,
    DpauditError,
    UnsupportedMechanism,
)
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import PrivacyLedger, ReleaseEntry, ResumeEntry
from dpaudit.vocabulary.mechanism import Composed, Release, Repeated
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, claim_delta
from dpaudit.workflow.train.federated_plan import (
    has_planned_mechanism,
    planned_federated_epsilon,
    planned_steps,
)

if TYPE_CHECKING:
    from dpaudit.workflow.train.accuracy import CheckpointAccuracy


# Observe a run while another process trains it; takes no lock and writes nothing.

PROGRESS_SAMPLES = 30
"""Number of samples that the rate of steps is averaged over."""

SILENT_SECONDS, SILENT_STEPS = 60.0, 20.0
"""Without a step for longer than both (seconds, and steps at the present rate), the run is
reported as silent: a reader cannot detect that its process died."""


@dataclass(frozen=True)
class WatchSettings:
    """How epsilon of an observed run is computed.

    Attributes:
        delta: The delta at which epsilon is computed.
        accountant: Name of the accountant.
        limit: Largest allowed epsilon, and who sets it; None: there is no limit.
    """

    delta: float
    accountant: str
    limit: EpsilonLimit | None


@dataclass(frozen=True)
class ProgressSample:
    """The number of recorded steps at a time.

    Attributes:
        time: Seconds since 1970.
        steps_done: Number of completed steps.
    """

    time: float
    steps_done: int


class Observer:
    """Observes one run repeatedly, and computes only what has changed.

    Args:
        run: The run; it may be unfinished.
        policy: The policy whose limit, delta and accountant count; None: the run's own.
        clock: Returns the time in seconds since 1970.
    """

    def __init__(
        self, run: RunDirectory, policy: Policy | None, clock: Callable[[], float]
    ) -> None:
        self._run, self._policy, self._clock = run, policy, clock
        self._rate = StepRate()
        self._epsilons = EpsilonCache()
        self._accuracy: CheckpointAccuracy | None = None

    def read_status(self) -> RunStatus:
        """Read the present status of the run.

        Returns:
            Progress, spent and projected epsilon, and accuracy.

        Raises:
            IntegrityError: If the ledger is damaged or altered, or another file contradicts it.
            InvalidArgument: If neither the run's settings nor a policy sets a delta.
        """
        name = self._run.name
        ledger = _read(self._run)
        if ledger is None or not ledger.release_count:
            federation = None if ledger is None else _federation_status(ledger)
            return RunStatus(run=name, stage=RunStage.BEGINNING, federation=federation)
        settings, steps, done = (
            self._settings(ledger),
            _planned_steps(self._run),
            count_completed_steps(ledger),
        )
        self._rate.add(ProgressSample(_last_written(self._run), done), _began(self._run, ledger))
        spent, unknown = self._epsilons.spent(ledger, settings)
        finished, now = ledger.seal is not None, self._clock()
        left = 0 if finished or steps is None else steps - done
        accuracy, unmeasured = self._measured(finished, done)
        return RunStatus(
            run=name,
            stage=RunStage.FINISHED if finished else self._rate.stage(now),
            steps_done=done,
            steps=steps,
            delta=settings.delta,
            spent=spent,
            projected=self._projected(ledger, settings, left) if steps is not None else None,
            limit=settings.limit,
            unknown=unknown,
            steps_per_second=self._rate.steps_per_second,
            ends=None if finished or steps is None else self._rate.ends(left, now),
            accuracy=accuracy,
            unmeasured=unmeasured,
            federation=_federation_status(ledger),
        )

    def _projected(self, ledger: PrivacyLedger, settings: WatchSettings, left: int) -> float | None:
        """Return an upper bound on epsilon at the end; of a federation, by its settings."""
        if ledger.header.federation is None or left <= 0:
            return self._epsilons.projected(ledger, settings, left)
        config = self._run.read_federated_config()
        if not has_planned_mechanism(config) or settings.accountant != CLAIM_ACCOUNTANT:
            return None
        at_delta = replace(config, privacy=replace(config.privacy, delta=settings.delta))
        planned = self._epsilons.planned(at_delta)
        spent, _ = self._epsilons.spent(ledger, settings)
        # A repeated round of a resumed run is recorded twice, and is not in the plan.
        return None if planned is None or spent is None else max(planned, spent)

    def _settings(self, ledger: PrivacyLedger) -> WatchSettings:
        claim = None if self._policy is None else self._policy.claim
        budget = ledger.header.budget
        if claim is not None:
            return WatchSettings(
                claim.delta, claim.accountant, EpsilonLimit(claim.max_epsilon, "the policy's")
            )
        if budget is not None:
            return WatchSettings(
                budget.delta, CLAIM_ACCOUNTANT, EpsilonLimit(budget.epsilon, "the filter's")
            )
        if ledger.header.federation is not None and self._run.config.exists():
            privacy = self._run.read_federated_config().privacy
            limit = privacy.max_epsilon
            return WatchSettings(
                privacy.delta,
                CLAIM_ACCOUNTANT,
                None if limit is None else EpsilonLimit(limit, "the budget's"),
            )
        return WatchSettings(claim_delta(self._run), CLAIM_ACCOUNTANT, None)

    def _measured(self, finished: bool, done: int) -> tuple[MeasuredAccuracy | None, str]:
        run = self._run
        if not run.config.exists() or not (finished or run.checkpoints.is_dir()):
            return None, ""
        if self._accuracy is None:
            try:
                from dpaudit.workflow.train.accuracy import CheckpointAccuracy  # noqa: PLC0415  torch
            except DpauditError as error:
                return None, str(error)
            self._accuracy = CheckpointAccuracy(run)
        return self._accuracy.newest(done if finished else None)


@dataclass
class StepRate:
    """The rate of steps, from the times at which the ledger was last written."""

    _samples: deque[ProgressSample] = field(default_factory=lambda: deque(maxlen=PROGRESS_SAMPLES))

    def add(self, sample: ProgressSample, began: float | None) -> None:
        """Add a sample.

        Args:
            sample: Number of recorded steps, and the time of the last one.
            began: Time at which the run began, in seconds since 1970; None where not known.
        """
        if self._samples and sample.steps_done < self._samples[-1].steps_done:
            self._samples.clear()  # it was resumed from a checkpoint
        elif not self._samples and began is not None:
            self._samples.append(ProgressSample(began, 0))
        if not self._samples or sample.steps_done > self._samples[-1].steps_done:
            self._samples.append(sample)

    @property
    def steps_per_second(self) -> float | None:
        """The average rate over the stored samples; None before it is known."""
        if len(self._samples) < 2:
            return None
        first, last = self._samples[0], self._samples[-1]
        seconds = last.time - first.time
        return (last.steps_done - first.steps_done) / seconds if seconds > 0 else None

    def stage(self, now: float) -> RunStage:
        """Return whether an unfinished run still records steps: TRAINING or SILENT."""
        return RunStage.SILENT if self._silent(now) else RunStage.TRAINING

    def ends(self, steps_left: int, now: float) -> datetime | None:
        """Estimate the time of the last step.

        Args:
            steps_left: Number of steps that are left.
            now: The time, in seconds since 1970.

        Returns:
            The time in UTC; None if the rate is not known or the run is silent.
        """
        rate = self.steps_per_second
        if rate is None or self._silent(now):
            return None
        due = max(now, self._samples[-1].time + steps_left / rate)
        return datetime.fromtimestamp(due, UTC)

    def _silent(self, now: float) -> bool:
        rate = self.steps_per_second
        longest = SILENT_SECONDS if rate is None else max(SILENT_SECONDS, SILENT_STEPS / rate)
        return bool(self._samples) and now - self._samples[-1].time > longest


class EpsilonCache:
    """A cache of computed epsilons: nothing is recomputed unless the ledger has grown."""

    def __init__(self) -> None:
        self._known: dict[object, tuple[float | None, str]] = {}

    def spent(self, ledger: PrivacyLedger, settings: WatchSettings) -> tuple[float | None, str]:
        """Compute an upper bound on the epsilon spent so far.

        Args:
            ledger: The ledger.
            settings: Delta and accountant.

        Returns:
            The upper bound, or None and the reason why there is none.
        """
        return self._once(
            (ledger.head, settings),
            lambda: claim_from_ledger(ledger, settings.delta, settings.accountant).epsilon.upper,
        )

    def projected(self, ledger: PrivacyLedger, settings: WatchSettings, left: int) -> float | None:
        """Compute an upper bound on epsilon after more steps like the last one.

        Args:
            ledger: The ledger.
            settings: Delta and accountant.
            left: Number of steps that are left.

        Returns:
            The upper bound; None where it is not known.
        """
        if left <= 0:
            return self.spent(ledger, settings)[0]
        header, last = ledger.header, _last_step(ledger)
        if last is None or not header.schedule_fixed_in_advance:
            return None  # the remaining steps are not known
        counts = Counter(release.mechanism for release in ledger.releases)
        counts[last] += left
        parts = tuple(Repeated(release, times) for release, times in counts.items())
        query = (
            settings.accountant,
            Composed(parts),
            settings.delta,
            header.adjacency,
            header.sampling,
        )
        return self._once(query, lambda: compute_epsilon(*query).epsilon.upper)[0]

    def planned(self, config: FederatedConfig) -> float | None:
        """Compute an upper bound on epsilon after all rounds of a federation.

        Args:
            config: Its settings.

        Returns:
            The upper bound; None where it is not known.
        """
        return self._once(config, lambda: planned_federated_epsilon(config))[0]

    def _once(self, key: object, compute: Callable[[], float]) -> tuple[float | None, str]:
        if key not in self._known:
            try:
                self._known[key] = compute(), ""
            except (AccountingError, UnsupportedMechanism) as error:
                self._known[key] = None, str(error)
        return self._known[key]


def count_completed_steps(ledger: PrivacyLedger) -> int:
    """Count completed steps; after a crash, the run continues from its checkpoint.

    Args:
        ledger: The ledger.

    Returns:
        The number of steps, without those that were repeated; of a federation, of rounds.
    """
    done = 0
    if ledger.header.federation is not None:
        return ledger.rounds[-1].number + 1 if ledger.rounds else 0
    for line in ledger.lines:
        match line:
            case ReleaseEntry(step=int(step)):
                done = step + 1
            case ResumeEntry(step=step):
                done = step
    return done


def _last_step(ledger: PrivacyLedger) -> Release | None:
    steps = (line.mechanism for line in reversed(ledger.releases) if line.step is not None)
    return next(steps, None)


def _read(run: RunDirectory) -> PrivacyLedger | None:
    """Read a ledger and compare it with its run; None before its first line is complete."""
    with open_input(InputFile(run.ledger, limit=LEDGER_LIMIT)) as file:
        begun = file.readline(MIB).endswith(b"\n")
    return run.read_unfinished() if begun else None


def _planned_steps(run: RunDirectory) -> int | None:
    return planned_steps(run.read_settings()) if run.config.exists() else None


def _last_written(run: RunDirectory) -> float:
    """Return when a ledger of the run was last written, in seconds since 1970."""
    ledgers = (run.ledger, *run.participant_ledgers)
    return max(ledger.stat().st_mtime for ledger in ledgers)


def _federation_status(ledger: PrivacyLedger) -> FederationStatus | None:
    """Return who left a federation, and whose updates were rejected; None without one."""
    federation = ledger.header.federation
    if federation is None:
        return None
    return FederationStatus(
        participants=federation.participants,
        left=tuple(sorted({name for one in ledger.rounds for name in one.left})),
        rejected=dict(Counter(name for one in ledger.rounds for name in one.rejected)),
        reasons={name: why for one in ledger.rounds for name, why in one.rejected.items()},
    )


def _began(run: RunDirectory, ledger: PrivacyLedger) -> float | None:
    """Return when the run began; None if it was resumed, as the rate would include the pause."""
    resumed = any(isinstance(line, ResumeEntry) for line in ledger.lines)
    return None if resumed or not run.config.exists() else run.config.stat().st_mtime
