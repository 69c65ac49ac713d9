"""The privacy ledger: the releases of a training run, line by line.

Every claim is computed from it.
"""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum
from itertools import pairwise
from typing import Any

import msgspec
from msgspec.structs import replace

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.errors import InvalidArgument, require_delta, require_positive
from dpaudit.vocabulary.federation import FederationHeader
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Release, Repeated
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.notebooks import MOST_LABELS, axes_or_new, legend_label, table_html
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit


class Sampling(Enum):
    """The sampler: how the records of a step are chosen."""

    POISSON = "poisson"
    """Each record joins each step by its own independent coin."""

    FULL_BATCH = "full-batch"
    """Every record joins every step."""

    TRUNCATED_POISSON = "truncated-poisson"
    """Poisson batches, cut to a largest number of records."""

    FIXED_SIZE = "fixed-size"
    """Batches of one size; each is equally likely, independently in each step."""

    BALLS_IN_BINS = "balls-in-bins"
    """In each pass, each record joins one step, drawn uniformly."""

    CYCLIC_POISSON = "cyclic-poisson"
    """The groups of records take turns; each step takes a Poisson sample of one group."""

    SHUFFLED = "shuffled"
    """Passes over a shuffled data set in batches of one size; no amplification is claimed."""

    @property
    def records_every_step(self) -> bool:
        """Whether the ledger has one release per step, or one for several steps together."""
        passes = (Sampling.BALLS_IN_BINS, Sampling.CYCLIC_POISSON, Sampling.SHUFFLED)
        return self not in passes


class Randomness(Enum):
    """The source of noise and sampling."""

    SECURE = "secure"
    """A key stream with a fresh key from the operating system, which is never stored."""

    SEEDED = "seeded"
    """Reproducible, for tests: the seed determines the noise, so it must stay secret."""


class NoiseKind(Enum):
    """The kind of noise that is added to the sum of gradients."""

    NORMAL = "normal"
    """Normals in float32, whose low bits leak information about the sum."""

    GRID = "grid"
    """Normals that are rounded, without error, to a grid to which the sum is rounded, too."""

    CORRELATED = "correlated"
    """Normals in float32 that are correlated over steps."""

    OTHER = "other"
    """Noise of the user's own code."""


class RenyiBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The budget of a Renyi filter, fixed before the first release.

    Attributes:
        epsilon: The epsilon at ``delta`` that the whole run must not exceed, in nats; above 0.
        delta: The delta of the run, divided evenly among the orders; at least 1e-300, below 1.
        orders: The Renyi orders that the filter tracks, rising, each above 1 and finite.

    Raises:
        InvalidArgument: If a number is out of its range, or ``orders`` is empty or not rising.
    """

    epsilon: float
    delta: float
    orders: tuple[float, ...]

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_delta("delta", self.delta)
        rising = all(low < high for low, high in pairwise((1.0, *self.orders)))
        if not (self.orders and rising and self.orders[-1] < math.inf):
            raise InvalidArgument("orders", self.orders, "rising, each above 1 and finite")


class LedgerHeader(msgspec.Struct, frozen=True, tag_field="kind", tag="header"):
    """The first line of a ledger: what holds for the whole run.

    It has no count and no digest of the records, which would confirm a guess of a record.

    Attributes:
        adjacency: The adjacency of neighbors.
        sampling: How the records of a step are drawn.
        randomness: The source of noise and sampling.
        schedule_fixed_in_advance: Whether noise and sampling rate of every step were fixed
            before the first.
        clip_norm: Largest L2 norm of what one record adds to a sum.
        versions: Version of each library that trains the model.
        run: Identifier of the run.
        unaccounted: Uses of the records that the ledger does not cover.
        assumed_public: Quantities that are assumed to be public.
        budget: The budget of the filter that is checked before every release, if the schedule
            was not fixed in advance; None without a filter.
        unit: What neighbors differ by.
        federation: The federation that the ledger belongs to; None for a run of one trainer.
        noise: The kind of noise on the sums of gradients; None if it was not recorded, as by
            earlier versions.
        schema_version: Version of the file format.
    """

    adjacency: Adjacency
    sampling: Sampling
    randomness: Randomness
    schedule_fixed_in_advance: bool
    clip_norm: float
    versions: dict[str, str]
    run: str
    unaccounted: tuple[str, ...] = ()
    assumed_public: tuple[str, ...] = ()
    budget: RenyiBudget | None = None
    unit: Unit = Unit.RECORD
    federation: FederationHeader | None = None
    noise: NoiseKind | None = None
    schema_version: str = SCHEMA_VERSION


class BeginEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="begun"):
    """Settings and canaries are on disk.

    Attributes:
        files: SHA-256 of each file, under its name; digests of canaries are salted.
    """

    files: dict[str, str]


class ReleaseEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="release"):
    """One release; the line is on disk before its noise is used.

    Attributes:
        what: The name of the release, such as ``gradient sum``.
        mechanism: The mechanism of the release.
        step: The training step; None if the release belongs to none.
    """

    what: str
    mechanism: Release
    step: int | None = None


class ResumeEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="resumed"):
    """A process resumed the run at ``step``; later steps may be recorded twice.

    Attributes:
        step: The first step of the process.
        randomness: The source of its noise and sampling.
        dropped: The incomplete last line that the process removed, or its first characters.
            Empty if the ledger ended with a complete line. If the line was or may have been a
            release, the line before this one records a release for it.
    """

    step: int
    randomness: Randomness
    dropped: str = ""


class ChangeEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="declared-change"):
    """A change of the model outside of the recorded steps, declared by the user.

    Attributes:
        what: The change, in the user's words.
        step: The number of steps before the change.
    """

    what: str
    step: int


class SpotCheckEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="spot-check"):
    """The gradients of a step were compared with the slow way, before their release.

    A step that was drawn for a check has a line, whatever its batch was: the line tells nothing
    of the number of records. With fewer than two records there was nothing to compare.

    Ledgers of earlier versions have no such lines.

    Attributes:
        step: The training step.
        disagreement: What was wrong; empty if nothing was. Such a step is not released.
        records: Number of compared records in ledgers of earlier versions; no longer written.
    """

    step: int
    disagreement: str = ""
    records: int | msgspec.UnsetType = msgspec.UNSET


class CheckpointEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="checkpointed"):
    """A checkpoint was written.

    Attributes:
        step: The number of steps before the checkpoint.
        files: SHA-256 of each file of the checkpoint, under its name.
    """

    step: int
    files: dict[str, str]


class RoundEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="round"):
    """One round of a federation ended.

    Attributes:
        number: Number of the round, from 0.
        heads: Hash of the last line of each participant's ledger, under the participant's folder
            name, as ``000``; only of those whose ledger changed in this round.
        rejected: Why an update was left out of the sum, under the participant's folder name.
        left: Folder names of participants whose budget has no room for a further round.
    """

    number: int
    heads: dict[str, str] = {}
    rejected: dict[str, str] = {}
    left: tuple[str, ...] = ()


class EndEntry(msgspec.Struct, frozen=True, tag_field="kind", tag="ended"):
    """The last step was taken, and the published files are on disk; claim and seal follow.

    Attributes:
        files: SHA-256 of each file that the seal will list, under its name.
    """

    files: dict[str, str]


class Seal(msgspec.Struct, frozen=True, tag_field="kind", tag="seal"):
    """The last line of a ledger: the run has ended.

    Attributes:
        releases: Number of recorded releases.
        files: SHA-256 of each file of the run, under its name.
    """

    releases: int
    files: dict[str, str]


BodyEntry = (
    BeginEntry
    | ReleaseEntry
    | ResumeEntry
    | ChangeEntry
    | SpotCheckEntry
    | CheckpointEntry
    | RoundEntry
    | EndEntry
    | Seal
)
"""Any line after the header."""

LedgerEntry = LedgerHeader | BodyEntry
"""Any line of a ledger."""


class PrivacyLedger(msgspec.Struct, frozen=True):
    """A ledger that was read and verified.

    Attributes:
        header: The first line.
        lines: All lines after the header, in order.
        head: Hash of the last line. It depends on every earlier line (a hash chain).
        participants: Verified ledgers of the participants of a federation, under their folder
            names, as ``000``; empty for a run of one trainer. They are other files.
    """

    header: LedgerHeader
    lines: tuple[BodyEntry, ...]
    head: str
    participants: dict[str, PrivacyLedger] = {}

    def _repr_html_(self) -> str:
        """Return the header and the releases as a table for notebooks."""
        counts = Counter((entry.what, entry.mechanism) for entry in self.releases)
        rows = (
            ("neighbors", self.header.adjacency.value),
            ("sampling", self.header.sampling.value),
            ("state", "running" if self.seal is None else "sealed"),
            *(
                (f"{n} times {what}", mechanism_in_words(mechanism))
                for (what, mechanism), n in counts.items()
            ),
            *(
                (f"participant {name}", one.release_count)
                for name, one in self.participants.items()
            ),
            *(("not accounted for", use) for use in self.unaccounted),
        )
        return table_html("Privacy ledger", rows)

    def plot(self, axes: Any = None) -> Any:
        """Draw how many releases of each kind the ledger records over its lines.

        Args:
            axes: Axes of matplotlib to draw on; None: those of a new figure.

        Returns:
            The axes; one line per kind of mechanism.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        axes = axes_or_new(axes)
        places: dict[Mechanism, list[int]] = {}
        for place, entry in enumerate(self.releases, start=1):
            places.setdefault(entry.mechanism, []).append(place)
        more = f"{len(places) - MOST_LABELS} more kinds"
        for number, (mechanism, at) in enumerate(places.items()):
            counts = range(1, len(at) + 1)
            name = mechanism_in_words(mechanism) if number < MOST_LABELS else more
            label = None if number > MOST_LABELS else legend_label(name)
            axes.step(at, counts, where="post", label=label)
        axes.set_xlabel("release in the ledger")
        axes.set_ylabel("releases of this kind")
        if places:
            axes.legend(fontsize="x-small")
        return axes

    @property
    def releases(self) -> tuple[ReleaseEntry, ...]:
        """The recorded releases, in order."""
        return tuple(line for line in self.lines if isinstance(line, ReleaseEntry))

    @property
    def rounds(self) -> tuple[RoundEntry, ...]:
        """The rounds of a federation that ended, in order; empty for a run of one trainer."""
        return tuple(line for line in self.lines if isinstance(line, RoundEntry))

    @property
    def checked_steps(self) -> frozenset[int]:
        """The steps that were drawn for a spot check which found no fault.

        With fewer than two records of finite gradients, there was little or nothing to compare.
        """
        checks = (line for line in self.lines if isinstance(line, SpotCheckEntry))
        return frozenset(line.step for line in checks if not line.disagreement)

    @property
    def spot_checks(self) -> str:
        """How many steps were drawn for a spot check which found no fault, in words."""
        checked = len(self.checked_steps)
        if not self.header.sampling.records_every_step:  # one line for several steps
            return f"checked at {checked:,} steps"
        steps = {line.step for line in self.releases if line.step is not None}
        return f"checked at {checked:,} of {len(steps):,} steps"

    @property
    def release_count(self) -> int:
        """Number of releases that a claim of this ledger covers.

        A federation that protects records counts the releases of the server and of every
        participant. One that protects participants counts those of the longest ledger, as each
        participant's ledger repeats the server's.
        """
        counts = [ledger.release_count for ledger in self.participants.values()]
        if self.header.unit is Unit.PARTICIPANT:
            return max(len(self.releases), *counts, 0)
        return len(self.releases) + sum(counts)

    @property
    def begun(self) -> BeginEntry | None:
        """The line with the digests of settings and canaries; None if the run ended before it."""
        first = self.lines[0] if self.lines else None
        return first if isinstance(first, BeginEntry) else None

    @property
    def seal(self) -> Seal | None:
        """The seal; None while the run is not finished."""
        last = self.lines[-1] if self.lines else None
        return last if isinstance(last, Seal) else None

    @property
    def ended(self) -> EndEntry | None:
        """The line that marks the last step; None if a line other than the seal follows it."""
        lines = [line for line in self.lines if not isinstance(line, Seal)]
        last = lines[-1] if lines else None
        return last if isinstance(last, EndEntry) else None

    @property
    def unaccounted(self) -> tuple[str, ...]:
        """Uses of the records that no claim covers: the header's list, then declared changes.

        Then spot checks that failed. Those of the participants follow, without repetitions.
        """
        changes = (
            f"model changed outside of the recorded steps at step {line.step}: {line.what}"
            for line in self.lines
            if isinstance(line, ChangeEntry)
        )
        others = (use for ledger in self.participants.values() for use in ledger.unaccounted)
        wrong = (
            f"spot check failed at step {line.step}, so earlier steps may be wrong: "
            f"{line.disagreement}"
            for line in self.lines
            if isinstance(line, SpotCheckEntry) and line.disagreement
        )
        return tuple(dict.fromkeys((*self.header.unaccounted, *changes, *wrong, *others)))

    @property
    def assumed_public(self) -> tuple[str, ...]:
        """Quantities that are assumed to be public: the header's, then the participants'."""
        others = (one for ledger in self.participants.values() for one in ledger.assumed_public)
        return tuple(dict.fromkeys((*self.header.assumed_public, *others)))

    @property
    def is_seeded(self) -> bool:
        """Whether any process of the run drew noise or batches from a seed."""
        resumed = (one.randomness for one in self.lines if isinstance(one, ResumeEntry))
        return Randomness.SEEDED in (self.header.randomness, *resumed) or any(
            ledger.is_seeded for ledger in self.participants.values()
        )

    @property
    def accounted_ledgers(self) -> dict[str, PrivacyLedger]:
        """The ledgers whose largest epsilon is the epsilon of the run, by name.

        A run of one trainer has one, ``SERVER``. In a federation that protects records, a record
        of one participant is covered by the server's releases and by those of this participant.
        In a federation that protects participants, the server's releases cover each of them, and
        a participant's ledger repeats them. A ledger without releases costs nothing: left out.
        """
        own = {SERVER: replace(self, participants={})} if self.releases else {}
        if self.header.unit is Unit.PARTICIPANT:
            return {**own, **{name: one for name, one in self.participants.items() if one.releases}}
        shared = self.releases
        merged = {
            name: replace(one, lines=(*shared, *one.lines)) if shared else one
            for name, one in self.participants.items()
            if shared or one.releases
        }
        return merged or own

    @property
    def mechanism(self) -> Mechanism:
        """All releases of this ledger, without those of its participants, as one mechanism.

        Raises:
            InvalidArgument: If no release is recorded.
        """
        counts = Counter(release.mechanism for release in self.releases)
        return Composed(tuple(Repeated(release, times) for release, times in counts.items()))


SERVER = "server"
"""Name of the ledger that is not a participant's, beside the folder names of participants."""


def participant_name(participant: int) -> str:
    """Return the name of a participant's folder, and of their ledger.

    Args:
        participant: Number of the participant, from 0.

    Returns:
        At least three digits.

    Example:
        >>> participant_name(7)
        '007'
    """
    return f"{participant:03d}"


# Names of releases in a ledger. The trainer writes them.

GRADIENT_SUM = "gradient sum"
"""The noisy sum of clipped gradients of one training step."""

RECORD_COUNT = "record count"
"""The noisy number of records, from which the expected batch size is computed."""

UPDATE_SUM = "update sum"
"""The noisy sum of clipped updates of one round of a federation."""

UPDATE_SUM_AND_COUNT = "update sum and clipped-update count"
"""The noisy sum of clipped updates of one round, and the noisy number of updates within the clip
norm, from which adaptive clipping moves it: one Gaussian release of both on one sample."""

WRAP_AROUND = "wrap-around of the update sum"
"""The probability that a sum of secure aggregation leaves the range of its modulus, as delta."""

SELECTED_ENTRIES = "selected entries"
"""The noisy entries of one upload of selective SGD, with their selection."""
