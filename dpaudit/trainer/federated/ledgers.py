"""Ledgers of a federation: the server's, and one per participant."""

from __future__ import annotations

import os
import platform
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

import dpaudit
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.session.release_account import PrivacyBudget, ReleaseAccount
from dpaudit.vocabulary.federation import (
    COPIES_OF_RECORDS,
    FederatedConfig,
    FederationHeader,
    ThreatModel,
)
from dpaudit.vocabulary.ledger import (
    ChangeEntry,
    LedgerHeader,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    RoundEntry,
    SpotCheckEntry,
    participant_name,
)
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, Unit

if TYPE_CHECKING:
    from dpaudit.trainer.federated.strategy import StrategyDefinition


NO_NOISE = "training without noise: no privacy is claimed"
RECORDED_AHEAD = 25
"""Local steps whose releases are recorded with one write."""

WHO_JOINS = "who joins a round"
LOST_UPDATES = "which updates are lost or rejected, and why"
"""The server's ledger names them, which a sum with noise would hide."""
ALWAYS_PUBLIC = (
    "feature shape",
    "label set",
    "number of participants",
    LOST_UPDATES,
    "hyper-parameters",
)


def federation_header(
    config: FederatedConfig,
    definition: StrategyDefinition,
    randomness: Randomness,
    participant: int | None,
) -> LedgerHeader:
    """Return the header of a new ledger of a federation.

    Args:
        config: The settings of the run.
        definition: The run's strategy.
        randomness: The source of noise and sampling.
        participant: The participant whose ledger it is; None for the server's.

    Returns:
        A header with a fresh random run identifier.
    """
    import torch  # noqa: PLC0415  ledgers of a Flower server need none

    federation, threat_model = config.federation, _threat_model(config)
    copies = (
        (COPIES_OF_RECORDS,)
        if federation.partition == "independent" and definition.unit is Unit.RECORD
        else ()
    )
    # Who takes part in secure aggregation is public, so nobody can be added or removed.
    adjacency = Adjacency.ADD_OR_REMOVE_ONE if threat_model is None else Adjacency.ZERO_OUT
    public = () if threat_model is None else (WHO_JOINS,)
    noiseless = () if definition.is_private(config) else (NO_NOISE,)
    uses = (*config.privacy.unaccounted, *definition.unaccounted(config), *copies, *noiseless)
    return LedgerHeader(
        adjacency=adjacency,
        sampling=definition.sampling(config),
        randomness=randomness,
        schedule_fixed_in_advance=True,
        clip_norm=definition.clip_norm(config),
        versions={
            "dpaudit": dpaudit.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        run=os.urandom(16).hex(),
        unaccounted=tuple(dict.fromkeys(uses)),
        assumed_public=(*definition.assumed_public, *public, *ALWAYS_PUBLIC),
        unit=definition.unit,
        federation=FederationHeader(
            federation.strategy,
            federation.participants,
            definition.protects_against if threat_model is None else threat_model.protects_against,
            participant,
            threat_model,
        ),
        noise=definition.noise(config),
    )


def _threat_model(config: FederatedConfig) -> ThreatModel | None:
    """Return whom secure aggregation protects against; None without it."""
    if config.secure_aggregation is None:
        return None
    model = ThreatModel.of(config.secure_aggregation, config.federation.participants)
    return replace(model, one_process=True)


MOST_OPEN = 128
"""Participants' ledgers that are open at once, where the system allows four times as many files."""


def most_open_ledgers() -> int:
    """Return how many participants' ledgers one process keeps open at once.

    Returns:
        At least 1: a quarter of the files that this process may open, and at most ``MOST_OPEN``.
    """
    try:
        import resource  # noqa: PLC0415  there is none on Windows
    except ImportError:
        return MOST_OPEN
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_OPEN if allowed == resource.RLIM_INFINITY else max(1, min(MOST_OPEN, allowed // 4))


class OpenLedgers:
    """Keeps a bounded number of participants' ledgers open, the ones that were used last.

    Args:
        run: Writer of the run's own ledger, whose lock covers those that are closed.
        most: Number of participants' ledgers that are open at once; at least 1.
    """

    def __init__(self, run: LedgerWriter, most: int) -> None:
        self._run, self._most = run, most
        self._open: OrderedDict[LedgerWriter, None] = OrderedDict()

    def use(self, writer: LedgerWriter) -> None:
        """Note that a ledger is written now; close the one that was used longest ago.

        Args:
            writer: The participant's ledger.
        """
        self._open[writer] = None
        self._open.move_to_end(writer)
        while len(self._open) > self._most:
            oldest, _ = self._open.popitem(last=False)
            oldest.suspend(self._run)


class FederationLedger:
    """One ledger of a federation: releases are recorded, counted, and checked against a budget.

    Args:
        header: The ledger's header.
        writer: The ledger's file; None: releases are counted in memory alone.
        releases: Releases recorded before.
        budget: The budget of the ledger; None: there is none.

    Attributes:
        header: The ledger's header.
        writer: The ledger's file; None: there is none.
    """

    def __init__(
        self,
        header: LedgerHeader,
        writer: LedgerWriter | None,
        releases: tuple[Release, ...] = (),
        budget: PrivacyBudget | None = None,
    ) -> None:
        self.header, self.writer = header, writer
        self._account = ReleaseAccount(header, releases, budget)
        self._releases = len(releases)
        self._pool: OpenLedgers | None = None

    @classmethod
    def begin(
        cls, path: Path | None, header: LedgerHeader, budget: PrivacyBudget | None = None
    ) -> FederationLedger:
        """Begin a new ledger.

        Args:
            path: A new file, whose folder is made; None: the ledger is kept in memory.
            header: The ledger's header.
            budget: The budget; None: there is none.

        Returns:
            The ledger; its header is on disk.

        Raises:
            RunExists: If there is another run's ledger.
        """
        if path is None:
            return cls(header, None, (), budget)
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(header, LedgerWriter.create(path, header), (), budget)

    @classmethod
    def resume(
        cls,
        path: Path,
        found: PrivacyLedger,
        resumed: ResumeEntry,
        budget: PrivacyBudget | None = None,
    ) -> FederationLedger:
        """Continue a ledger whose process died.

        Args:
            path: The ledger's file.
            found: What the ledger accounts for: a last line that may be a release counts as one.
            resumed: The line that records the resumption.
            budget: The budget; None: there is none.

        Returns:
            The ledger; the line is on disk.

        Raises:
            IntegrityError: If the ledger is damaged.
            RunExists: If it is sealed.
            RunLocked: If another process is writing it.
        """
        releases = tuple(one.mechanism for one in found.releases)
        return cls(found.header, LedgerWriter.resume(path, resumed), releases, budget)

    def join(self, pool: OpenLedgers) -> None:
        """Let a pool close the file between lines.

        Args:
            pool: The open ledgers of the run.
        """
        self._pool = pool
        self._to_write()

    def _to_write(self) -> LedgerWriter | None:
        """Return the file for the next line; None: there is none."""
        if self._pool is not None and self.writer is not None:
            self._pool.use(self.writer)
        return self.writer

    @property
    def releases(self) -> int:
        """Number of releases recorded, those before a resumption included."""
        return self._releases

    @property
    def head(self) -> str:
        """Hash of the last line that is on disk; empty for a ledger in memory."""
        return "" if self.writer is None else self.writer.head

    def record(self, what: str, release: Release, step: int | None = None) -> None:
        """Record a release; when this returns, the line is on disk and counts.

        Args:
            what: What is released.
            release: Its mechanism.
            step: Number of the step or round, from 0; None if it belongs to none.
        """
        self.record_release(ReleaseEntry(what, release, step=step))

    def record_release(self, release: ReleaseEntry) -> None:
        """Record a release of a training session.

        Args:
            release: The release and its step.
        """
        self.record_releases((release,))

    def record_releases(self, releases: Sequence[ReleaseEntry]) -> None:
        """Record several releases with one write.

        Args:
            releases: The releases in order.
        """
        # Counted first: an interrupt in between counts releases too many, never too few.
        for one in releases:
            self._account.count(one.mechanism)
            self._releases += 1
        if (writer := self._to_write()) is not None:
            writer.record_releases(releases)

    def declare(self, change: ChangeEntry) -> None:
        """Record a change of a participant's model that no step made.

        Args:
            change: The declared change and its step.
        """
        if (writer := self._to_write()) is not None:
            writer.declare(change)

    def record_spot_check(self, check: SpotCheckEntry) -> None:
        """Record that the gradients of a participant's step were checked.

        Args:
            check: The step and the result.
        """
        if (writer := self._to_write()) is not None:
            writer.record_spot_check(check)

    def end_round(
        self,
        number: int,
        heads: Mapping[int, str],
        rejected: Mapping[int, str],
        left: Iterable[int] = (),
    ) -> None:
        """Record the end of a round, in the server's ledger.

        Args:
            number: Number of the round, from 0.
            heads: Hash of the last line of each participant's ledger that changed.
            rejected: Why an update was left out, by number of the participant.
            left: Numbers of the participants that have no budget for a further round.
        """
        if self.writer is not None:
            names = tuple(participant_name(one) for one in sorted(left))
            entry = RoundEntry(number, _by_name(heads), _by_name(rejected), names)
            self.writer.record_round(entry)

    def has_room(self, release: Release, times: int = 1) -> bool:
        """Return whether the budget, if any, has room for a number of equal releases.

        Args:
            release: The mechanism.
            times: Number of releases, at least 1.

        Returns:
            True if there is no budget, or room for all of them.
        """
        return self._account.has_room(release, times)

    def has_room_for(self, releases: tuple[Release, ...]) -> bool:
        """Return whether the budget, if any, has room for several releases together.

        Args:
            releases: The mechanisms.

        Returns:
            True if there is no budget, or room for all of them.
        """
        return self._account.has_room_for(releases)

    def epsilon(self, delta: float) -> Bound:
        """Return certified bounds of epsilon for all releases so far.

        Args:
            delta: Delta, in [1e-300, 1).

        Returns:
            Lower and upper bound of epsilon; both 0 if nothing was released.
        """
        return self._account.epsilon(delta)

    @property
    def recorded(self) -> dict[Release, int]:
        """The number of times each release was recorded."""
        return self._account.recorded

    def close(self) -> None:
        """Release the ledger's lock, so that another process can continue the run."""
        if self.writer is not None:
            self.writer.close()


class AheadRecorder:
    """Records the releases of a few local steps with one write, before the first of them.

    Waiting for the disk costs more than a small step. A process that dies in between has
    recorded at most ``RECORDED_AHEAD`` - 1 steps that it did not take. If local training fails,
    they are kept for the steps of the next round.

    Args:
        ledger: The participant's ledger.

    Attributes:
        planned: Number of steps that the present round still takes.
    """

    def __init__(self, ledger: FederationLedger) -> None:
        self._ledger = ledger
        self._ahead: deque[ReleaseEntry] = deque()
        self.planned = 0

    def record_release(self, release: ReleaseEntry) -> None:
        """Record the release of a step, unless it was recorded ahead.

        Args:
            release: The release and its step.
        """
        if not self._ahead or self._ahead[0] != release:
            count = 1 if release.step is None else max(1, min(RECORDED_AHEAD, self.planned))
            steps = range(release.step or 0, (release.step or 0) + count)
            entries = [replace(release, step=step) for step in steps] if count > 1 else [release]
            self._ahead.clear()  # of other steps or mechanisms: they stay recorded
            self._ledger.record_releases(entries)
            self._ahead.extend(entries)
        self._ahead.popleft()
        self.planned = max(0, self.planned - 1)

    def declare(self, change: ChangeEntry) -> None:
        """Record a change of the participant's model that no step made.

        Args:
            change: The declared change and its step.
        """
        self._ledger.declare(change)

    def record_spot_check(self, check: SpotCheckEntry) -> None:
        """Record that the gradients of a participant's step were checked.

        Args:
            check: The step and the result.
        """
        self._ledger.record_spot_check(check)


def _by_name(values: Mapping[int, str]) -> dict[str, str]:
    """Return values by the folder names of participants."""
    return {participant_name(number): values[number] for number in sorted(values)}
