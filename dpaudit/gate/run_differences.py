"""Differences between two runs: their causes, and the effect of each one on epsilon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from dpaudit.vocabulary import SCHEMA_VERSION
from dpaudit.vocabulary.baseline import Baseline, ReleaseCount
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.rounding import same_number


class EpsilonEffect(Enum):
    """Effect of a difference on epsilon, all else being equal."""

    RAISES = "raises epsilon"
    LOWERS = "lowers epsilon"
    UNKNOWN = "may change epsilon"
    NONE = "leaves epsilon as it is"


class RunDifference(msgspec.Struct, frozen=True):
    """One difference between two runs.

    Attributes:
        cause: The setting or quantity that differs.
        before: Its value in the first run.
        after: Its value in the second run.
        effect: What the change does to epsilon by itself.
    """

    cause: str
    before: str
    after: str
    effect: EpsilonEffect

    def __str__(self) -> str:
        return f"{self.cause} was {self.before}, is {self.after}: {self.effect.value}"


class _Words(msgspec.Struct, frozen=True):
    name: str
    grows: EpsilonEffect


# Effect of a larger value of each field of a mechanism on epsilon.
FIELD_EFFECTS = {
    "noise_multiplier": _Words("noise multiplier", EpsilonEffect.LOWERS),
    "scale": _Words("noise scale", EpsilonEffect.LOWERS),
    "sensitivity": _Words("sensitivity", EpsilonEffect.RAISES),
    "sampling_rate": _Words("sampling rate", EpsilonEffect.RAISES),
    "batch_size": _Words("batch size", EpsilonEffect.RAISES),
    "dataset_size": _Words("data set size", EpsilonEffect.LOWERS),
    "epsilon": _Words("epsilon of a release", EpsilonEffect.RAISES),
    "rho": _Words("rho of a release", EpsilonEffect.RAISES),
}
OPPOSITE_EFFECT = {
    EpsilonEffect.RAISES: EpsilonEffect.LOWERS,
    EpsilonEffect.LOWERS: EpsilonEffect.RAISES,
}


class IsolatedChange(NamedTuple):
    """A difference, and the releases of the first run with this difference alone applied.

    Attributes:
        difference: The difference.
        alone: The releases that would have been recorded; None where a single change does not
            determine them.
    """

    difference: RunDifference
    alone: tuple[ReleaseCount, ...] | None = None


def isolated_changes(before: Baseline, after: Baseline) -> tuple[IsolatedChange, ...]:
    """List the differences between two runs, each with the releases that it alone would cause.

    Args:
        before: The first run.
        after: The second run.

    Returns:
        The changes, sorted by effect: those that raise epsilon come first.
    """
    found = [
        *_in_releases(before.recorded, after.recorded),
        *map(IsolatedChange, _in_claims(before.claim, after.claim)),
        *map(IsolatedChange, _beside(before, after)),
    ]
    return tuple(sorted(found, key=lambda one: list(EpsilonEffect).index(one.difference.effect)))


def find_differences(before: Baseline, after: Baseline) -> tuple[RunDifference, ...]:
    """List the differences between two runs.

    Args:
        before: The first run.
        after: The second run.

    Returns:
        The differences, sorted by effect: those that raise epsilon come first.
    """
    return tuple(change.difference for change in isolated_changes(before, after))


def differences_in_words(differences: tuple[RunDifference, ...]) -> str:
    """Join the differences that may have changed epsilon into one phrase.

    Args:
        differences: All differences between two runs.

    Returns:
        The phrase; differences without an effect on epsilon are left out.
    """
    causes = [str(one) for one in differences if one.effect is not EpsilonEffect.NONE]
    return "; ".join(causes) or "nothing recorded in the ledgers differs"


def _in_releases(
    before: tuple[ReleaseCount, ...], after: tuple[ReleaseCount, ...]
) -> Iterator[IsolatedChange]:
    for what in dict.fromkeys(one.what for one in (*before, *after)):
        old, new = (tuple(b for b in all_ if b.what == what) for all_ in (before, after))
        others = tuple(one for one in before if one.what != what)
        if not new:
            yield IsolatedChange(
                RunDifference("release", what, "not there", EpsilonEffect.LOWERS), others
            )
        elif not old:
            difference = RunDifference("release", "not there", what, EpsilonEffect.RAISES)
            yield IsolatedChange(difference, (*before, *new))
        elif len(old) == len(new) == 1:
            yield from _of_one(old[0], new[0], others)
        else:
            yield from _of_several(what, old, new)


def _of_several(
    what: str, old: tuple[ReleaseCount, ...], new: tuple[ReleaseCount, ...]
) -> Iterator[IsolatedChange]:
    """Compare schedules: the number of releases, and whether they are of the same kinds."""
    before, after = (sum(one.times for one in side) for side in (old, new))
    yield from map(IsolatedChange, _number(f"steps ({what})", before, after, EpsilonEffect.RAISES))
    if {one.mechanism for one in old} != {one.mechanism for one in new}:
        was, now = (f"{len(side)} kinds of step" for side in (old, new))
        yield IsolatedChange(RunDifference(f"schedule ({what})", was, now, EpsilonEffect.UNKNOWN))


def _of_one(
    old: ReleaseCount, new: ReleaseCount, others: tuple[ReleaseCount, ...]
) -> Iterator[IsolatedChange]:
    """Compare the number, the noise and the rate of one kind of release."""
    for difference in _number(f"steps ({old.what})", old.times, new.times, EpsilonEffect.RAISES):
        yield IsolatedChange(difference, (*others, replace(old, times=new.times)))
    was, now = (msgspec.to_builtins(one.mechanism) for one in (old, new))
    before, after = _flat(was), _flat(now)
    if before["kind"] != after["kind"]:
        name = f"mechanism ({old.what})"
        difference = RunDifference(name, before["kind"], after["kind"], EpsilonEffect.UNKNOWN)
        yield IsolatedChange(difference, (*others, replace(old, mechanism=new.mechanism)))
        return
    for field in before:
        for difference in _of_field(field, old.what, before[field], after[field]):
            changed = msgspec.convert(_with(was, field, after[field]), Release)
            yield IsolatedChange(difference, (*others, replace(old, mechanism=changed)))


def _of_field(field: str, what: str, was: object, now: object) -> Iterator[RunDifference]:
    words = FIELD_EFFECTS.get(field, _Words(field.replace("_", " "), EpsilonEffect.UNKNOWN))
    name = f"{words.name} ({what})"
    if isinstance(was, int | float) and isinstance(now, int | float):
        yield from _number(name, was, now, words.grows)
    elif was != now:
        yield RunDifference(name, str(was), str(now), EpsilonEffect.UNKNOWN)


def _flat(mechanism: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a mechanism and of those inside it, with their kinds joined."""
    own = {key: value for key, value in mechanism.items() if key != "mechanism"}
    if "mechanism" not in mechanism:
        return own
    inner = _flat(mechanism["mechanism"])
    return inner | own | {"kind": f"{own['kind']} {inner['kind']}"}


