"""State of a run while it trains, and its text on several lines or on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum

from dpaudit.report.descriptions import loss_in_words
from dpaudit.report.participants import names_in_words
from dpaudit.report.text import printable_name
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up

NOT_YET_MEASURED = "not measured yet"


class RunStage(Enum):
    """Stage of a run: before its first step, training, without recent steps, or finished."""

    BEGINNING = "beginning"
    TRAINING = "training"
    SILENT = "no step for a while: check that its process is running"
    FINISHED = "finished"


@dataclass(frozen=True)
class MeasuredAccuracy:
    """What held-out records show of the model after ``steps`` steps.

    Attributes:
        accuracy: Fraction of correct predictions, in [0, 1]; None for a language model.
        steps: Number of steps.
        loss: Mean loss of a language model over tokens, in nats; None for a classifier.
    """

    accuracy: float | None
    steps: int
    loss: float | None = None

    @property
    def name(self) -> str:
        """The name of the figure."""
        return "held-out accuracy" if self.loss is None else "held-out loss"

    def __str__(self) -> str:
        if self.loss is not None:
            return loss_in_words(self.loss).removeprefix("loss ")
        return "not known" if self.accuracy is None else f"{self.accuracy:.1%}"


@dataclass(frozen=True)
class EpsilonLimit:
    """A limit on epsilon.

    Attributes:
        epsilon: The largest allowed value.
        whose: What sets it, such as a policy or a privacy filter; precedes the number in text.
    """

    epsilon: float
    whose: str


@dataclass(frozen=True)
class FederationStatus:
    """Participants of a federated run at one time.

    Attributes:
        participants: Their number.
        left: Folder names of those whose budget has no room for a further round.
        rejected: Number of rejected updates, by the folder name of the participant.
        reasons: Why the newest of them was rejected, by the same names.
    """

    participants: int
    left: tuple[str, ...] = ()
    rejected: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """State of a run at one time.

    Attributes:
        run: Name of its directory.
        stage: The stage of the run.
        steps_done: Number of recorded steps; a step repeated after a resume counts once.
        steps: Number of steps to take; None where the run does not record it.
        delta: Delta of the epsilons here; None before the run has settings.
        spent: Upper bound on epsilon so far, for all recorded releases.
        projected: Upper bound on epsilon after the last step, if the remaining steps are like
            the newest one.
        limit: Limit of a policy or a privacy filter; None without one.
        unknown: Why epsilon is not known; empty where it is.
        steps_per_second: Speed; None until two times are known.
        ends: Estimated time of the last step.
        accuracy: The newest measured accuracy.
        unmeasured: Why accuracy could not be measured; empty where nothing failed.
        federation: Participants of a federated run, whose steps are rounds and whose epsilons
            are the largest of the participants'; None for a run of one trainer.
    """

    run: str
    stage: RunStage
    steps_done: int = 0
    steps: int | None = None
    delta: float | None = None
    spent: float | None = None
    projected: float | None = None
    limit: EpsilonLimit | None = None
    unknown: str = ""
    steps_per_second: float | None = None
    ends: datetime | None = None
    accuracy: MeasuredAccuracy | None = None
    unmeasured: str = ""
    federation: FederationStatus | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has taken its last step."""
        return self.stage is RunStage.FINISHED


def status_rows(status: RunStatus) -> list[tuple[str, str]]:
    """Format a status as rows of a name and a text.

    Args:
        status: State of the run.

    Returns:
        The same names in the same order for every status of a run; unknown values say so.
    """
    federation = status.federation
    return [
        ("run", f"{printable_name(status.run)}, {status.stage.value}"),
        (
            "steps" if federation is None else "rounds",
            f"{status.steps_done}" + (f" of {status.steps}" if status.steps is not None else ""),
        ),
        ("epsilon spent", _spent(status)),
        ("epsilon left", _left(status)),
        ("epsilon at the end", _at_the_end(status)),
        ("rate", _rate(status)),
        ("ends", _ends(status)),
        (
            "held-out accuracy" if status.accuracy is None else status.accuracy.name,
            _accuracy(status),
        ),
        *(() if federation is None else _participants(federation)),
    ]


def _participants(federation: FederationStatus) -> list[tuple[str, str]]:
    """Return the rows about the participants of a federation."""
    rejected = [
        f"{name} ({count}, last: {printable_name(federation.reasons[name])})"
        for name, count in federation.rejected.items()
    ]
    left = f"; no budget: {names_in_words(federation.left)}" if federation.left else ""
    return [
        ("participants", f"{federation.participants}{left}"),
        ("rejected updates", ", ".join(rejected) or "none"),
    ]


def status_text(status: RunStatus) -> str:
    """Format a status on several lines, one per row, with aligned texts.

    Args:
        status: State of the run.

    Returns:
        Lines without control characters in the run's name.
    """
    rows = status_rows(status)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {words}" for name, words in rows)


def status_line(status: RunStatus) -> str:
    """Format a status on one line, for logs.

    Args:
        status: State of the run.

    Returns:
        Every row as ``name text``, separated by semicolons.
    """
    return "; ".join(f"{name} {words}" for name, words in status_rows(status))


def _spent(status: RunStatus) -> str:
    if status.spent is None:
        return f"not known: {status.unknown}" if status.unknown else "nothing yet"
    return f"upper bound {round_up(status.spent)} at delta {status.delta:g}"


def _left(status: RunStatus) -> str:
    """Return the rest of the limit; without one, the rest of the projected epsilon."""
    if status.spent is None:
        return "not known"
    if status.limit is not None:
        most, of = status.limit.epsilon, _limit_in_words(status.limit)
    elif status.projected is not None:
        most, of = status.projected, f"the plan's {round_up(status.projected)}"
    else:
        return "not known"
    if not status.spent <= most:
        return f"none: OVER {of}"
    return f"{round_down(most - status.spent)} of {of}"


def _at_the_end(status: RunStatus) -> str:
    if status.projected is None:
        return "not known"
    words = f"upper bound {round_up(status.projected)}"
    if status.limit is None or status.projected <= status.limit.epsilon:
        return words
    return f"{words}: OVER {_limit_in_words(status.limit)}"


def _limit_in_words(limit: EpsilonLimit) -> str:
    return f"{limit.whose} {limit.epsilon:g}"


def _rate(status: RunStatus) -> str:
    if status.steps_per_second is None:
        return NOT_YET_MEASURED
    what = "steps" if status.federation is None else "rounds"
    return f"{round_nearest(status.steps_per_second)} {what} per second"


def _ends(status: RunStatus) -> str:
    if status.finished:
        return "finished"
    return "not known" if status.ends is None else f"{status.ends.astimezone():%Y-%m-%d %H:%M:%S}"


def _accuracy(status: RunStatus) -> str:
    measured = status.accuracy
    what = "step" if status.federation is None else "round"
    known = "" if measured is None else f"{measured} after {what} {measured.steps}"
    failed = f"not measured: {printable_name(status.unmeasured)}" if status.unmeasured else ""
    return "; ".join(part for part in (known, failed) if part) or NOT_YET_MEASURED
