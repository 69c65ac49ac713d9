"""Samplers: how the records of each step are drawn, and which release the ledger records.

The recorded mechanism is always that of the draw itself. Batches of a fixed size are not
recorded as Poisson samples. Shuffled passes are recorded without amplification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpaudit.accountants.schedules import coin_sampling, recorded_release
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_sampling_rate
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Gaussian, Release
from dpaudit.vocabulary.privacy_terms import Adjacency

Indices = NDArray[np.int64]


class Sampler(Protocol):
    """Draws the records of each step, from the key, the step and the number of records alone."""

    @property
    def kind(self) -> Sampling:
        """The sampling scheme that the ledger's header records."""

    @property
    def adjacency(self) -> Adjacency:
        """The neighbor relation under which its releases are recorded."""

    @property
    def caution(self) -> str:
        """A warning that ``make_private`` issues once; empty if there is none."""

    @property
    def steps_in_a_pass(self) -> int:
        """The number of steps after which each record was drawn once, on average."""

    @property
    def steps_per_release(self) -> int:
        """The number of consecutive steps that one recorded release covers."""

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the number of records that a step draws on average.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            The mean of the number of drawn records, or an upper bound of it.
        """

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw the records that join ``step``.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.

        Raises:
            InvalidArgument: If ``records`` differs from a declared data set size.
        """

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release to record before ``step``.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; None if an earlier release covers this step.
        """


@dataclass(frozen=True)
class Poisson:
    """Poisson sampling: each record joins each step independently, with one probability.

    The default. Amplification by sampling is exact under add-or-remove-one. A rate of 1 gives
    full batches.

    Attributes:
        sampling_rate: Probability with which each record joins each step, in (0, 1].

    Example:
        >>> sampler = Poisson(0.01)
        >>> sampler.steps_in_a_pass
        100
        >>> sampler.kind.value
        'poisson'
    """

    sampling_rate: float
    steps_per_release = 1
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = ""

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)

    @property
    def kind(self) -> Sampling:
        """The sampling scheme of the ledger's header: Poisson, or full batches at rate 1."""
        return coin_sampling(self.sampling_rate)

    @property
    def steps_in_a_pass(self) -> int:
        """The number of steps of about one pass: 1 / sampling_rate, rounded."""
        return max(1, round(1 / self.sampling_rate))

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the mean number of drawn records: sampling_rate * dataset_size.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return self.sampling_rate * dataset_size

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw each record with one independent coin of bias ``sampling_rate``.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.
        """
        return np.flatnonzero(
            stream.coins(Purpose.RECORD_SAMPLING, step, records, self.sampling_rate)
        )

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of one step: a Poisson-sampled Gaussian mechanism.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; never None, as each step is a release.
        """
        return recorded_release(self.kind, noise, sampling_rate=self.sampling_rate)


@dataclass(frozen=True)
class Truncated:
    """Poisson sampling with batches cut to at most ``largest_batch`` records.

    A larger Poisson sample is replaced by a uniformly drawn subset of it.

    Attributes:
        sampling_rate: Probability with which each record joins each step, in (0, 1].
        dataset_size: Number of records, which is taken as public.
        largest_batch: Largest number of records in a batch.

    Example:
        >>> Truncated(sampling_rate=0.01, dataset_size=6000, largest_batch=120).steps_in_a_pass
        100
    """

    sampling_rate: float
    dataset_size: int
    largest_batch: int
    kind = Sampling.TRUNCATED_POISSON
    steps_per_release = 1
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = (
        "truncated batches increase delta: keep largest_batch well above sampling_rate * "
        "dataset_size; the number of records is taken as public"
    )

    def __post_init__(self) -> None:
        require_sampling_rate("sampling_rate", self.sampling_rate)
        require_count("dataset_size", self.dataset_size)
        require_count("largest_batch", self.largest_batch)

    @property
    def steps_in_a_pass(self) -> int:
        """The number of steps of about one pass: 1 / sampling_rate, rounded."""
        return max(1, round(1 / self.sampling_rate))

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the mean number of drawn records before batches are truncated.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return self.sampling_rate * dataset_size

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw a Poisson sample; keep a uniform subset of it where it is too large.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.

        Raises:
            InvalidArgument: If ``records`` differs from ``dataset_size``.
        """
        _require_size(records, self.dataset_size)
        drawn = Poisson(self.sampling_rate).draw(stream, step, records)
        if len(drawn) <= self.largest_batch:
            return drawn
        # Sorting by random words gives a uniform order, so the first ones are a uniform subset.
        order = stream.words(Purpose.RECORD_ORDER, step, len(drawn)).argsort(kind="stable")
        return np.sort(drawn[order[: self.largest_batch]])

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of one step, with the data set size and the largest batch.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; never None, as each step is a release.
        """
        return recorded_release(
            self.kind,
            noise,
            sampling_rate=self.sampling_rate,
            dataset_size=self.dataset_size,
            largest_batch=self.largest_batch,
        )


