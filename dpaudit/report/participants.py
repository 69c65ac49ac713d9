"""Epsilon of the participants of a federation: equal rows grouped, and as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dpaudit.report.descriptions import observers_in_words
from dpaudit.report.evidence import ParticipantEpsilon
from dpaudit.vocabulary.federation import OBSERVERS, FederationHeader
from dpaudit.vocabulary.ledger import SERVER
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.rounding import round_down, round_up


class ParticipantRow(NamedTuple):
    """Participants with equal results.

    Attributes:
        names: Their folder names, such as ``000 to 002, 004``; or ``server``.
        releases: Number of releases that count for each of them.
        epsilon: Interval of epsilon of each, in nats; None without a release.
        left: The first round that they had no budget for, from 0; None if they stayed.
        rejected: Number of rejected updates of each.
    """

    names: str
    releases: int
    epsilon: Bound | None
    left: int | None
    rejected: int


def participant_rows(participants: Iterable[ParticipantEpsilon]) -> tuple[ParticipantRow, ...]:
    """Group participants whose results are equal.

    Args:
        participants: Results in the order of the participants; the server may be among them.

    Returns:
        One row per different result, in the order of the first participant of each.

    Example:
        >>> ones = [ParticipantEpsilon(f"{n:03d}", 5, Bound(0.9, 1.0)) for n in (0, 1, 2, 4)]
        >>> [row.names for row in participant_rows(ones)]
        ['000 to 002, 004']
    """
    found: dict[tuple[object, ...], list[ParticipantEpsilon]] = {}
    for one in participants:
        key = (one.name == SERVER, one.releases, one.epsilon, one.left, one.rejected)
        found.setdefault(key, []).append(one)
    return tuple(
        ParticipantRow(
            names_in_words([one.name for one in ones]),
            ones[0].releases,
            ones[0].epsilon,
            ones[0].left,
            ones[0].rejected,
        )
        for ones in found.values()
    )


def names_in_words(names: Iterable[str]) -> str:
    """Write folder names of participants, with runs of consecutive numbers as ranges.

    Args:
        names: Folder names, ascending; other names stand alone.

    Returns:
        Such as ``000 to 002, 004``.

    Example:
        >>> names_in_words(["000", "001", "003"])
        '000, 001, 003'
    """
    groups: list[list[str]] = []
    for name in names:
        last = groups[-1][-1] if groups else ""
        follows = name.isdecimal() and last.isdecimal() and int(name) == int(last) + 1
        if follows:
            groups[-1].append(name)
        else:
            groups.append([name])
    return ", ".join(f"{one[0]} to {one[-1]}" if len(one) > 2 else ", ".join(one) for one in groups)


def unprotected_in_words(federation: FederationHeader) -> str:
    """State whom a federated run does not protect against.

    Args:
        federation: What its ledger records.

    Returns:
        A phrase; "none of these observers" if it protects against every observer.
    """
    others = tuple(one for one in OBSERVERS if one not in federation.protects_against)
    if not others:
        return "none of these observers"
    return observers_in_words(
        FederationHeader(federation.strategy, federation.participants, others)
    )


def participant_table(
    intervals: Mapping[str, Bound], without_release: Iterable[str], largest: Bound
) -> list[tuple[str, ...]]:
    """Return the rows of the table of participants for the terminal.

    Args:
        intervals: Interval of epsilon by the name of the ledger.
        without_release: Names of the ledgers without a release.
        largest: The epsilon of the run.

    Returns:
        A heading, rows of equal participants, and the largest.
    """
    known = [ParticipantEpsilon(name, 0, bound) for name, bound in intervals.items()]
    silent = [ParticipantEpsilon(name, 0, None) for name in without_release]
    ordered = sorted(
        (*known, *silent), key=lambda one: (one.name != SERVER, len(one.name), one.name)
    )
    rows = [("ledger", "epsilon: lower bound", "upper bound")]
    for row in participant_rows(ordered):
        if row.epsilon is None:
            rows.append((row.names, "no release of its own", ""))
        else:
            rows.append((row.names, *_ends(row.epsilon)))
    return [*rows, ("largest", *_ends(largest))]


def _ends(bound: Bound) -> tuple[str, str]:
    return round_down(bound.lower) if bound.lower > 0 else "-", round_up(bound.upper)