def _with(mechanism: Mapping[str, Any], field: str, value: object) -> dict[str, Any]:
    """Return the mechanism with one field changed, at any depth."""
    if field in mechanism:
        return {**mechanism, field: value}
    return {**mechanism, "mechanism": _with(mechanism["mechanism"], field, value)}


def _number(cause: str, was: float, now: float, grows: EpsilonEffect) -> Iterator[RunDifference]:
    if was != now:
        effect = grows if now > was else OPPOSITE_EFFECT.get(grows, grows)
        yield RunDifference(cause, f"{was:.6g}", f"{now:.6g}", effect)


def _in_claims(old: Claim, new: Claim) -> Iterator[RunDifference]:
    words = {
        "sampling": (old.sampling.value, new.sampling.value),
        "adjacency": (old.adjacency.value, new.adjacency.value),
        "unit of privacy": (old.unit, new.unit),
        "accountant": (old.accountant, new.accountant),
        "delta": _deltas(old.delta, new.delta),
        "unaccounted": (_listed(old.unaccounted), _listed(new.unaccounted)),
        "assumed public": (_listed(old.assumed_public), _listed(new.assumed_public)),
    }
    for cause, (was, now) in words.items():
        if was != now:
            yield RunDifference(cause, was, now, EpsilonEffect.UNKNOWN)
    if (old.federation, new.federation) != (None, None):
        yield from _in_names("federation", _federation(old), _federation(new))