@dataclass(frozen=True)
class FixedSize:
    """Sampling without replacement: a uniformly drawn set of ``batch_size`` records per step.

    Attributes:
        batch_size: Number of records in each batch.
        dataset_size: Number of records, which is public under replace-one.

    Example:
        >>> sampler = FixedSize(batch_size=64, dataset_size=6400)
        >>> sampler.steps_in_a_pass, sampler.adjacency.value
        (100, 'replace-one')
    """

    batch_size: int
    dataset_size: int
    kind = Sampling.FIXED_SIZE
    steps_per_release = 1
    adjacency = Adjacency.REPLACE_ONE
    caution = "accounted for under replace-one, where the number of records is public"

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)

    @property
    def steps_in_a_pass(self) -> int:
        """The number of steps of about one pass: dataset_size / batch_size, rounded."""
        return max(1, round(self.dataset_size / self.batch_size))

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the number of drawn records, whatever the size of the data set.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return self.batch_size

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw ``batch_size`` records uniformly without replacement.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.

        Raises:
            InvalidArgument: If ``records`` differs from ``dataset_size``.
        """
        _require_size(records, self.dataset_size)
        order = stream.words(Purpose.RECORD_SAMPLING, step, records).argsort(kind="stable")
        return np.sort(order[: self.batch_size])

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of one step: a Gaussian mechanism on a fixed-size sample.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; never None, as each step is a release.
        """
        return recorded_release(
            self.kind, noise, batch_size=self.batch_size, dataset_size=self.dataset_size
        )


@dataclass(frozen=True)
class BallsInBins:
    """Balls-in-bins sampling: in each pass, each record joins one uniformly drawn step.

    One release covers a pass of ``steps_in_a_pass`` steps. The accountant ``pld`` bounds its
    epsilon from both sides, within a relative 1e-3. At equal noise and steps, it is often a few
    percent below that of Poisson sampling: see docs/mathematics/random_allocation.md.

    Attributes:
        steps_in_a_pass: Number of steps (bins) in one pass.

    Example:
        >>> sampler = BallsInBins(100)
        >>> sampler.steps_per_release
        100
    """

    steps_in_a_pass: int
    kind = Sampling.BALLS_IN_BINS
    adjacency = Adjacency.ADD_OR_REMOVE_ONE
    caution = ""

    def __post_init__(self) -> None:
        require_count("steps_in_a_pass", self.steps_in_a_pass)

    @property
    def steps_per_release(self) -> int:
        """The number of steps of one pass, which one release covers."""
        return self.steps_in_a_pass

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the mean number of drawn records: dataset_size / steps_in_a_pass.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return dataset_size / self.steps_in_a_pass

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw the records whose bin in this pass is ``step``.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.
        """
        number, position = divmod(step, self.steps_in_a_pass)
        words = stream.words(Purpose.RECORD_SAMPLING, number, records)
        return np.flatnonzero(_uniform_bins(words, self.steps_in_a_pass) == position)

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of a whole pass, at its first step under this key.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; None if an earlier release covers this step.
        """
        # A resumed run draws the rest of its pass under a new key: a separate release.
        starts = step == first or step % self.steps_in_a_pass == 0
        return recorded_release(self.kind, noise, steps=self.steps_in_a_pass) if starts else None


