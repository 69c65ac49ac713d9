"""What is seen of a run while it trains, in words: several lines, or one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from dpaudit.report.history_text import one_line
from dpaudit.vocabulary.rounding import round_down, round_near, round_up

NOT_YET = "not measured yet"


class Stage(Enum):
    """Where a run stands."""

    BEGINNING = "beginning"
    TRAINING = "training"
    SILENT = "no step for a while: is its process still there?"
    FINISHED = "finished"


@dataclass(frozen=True)
class Measured:
    """Accuracy on held-out records, in [0, 1], of the model after ``steps`` steps."""

    accuracy: float
    steps: int


@dataclass(frozen=True)
class Limit:
    """An epsilon that is not to be passed, and whose it is."""

    epsilon: float
    whose: str


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """One look at a run.

    Attributes:
        run: The name of its directory.
        stage: Where it stands.
        steps_done: How many steps are booked; one that was taken again counts once.
        steps: How many are asked for; None where nothing says so.
        delta: At which epsilon counts; None before the run has settings.
        spent: Upper bound of epsilon so far, everything that is booked included.
        projected: Upper bound of epsilon after the last step, if the rest is as the last one.
        limit: Of a policy or a filter, if there is one.
        unknown: Why epsilon cannot be told; empty where it can.
        steps_per_second: None before two moments are known.
        ends: When the last step is due.
        accuracy: The newest that was measured.
        unmeasured: Why accuracy could not be measured; empty where nothing failed.
    """

    run: str
    stage: Stage
    steps_done: int = 0
    steps: int | None = None
    delta: float | None = None
    spent: float | None = None
    projected: float | None = None
    limit: Limit | None = None
    unknown: str = ""
    steps_per_second: float | None = None
    ends: datetime | None = None
    accuracy: Measured | None = None
    unmeasured: str = ""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to watch."""
        return self.stage is Stage.FINISHED


def glimpse_rows(seen: Glimpse) -> list[tuple[str, str]]:
    """Return what is seen, a name and some words each; always the same names."""
    return [
        ("run", f"{one_line(seen.run)}, {seen.stage.value}"),
        ("steps", f"{seen.steps_done}" + (f" of {seen.steps}" if seen.steps is not None else "")),
        ("epsilon spent", _spent(seen)),
        ("epsilon left", _left(seen)),
        ("epsilon at the end", _at_the_end(seen)),
        ("rate", _rate(seen)),
        ("ends", _ends(seen)),
        ("held-out accuracy", _accuracy(seen)),
    ]


def glimpse_text(seen: Glimpse) -> str:
    """Return a line for each thing that is seen."""
    rows = glimpse_rows(seen)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {words}" for name, words in rows)


def glimpse_line(seen: Glimpse) -> str:
    """Return all that is seen on one line."""
    return "; ".join(f"{name} {words}" for name, words in glimpse_rows(seen))


def _spent(seen: Glimpse) -> str:
    if seen.spent is None:
        return f"cannot be told: {seen.unknown}" if seen.unknown else "nothing yet"
    return f"at most {round_up(seen.spent)} at delta {seen.delta:g}"


def _left(seen: Glimpse) -> str:
    """Return what is left of the limit; without one, of what the plan will have spent."""
    if seen.spent is None:
        return "not known"
    if seen.limit is not None:
        most, of = seen.limit.epsilon, _in_words(seen.limit)
    elif seen.projected is not None:
        most, of = seen.projected, f"the plan's {round_up(seen.projected)}"
    else:
        return "not known"
    if not seen.spent <= most:
        return f"nothing: it is OVER {of}"
    return f"{round_down(most - seen.spent)} of {of}"


def _at_the_end(seen: Glimpse) -> str:
    if seen.projected is None:
        return "not known"
    words = f"at most {round_up(seen.projected)}"
    if seen.limit is None or seen.projected <= seen.limit.epsilon:
        return words
    return f"{words}: OVER {_in_words(seen.limit)}"


def _in_words(limit: Limit) -> str:
    return f"{limit.whose} {limit.epsilon:g}"


def _rate(seen: Glimpse) -> str:
    if seen.steps_per_second is None:
        return NOT_YET
    return f"{round_near(seen.steps_per_second)} steps a second"


def _ends(seen: Glimpse) -> str:
    if seen.finished:
        return "it has"
    return "not known" if seen.ends is None else f"{seen.ends.astimezone():%Y-%m-%d %H:%M:%S}"


def _accuracy(seen: Glimpse) -> str:
    measured = seen.accuracy
    known = "" if measured is None else f"{measured.accuracy:.1%} after step {measured.steps}"
    failed = f"not measured: {one_line(seen.unmeasured)}" if seen.unmeasured else ""
    return "; ".join(part for part in (known, failed) if part) or NOT_YET