def _federation(claim: Claim) -> dict[str, str]:
    """Return the facts of a federated run that comparisons show."""
    federation = claim.federation
    if federation is None:
        return {"strategy": "none"}
    return {
        "strategy": federation.strategy,
        "participants": str(federation.participants),
        "protects against": _listed(federation.protects_against),
    }


def _deltas(was: float, now: float) -> tuple[str, str]:
    """Return both deltas with as many digits as are needed to show the difference."""
    if same_number(was, now):
        return "", ""
    short = (f"{was:g}", f"{now:g}")
    return short if short[0] != short[1] else (repr(was), repr(now))


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "nothing"


def _beside(before: Baseline, after: Baseline) -> Iterator[RunDifference]:
    """Compare what no accountant reads: schedule, clip norm, randomness, data, model, versions."""
    was, now = (_fixed(one) for one in (before, after))
    if was != now:
        yield RunDifference("schedule", was, now, EpsilonEffect.UNKNOWN)
    yield from _number("clip norm", before.clip_norm, after.clip_norm, EpsilonEffect.NONE)
    old, new = (one.claim.randomness.value for one in (before, after))
    if old != new:
        yield RunDifference("randomness", old, new, EpsilonEffect.NONE)
    kinds = (one.claim.noise for one in (before, after))
    old, new = ("not recorded" if kind is None else kind.value for kind in kinds)
    if old != new:
        yield RunDifference("noise", old, new, EpsilonEffect.NONE)
    yield from _in_names("data", before.data, after.data)
    yield from _in_names("model", before.model, after.model)
    yield from _in_versions(_versions(before), _versions(after))


def _in_names(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[RunDifference]:
    """Compare facts about data or model; either run may lack some of them."""
    for name in dict.fromkeys((*old, *new)):
        was, now = (one.get(name, "not known") for one in (old, new))
        if was != now:
            yield RunDifference(f"{what} ({name})", was, now, EpsilonEffect.NONE)


def _fixed(run: Baseline) -> str:
    return "fixed in advance" if run.schedule_fixed_in_advance else "chosen during the run"


def _versions(run: Baseline) -> dict[str, str]:
    return {"dpaudit": run.claim.dpaudit_version} | run.versions


def _in_versions(old: dict[str, str], new: dict[str, str]) -> Iterator[RunDifference]:
    for name in dict.fromkeys((*old, *new)):
        was, now = (one.get(name, "not there") for one in (old, new))
        if was != now:
            yield RunDifference(f"version of {name}", was, now, EpsilonEffect.NONE)


# Differences between two runs, with the cost of each one by itself.


class DifferenceCost(msgspec.Struct, frozen=True):
    """A difference, and its cost.

    Attributes:
        difference: The difference.
        epsilon: Upper bound for the first run, had this alone changed; None where a single
            change has no computable cost.
    """

    difference: RunDifference
    epsilon: float | None = None


class RunComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs, and every difference between them.

    Attributes:
        before: The first run.
        after: The second run.
        costs: The differences; those that raise epsilon come first.
        schema_version: Version of the JSON format.
    """

    before: Baseline
    after: Baseline
    costs: tuple[DifferenceCost, ...]
    schema_version: str = SCHEMA_VERSION
