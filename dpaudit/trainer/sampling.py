"""How the records of each step are drawn, and what each way of drawing is booked as.

The mechanism is that of the draw itself, never of one that looks like it: batches of a
fixed size are not Poisson samples, and shuffled passes amplify nothing that can be claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.schedules import coin_sampling, recorded_release
from dpaudit.trainer.randomness import Keystream, Purpose
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_sampling_rate
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Gaussian, Release

Indices = NDArray[np.int64]


class Sampler(Protocol):
    """Draws each step's records from a key, the step and nothing else."""

    @property
    def kind(self) -> Sampling:
        """What the ledger's header says of it."""

    @property
    def adjacency(self) -> Adjacency:
        """Under which its releases are booked."""

    @property
    def caution(self) -> str:
        """What a user should know before claiming anything; empty: nothing."""

    @property
    def steps_in_a_pass(self) -> int:
        """After how many steps each record was drawn once, on average."""

    @property
    def steps_a_booking(self) -> int:
        """How many steps one release covers."""

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Return the positions of the records that join ``step``, rising.

        Raises:
            InvalidArgument: there are not as many records as was said.
        """

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return what to book before ``step``; None: an earlier step booked it.

        Args:
            noise: What is added to each step's sum.
            step: Which step.
            first: The step at which the key began; what it draws is booked from there on.
        """


@dataclass(frozen=True)
class Poisson:
    """Each record joins each step by its own coin: the default, and the best understood."""

    sampling_rate: float
    steps_a_booking = 1
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = ""

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)

    @property
    def kind(self) -> Sampling:
        """See ``Sampler``: at rate 1, full batches."""
        return coin_sampling(self.sampling_rate)

    @property
    def steps_in_a_pass(self) -> int:
        """See ``Sampler``."""
        return max(1, round(1 / self.sampling_rate))

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        return np.flatnonzero(
            stream.coins(Purpose.RECORD_SAMPLING, step, records, self.sampling_rate)
        )

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        return recorded_release(self.kind, noise, sampling_rate=self.sampling_rate)


@dataclass(frozen=True)
class Truncated:
    """Poisson batches, of which at most ``largest_batch`` records are kept, drawn evenly."""

    sampling_rate: float
    dataset_size: int
    largest_batch: int
    kind = Sampling.TRUNCATED_POISSON
    steps_a_booking = 1
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = (
        "cut batches add to delta: keep largest_batch well above sampling_rate * dataset_size; "
        "the number of records is taken as public"
    )

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("dataset_size", self.dataset_size)
        require_count("largest_batch", self.largest_batch)

    @property
    def steps_in_a_pass(self) -> int:
        """See ``Sampler``."""
        return max(1, round(1 / self.sampling_rate))

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        _require_size(records, self.dataset_size)
        drawn = Poisson(self.sampling_rate).draw(stream, step, records)
        if len(drawn) <= self.largest_batch:
            return drawn
        order = stream.words(Purpose.RECORD_ORDER, step, len(drawn)).argsort(kind="stable")
        return np.sort(drawn[order[: self.largest_batch]])

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        return recorded_release(
            self.kind,
            noise,
            sampling_rate=self.sampling_rate,
            dataset_size=self.dataset_size,
            largest_batch=self.largest_batch,
        )


@dataclass(frozen=True)
class FixedSize:
    """Every set of ``batch_size`` records is as likely, anew in each step."""

    batch_size: int
    dataset_size: int
    kind = Sampling.FIXED_SIZE
    steps_a_booking = 1
    adjacency = Adjacency.REPLACE_ONE
    caution = "priced under replace-one, where the number of records is public"

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)

    @property
    def steps_in_a_pass(self) -> int:
        """See ``Sampler``."""
        return max(1, round(self.dataset_size / self.batch_size))

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        _require_size(records, self.dataset_size)
        order = stream.words(Purpose.RECORD_SAMPLING, step, records).argsort(kind="stable")
        return np.sort(order[: self.batch_size])

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        return recorded_release(
            self.kind, noise, batch_size=self.batch_size, dataset_size=self.dataset_size
        )


