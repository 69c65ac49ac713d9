"""What a training run released, step by step: the ground that every claim stands on."""

from __future__ import annotations

import math
from collections import Counter
from enum import Enum
from itertools import pairwise

import msgspec

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import InvalidArgument, require_delta, require_positive
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Release, Repeated
from dpaudit.vocabulary.unit import Unit


class Sampling(Enum):
    """How the records of a step were chosen."""

    POISSON = "poisson"
    """Each record joins each step by its own coin."""

    FULL_BATCH = "full-batch"
    """Every record joins every step."""

    TRUNCATED_POISSON = "truncated-poisson"
    """Poisson batches that are cut where they grow too large."""

    FIXED_SIZE = "fixed-size"
    """Every set of one size is as likely, anew in each step."""

    BALLS_IN_BINS = "balls-in-bins"
    """In each pass, each record joins one step, drawn evenly."""

    CYCLIC_POISSON = "cyclic-poisson"
    """Records in groups; the groups take turns, and each step takes a Poisson sample of one."""

    SHUFFLED = "shuffled"
    """Passes over a shuffled data set in batches of one size: no amplification is claimed."""

    @property
    def records_every_step(self) -> bool:
        """Whether each step is a release of its own; otherwise one release covers many."""
        passes = (Sampling.BALLS_IN_BINS, Sampling.CYCLIC_POISSON, Sampling.SHUFFLED)
        return self not in passes


class Randomness(Enum):
    """Where noise and sampling come from."""

    SECURE = "secure"
    """A keystream under a fresh key of the operating system, which is never stored."""

    SEEDED = "seeded"
    """Reproducible, for tests: whoever knows the seed knows the noise."""


class RenyiBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a Renyi filter was set to before the first release, and never after.

    Attributes:
        epsilon: What the whole run is promised to keep at ``delta``, whatever it releases.
        delta: Shared evenly among the orders.
        orders: The Renyi orders that are watched, rising, each above 1.
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
    """What holds for the whole run; carries no count and no digest of the records.

    ``unit`` is what one neighbour more or less is: a record, or for instance a user with all
    of theirs. A run whose schedule was not fixed in advance may declare, in ``budget``, the
    filter that it asks before every release.
    """

    adjacency: Adjacency
    sampling: Sampling
    randomness: Randomness
    schedule_fixed_in_advance: bool
    clip_norm: float
    versions: dict[str, str]
    run: str
    leaves_out: tuple[str, ...] = ()
    takes_as_public: tuple[str, ...] = ()
    budget: RenyiBudget | None = None
    unit: Unit = Unit.RECORD
    schema_version: str = SCHEMA_VERSION


class Begun(msgspec.Struct, frozen=True, tag_field="kind", tag="begun"):
    """Settings and canaries are on disk, with these digests; the canaries' are salted."""

    files: dict[str, str]


class BookedRelease(msgspec.Struct, frozen=True, tag_field="kind", tag="release"):
    """One release, on disk before its noise was used."""

    what: str
    mechanism: Release
    step: int | None = None


class Resumed(msgspec.Struct, frozen=True, tag_field="kind", tag="resumed"):
    """A process took over at ``step``; steps from there on may be recorded twice.

    Attributes:
        step: The first step that the process takes.
        randomness: Where its noise and sampling come from.
        dropped: The incomplete last line that the resuming process removed, at most its
            first characters; empty if the ledger ended with a complete line. If the line was
            a release, or may have been one, a release was recorded for it just before.
    """

    step: int
    randomness: Randomness
    dropped: str = ""


class DeclaredChange(msgspec.Struct, frozen=True, tag_field="kind", tag="declared-change"):
    """The user declares that the model was changed outside of the recorded steps.

    Attributes:
        what: How it was changed, in the user's words.
        step: After how many steps.
    """

    what: str
    step: int


class Checkpointed(msgspec.Struct, frozen=True, tag_field="kind", tag="checkpointed"):
    """A checkpoint was written.

    Attributes:
        step: After how many steps.
        files: SHA-256 of each of its files, by name.
    """

    step: int
    files: dict[str, str]


class Ended(msgspec.Struct, frozen=True, tag_field="kind", tag="ended"):
    """The last step was taken, and what ships is on the disk; claim and seal come next.

    Attributes:
        files: SHA-256 of each file that the seal will hold, by name.
    """

    files: dict[str, str]


class Seal(msgspec.Struct, frozen=True, tag_field="kind", tag="seal"):
    """The run has ended: how many releases there were, and the digests of its files."""

    releases: int
    files: dict[str, str]


BodyLine = Begun | BookedRelease | Resumed | DeclaredChange | Checkpointed | Ended | Seal
"""Every kind of line after the header."""

LedgerLine = LedgerHeader | BodyLine


class PrivacyLedger(msgspec.Struct, frozen=True):
    """A ledger that was read and verified.

    Attributes:
        header: What holds for the whole run.
        lines: Everything after the header, in order.
        head: Hash of the last line, which every earlier line enters.
    """

    header: LedgerHeader
    lines: tuple[BodyLine, ...]
    head: str

    @property
    def releases(self) -> tuple[BookedRelease, ...]:
        """The booked releases, in order."""
        return tuple(line for line in self.lines if isinstance(line, BookedRelease))

    @property
    def begun(self) -> Begun | None:
        """The line that binds settings and canaries; None if the run died before it."""
        first = self.lines[0] if self.lines else None
        return first if isinstance(first, Begun) else None

    @property
    def seal(self) -> Seal | None:
        """The seal, or None while the run goes on."""
        last = self.lines[-1] if self.lines else None
        return last if isinstance(last, Seal) else None

    @property
    def ended(self) -> Ended | None:
        """The line that says that the run has taken its last step, if nothing came after it."""
        lines = [line for line in self.lines if not isinstance(line, Seal)]
        last = lines[-1] if lines else None
        return last if isinstance(last, Ended) else None

    @property
    def leaves_out(self) -> tuple[str, ...]:
        """What no claim of this run covers: the header's list and every declared change."""
        changes = (
            f"model changed outside of the recorded steps at step {line.step}: {line.what}"
            for line in self.lines
            if isinstance(line, DeclaredChange)
        )
        return tuple(dict.fromkeys((*self.header.leaves_out, *changes)))

    @property
    def mechanism(self) -> Mechanism:
        """All releases as one mechanism; at least one must be booked."""
        counts = Counter(release.mechanism for release in self.releases)
        return Composed(tuple(Repeated(release, times) for release, times in counts.items()))
