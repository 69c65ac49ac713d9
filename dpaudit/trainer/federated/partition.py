"""Partitions of a data set among the participants of a federation.

A partition simulates records that participants collected: it is drawn before training, from a
public seed. The parts are positions in the data set, one ascending array per participant.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

Parts = tuple[NDArray[np.int64], ...]
"""The positions of each participant's records, ascending."""

DIRICHLET_DRAWS = 1000
"""Draws of a Dirichlet partition before giving up: each participant needs a record."""

__all__ = [
    "Parts",
    "draw_independently",
    "partition_by_column",
    "partition_by_dirichlet",
    "partition_evenly",
    "partition_into_shards",
]


def partition_evenly(records: int, participants: int, *, seed: int) -> Parts:
    """Divide records among participants at random, in parts of equal size.

    Args:
        records: Number of records; at least ``participants``.
        participants: Number of participants; at least 1.
        seed: Public seed of the partition, at least 0.

    Returns:
        Disjoint parts that hold every record; sizes differ by at most 1.

    Raises:
        InvalidArgument: If there are fewer records than participants.

    Example:
        >>> [len(part) for part in partition_evenly(10, 3, seed=0)]
        [4, 3, 3]
    """
    _require_enough(records, participants)
    order = np.random.default_rng(seed).permutation(records)
    return _sorted_parts(np.array_split(order, participants))


def partition_into_shards(
    labels: NDArray[np.int64], participants: int, *, shards_per_participant: int, seed: int
) -> Parts:
    """Sort records by label, cut them into shards of equal size, and deal the shards at random.

    Args:
        labels: Class of each record, shape ``(records,)``.
        participants: Number of participants; at least 1.
        shards_per_participant: Number of shards of each participant; at least 1.
        seed: Public seed of the partition, at least 0.

    Returns:
        Disjoint parts that hold every record. Few labels occur in each part.

    Raises:
        InvalidArgument: If there are fewer records than shards.

    References:
        McMahan et al. (2017), arXiv:1602.05629, section 3.

    Example:
        >>> parts = partition_into_shards(
        ...     np.repeat(np.arange(4), 3), 2, shards_per_participant=2, seed=0)
        >>> sorted(len(part) for part in parts)
        [6, 6]
    """
    require_count("shards_per_participant", shards_per_participant)
    require_count("participants", participants)
    count = participants * shards_per_participant
    _require_enough(len(labels), count)
    shards = np.array_split(np.argsort(labels, kind="stable"), count)
    dealt = np.random.default_rng(seed).permutation(count).reshape(participants, -1)
    return _sorted_parts([np.concatenate([shards[i] for i in own]) for own in dealt])


def partition_by_dirichlet(
    labels: NDArray[np.int64], participants: int, *, alpha: float, seed: int
) -> Parts:
    """Divide the records of each label in proportions drawn from a Dirichlet distribution.

    Args:
        labels: Class of each record, shape ``(records,)``.
        participants: Number of participants; at least 1.
        alpha: Concentration of the Dirichlet distribution, above 0: small values give each
            label to few participants.
        seed: Public seed of the partition, at least 0.

    Returns:
        Disjoint parts that hold every record; each has at least one.

    Raises:
        InvalidArgument: If an argument is out of range, or participants remain without records
            in every one of ``DIRICHLET_DRAWS`` draws.

    References:
        Hsu, Qi & Brown (2019), arXiv:1909.06335.

    Example:
        >>> parts = partition_by_dirichlet(np.arange(100) % 10, 4, alpha=0.5, seed=0)
        >>> sum(len(part) for part in parts)
        100
    """
    require_positive("dirichlet_alpha", alpha)
    _require_enough(len(labels), participants)
    random = np.random.default_rng(seed)
    for _ in range(DIRICHLET_DRAWS):
        owners = _dirichlet_owners(labels, participants, alpha, random)
        if len(np.unique(owners)) == participants:
            return _parts_of(owners, participants)
    raise InvalidArgument(
        "dirichlet_alpha",
        alpha,
        f"large enough that each of {participants} participants has a record",
    )


def partition_by_column(values: NDArray[Any], participants: int) -> Parts:
    """Divide records by the values of a column, such as a user, a site or a region.

    Each value belongs to one participant: the values, in sorted order, take turns.

    Args:
        values: Value of each record, shape ``(records,)``.
        participants: Number of participants; at most the number of distinct values.

    Returns:
        Disjoint parts that hold every record.

    Raises:
        InvalidArgument: If there are fewer distinct values than participants.

    Example:
        >>> [part.tolist() for part in partition_by_column(np.array(["b", "a", "c", "b"]), 2)]
        [[1, 2], [0, 3]]
    """
    require_count("participants", participants)
    distinct, numbers = np.unique(values, return_inverse=True)
    if len(distinct) < participants:
        raise InvalidArgument(
            "participants", participants, f"at most {len(distinct)}, the values of the column"
        )
    return _parts_of(numbers.reshape(-1) % participants, participants)


def draw_independently(
    records: int, participants: int, *, records_per_participant: int, seed: int
) -> Parts:
    """Draw each participant's records uniformly, independently of the other participants.

    One participant's records are distinct. Several participants may hold the same record.

    Args:
        records: Number of records; at least ``records_per_participant``.
        participants: Number of participants; at least 1.
        records_per_participant: Number of records of each participant; at least 1.
        seed: Public seed of the draws, at least 0.

    Returns:
        Parts of equal size, which may overlap.

    Raises:
        InvalidArgument: If there are fewer records than one participant draws.

    Example:
        >>> [len(part) for part in draw_independently(10, 2, records_per_participant=6, seed=0)]
        [6, 6]
    """
    require_count("participants", participants)
    require_count("records_per_participant", records_per_participant)
    if records < records_per_participant:
        raise InvalidArgument("records_per_participant", records_per_participant, f"<= {records}")
    random = np.random.default_rng(seed)
    drawn = (
        random.choice(records, records_per_participant, replace=False) for _ in range(participants)
    )
    return _sorted_parts(list(drawn))


def _dirichlet_owners(
    labels: NDArray[np.int64], participants: int, alpha: float, random: np.random.Generator
) -> NDArray[np.int64]:
    """Return the participant of each record; each label is cut by its own proportions."""
    owners = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        own = random.permutation(np.flatnonzero(labels == label))
        shares = random.dirichlet(np.full(participants, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
        for owner, part in enumerate(np.split(own, cuts)):
            owners[part] = owner
    return owners


def _parts_of(owners: NDArray[Any], participants: int) -> Parts:
    """Return the positions of each owner."""
    return tuple(np.flatnonzero(owners == owner) for owner in range(participants))


def _sorted_parts(parts: list[NDArray[Any]]) -> Parts:
    """Return the parts, each ascending."""
    return tuple(np.sort(part).astype(np.int64) for part in parts)


def _require_enough(records: int, parts: int) -> None:
    """Refuse fewer records than parts."""
    require_count("participants", parts)
    if records < parts:
        raise InvalidArgument("participants", parts, f"at most the number of records, {records}")