@dataclass(frozen=True)
class BallsInBins:
    """In each pass of ``steps_in_a_pass`` steps, each record joins one, drawn evenly."""

    steps_in_a_pass: int
    kind = Sampling.BALLS_IN_BINS
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = "certified bounds of a pass are wide: Poisson sampling may claim less epsilon"

    def __post_init__(self) -> None:
        require_count("steps_in_a_pass", self.steps_in_a_pass)

    @property
    def steps_a_booking(self) -> int:
        """See ``Sampler``."""
        return self.steps_in_a_pass

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        number, position = divmod(step, self.steps_in_a_pass)
        words = stream.words(Purpose.RECORD_SAMPLING, number, records)
        return np.flatnonzero(_evenly(words, self.steps_in_a_pass) == position)

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        starts = step == first or step % self.steps_in_a_pass == 0
        return recorded_release(self.kind, noise, steps=self.steps_in_a_pass) if starts else None


@dataclass(frozen=True)
class Shuffled:
    """Passes over all records in a random order, in batches of one size."""

    batch_size: int
    dataset_size: int
    kind = Sampling.SHUFFLED
    adjacency = Adjacency.REPLACE_ONE
    caution = (
        "shuffled passes are booked without any amplification, one release on all records a "
        "pass: nothing better is certified"
    )

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)

    @property
    def steps_in_a_pass(self) -> int:
        """See ``Sampler``."""
        return math.ceil(self.dataset_size / self.batch_size)

    @property
    def steps_a_booking(self) -> int:
        """See ``Sampler``."""
        return self.steps_in_a_pass

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        _require_size(records, self.dataset_size)
        number, position = divmod(step, self.steps_in_a_pass)
        order = stream.words(Purpose.RECORD_SAMPLING, number, records).argsort(kind="stable")
        return np.sort(order[position * self.batch_size : (position + 1) * self.batch_size])

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        starts = step == first or step % self.steps_in_a_pass == 0
        return recorded_release(self.kind, noise) if starts else None


@dataclass(frozen=True)
class Cyclic:
    """Records in ``bands`` groups that take turns; each step takes a Poisson sample of one.

    For noise that is correlated over as many steps (``Banded``): a record joins at steps
    that are ``bands`` apart. The whole run is one release, so its steps are fixed in advance.

    Attributes:
        bands: How many groups.
        steps: Of the whole run.
        sampling_rate: With which each record of the group joins.
    """

    bands: int
    steps: int
    sampling_rate: float = 1.0
    kind = Sampling.CYCLIC_POISSON
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = ""

    def __post_init__(self) -> None:
        require_count("bands", self.bands)
        require_count("steps", self.steps)
        require_sampling_rate("sampling_rate", self.sampling_rate)

    @property
    def steps_in_a_pass(self) -> int:
        """See ``Sampler``."""
        return max(1, round(self.bands / self.sampling_rate))

    @property
    def steps_a_booking(self) -> int:
        """See ``Sampler``."""
        return self.steps

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """See ``Sampler``."""
        if step >= self.steps:
            raise InvalidArgument("steps", self.steps, f"above {step}, as many as are taken")
        groups = _evenly(stream.words(Purpose.RECORD_ORDER, 0, records), self.bands)
        joins = stream.coins(Purpose.RECORD_SAMPLING, step, records, self.sampling_rate)
        return np.flatnonzero(joins & (groups == step % self.bands))

    def booked(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """See ``Sampler``."""
        if step != first:
            return None
        return recorded_release(
            self.kind,
            noise,
            steps=self.steps - first,
            bands=self.bands,
            sampling_rate=self.sampling_rate,
        )


def _evenly(words: NDArray[np.uint64], bins: int) -> Indices:
    """Return a bin for each word: the top 53 bits times their number, uneven by 2^-53 at most."""
    return ((words >> np.uint64(11)) * 2.0**-53 * bins).astype(np.int64)


def _require_size(records: int, said: int) -> None:
    if records != said:
        raise InvalidArgument("dataset_size", said, f"the number of records, {records}")