@dataclass(frozen=True)
class Shuffled:
    """Passes over all records in a random order, in batches of a fixed size.

    A pass is recorded as one release on all records, without amplification by shuffling.

    Attributes:
        batch_size: Number of records in each batch; the last batch of a pass may be smaller.
        dataset_size: Number of records, which is public under replace-one.

    Example:
        >>> sampler = Shuffled(batch_size=64, dataset_size=1000)
        >>> sampler.steps_in_a_pass
        16
    """

    batch_size: int
    dataset_size: int
    kind = Sampling.SHUFFLED
    adjacency = Adjacency.REPLACE_ONE
    caution = (
        "shuffled passes are recorded without amplification, as one release on all records per "
        "pass: no smaller epsilon is certified"
    )

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("dataset_size", self.dataset_size, least=self.batch_size)

    @property
    def steps_in_a_pass(self) -> int:
        """The number of steps of one pass: dataset_size / batch_size, rounded up."""
        return math.ceil(self.dataset_size / self.batch_size)

    @property
    def steps_per_release(self) -> int:
        """The number of steps of one pass, which one release covers."""
        return self.steps_in_a_pass

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the number of drawn records, whatever the size of the data set.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return self.batch_size

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Return the next ``batch_size`` records of this pass's random order.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.

        Raises:
            InvalidArgument: If ``records`` differs from ``dataset_size``.
        """
        _require_size(records, self.dataset_size)
        number, position = divmod(step, self.steps_in_a_pass)
        order = stream.words(Purpose.RECORD_SAMPLING, number, records).argsort(kind="stable")
        return np.sort(order[position * self.batch_size : (position + 1) * self.batch_size])

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of a whole pass, at its first step under this key.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; None if an earlier release covers this step.
        """
        starts = step == first or step % self.steps_in_a_pass == 0
        return recorded_release(self.kind, noise) if starts else None


@dataclass(frozen=True)
class Cyclic:
    """Cyclic Poisson sampling: groups of records take turns, with a Poisson sample of one per step.

    For noise that is correlated over as many steps (``Banded``): a record joins only at steps
    that are multiples of ``bands`` apart. The whole run is one release, so its number of steps
    is fixed before training.

    Attributes:
        bands: Number of groups.
        steps: Number of steps of the whole run.
        sampling_rate: Probability with which each record of the group joins, in (0, 1].

    Example:
        >>> sampler = Cyclic(bands=4, steps=200, sampling_rate=0.5)
        >>> sampler.steps_in_a_pass, sampler.steps_per_release
        (8, 200)
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
        """The number of steps of about one pass: bands / sampling_rate, rounded."""
        return max(1, round(self.bands / self.sampling_rate))

    @property
    def steps_per_release(self) -> int:
        """The number of steps of the run, which one release covers."""
        return self.steps

    def expected_batch_size(self, dataset_size: int) -> float:
        """Return the mean number of drawn records of a group.

        Args:
            dataset_size: Public number of records (or users).

        Returns:
            A number of records.
        """
        return self.sampling_rate * dataset_size / self.bands

    def draw(self, stream: Keystream, step: int, records: int) -> Indices:
        """Draw a Poisson sample of the group whose turn is ``step``.

        Args:
            stream: Keystream that decides the draw, together with ``step``.
            step: Number of the step, from 0.
            records: Number of records (or users) to draw from.

        Returns:
            Positions of the records that join the step, ascending, shape ``(batch,)``.

        Raises:
            InvalidArgument: If ``step`` is beyond the declared number of steps.
        """
        if step >= self.steps:
            raise InvalidArgument(
                "steps", self.steps, f"above {step}, the number of steps already taken"
            )
        groups = _uniform_bins(stream.words(Purpose.RECORD_ORDER, 0, records), self.bands)
        joins = stream.coins(Purpose.RECORD_SAMPLING, step, records, self.sampling_rate)
        return np.flatnonzero(joins & (groups == step % self.bands))

    def release_at(self, noise: Gaussian, step: int, first: int = 0) -> Release | None:
        """Return the release of the rest of the run, at its first step under this key.

        Args:
            noise: The Gaussian mechanism of one step's sum.
            step: Number of the step, from 0.
            first: Step at which the current key began: 0, or the step of the resumed checkpoint.

        Returns:
            The release to record before ``step``; None if an earlier release covers this step.
        """
        if step != first:
            return None
        return recorded_release(
            self.kind,
            noise,
            steps=self.steps - first,
            bands=self.bands,
            sampling_rate=self.sampling_rate,
        )


def _uniform_bins(words: NDArray[np.uint64], bins: int) -> Indices:
    """Return a bin for each word: its top 53 bits times ``bins``, uneven by at most 2^-53."""
    return ((words >> np.uint64(11)) * 2.0**-53 * bins).astype(np.int64)


def _require_size(records: int, declared: int) -> None:
    """Refuse a number of records that differs from the declared one."""
    if records != declared:
        raise InvalidArgument("dataset_size", declared, f"the number of records, {records}")
