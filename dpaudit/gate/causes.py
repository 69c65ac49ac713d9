"""Why two runs differ, in words, by cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from dpaudit.vocabulary.baseline import Baseline, Booked
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.mechanism import Release
from dpaudit.vocabulary.tolerance import same_number


class Effect(Enum):
    """What a difference does to epsilon, all else being equal."""

    RAISES = "raises epsilon"
    LOWERS = "lowers epsilon"
    UNKNOWN = "may change epsilon"
    NONE = "leaves epsilon as it is"


class Difference(msgspec.Struct, frozen=True):
    """One cause: what it was, what it is now, and what that does by itself."""

    cause: str
    before: str
    after: str
    effect: Effect

    def __str__(self) -> str:
        return f"{self.cause} was {self.before}, is {self.after}: {self.effect.value}"


class _Words(msgspec.Struct, frozen=True):
    name: str
    grows: Effect


# What a larger value of a mechanism's field does to epsilon.
FIELDS = {
    "noise_multiplier": _Words("noise multiplier", Effect.LOWERS),
    "scale": _Words("noise scale", Effect.LOWERS),
    "sensitivity": _Words("sensitivity", Effect.RAISES),
    "sampling_rate": _Words("sampling rate", Effect.RAISES),
    "batch_size": _Words("batch size", Effect.RAISES),
    "dataset_size": _Words("data set size", Effect.LOWERS),
    "epsilon": _Words("epsilon of a release", Effect.RAISES),
    "rho": _Words("rho of a release", Effect.RAISES),
}
OPPOSITE = {Effect.RAISES: Effect.LOWERS, Effect.LOWERS: Effect.RAISES}


class Change(NamedTuple):
    """A difference, and what would have been booked had it alone changed, where that is plain."""

    difference: Difference
    alone: tuple[Booked, ...] | None = None


def changes(before: Baseline, after: Baseline) -> tuple[Change, ...]:
    """Return what differs between two runs; what raises epsilon comes first."""
    found = [
        *_in_releases(before.booked, after.booked),
        *map(Change, _in_claims(before.claim, after.claim)),
        *map(Change, _beside(before, after)),
    ]
    return tuple(sorted(found, key=lambda one: list(Effect).index(one.difference.effect)))


def differences(before: Baseline, after: Baseline) -> tuple[Difference, ...]:
    """Return what differs between two runs, in words; what raises epsilon comes first."""
    return tuple(change.difference for change in changes(before, after))


def in_words(found: tuple[Difference, ...]) -> str:
    """Return the causes that may have changed epsilon, as one phrase."""
    causes = [str(one) for one in found if one.effect is not Effect.NONE]
    return "; ".join(causes) or "nothing that the ledgers book differs"


def _in_releases(before: tuple[Booked, ...], after: tuple[Booked, ...]) -> Iterator[Change]:
    for what in dict.fromkeys(one.what for one in (*before, *after)):
        old, new = (tuple(b for b in all_ if b.what == what) for all_ in (before, after))
        others = tuple(one for one in before if one.what != what)
        if not new:
            yield Change(Difference("release", what, "not there", Effect.LOWERS), others)
        elif not old:
            difference = Difference("release", "not there", what, Effect.RAISES)
            yield Change(difference, (*before, *new))
        elif len(old) == len(new) == 1:
            yield from _of_one(old[0], new[0], others)
        else:
            yield from _of_several(what, old, new)


def _of_several(what: str, old: tuple[Booked, ...], new: tuple[Booked, ...]) -> Iterator[Change]:
    """Compare schedules: how many releases, and whether of the same kinds."""
    before, after = (sum(one.times for one in side) for side in (old, new))
    yield from map(Change, _number(f"steps ({what})", before, after, Effect.RAISES))
    if {one.mechanism for one in old} != {one.mechanism for one in new}:
        was, now = (f"{len(side)} kinds of step" for side in (old, new))
        yield Change(Difference(f"schedule ({what})", was, now, Effect.UNKNOWN))


def _of_one(old: Booked, new: Booked, others: tuple[Booked, ...]) -> Iterator[Change]:
    """Compare how often one kind of release was made, and with which noise and rate."""
    for difference in _number(f"steps ({old.what})", old.times, new.times, Effect.RAISES):
        yield Change(difference, (*others, replace(old, times=new.times)))
    was, now = (msgspec.to_builtins(one.mechanism) for one in (old, new))
    before, after = _flat(was), _flat(now)
    if before["kind"] != after["kind"]:
        name = f"mechanism ({old.what})"
        difference = Difference(name, before["kind"], after["kind"], Effect.UNKNOWN)
        yield Change(difference, (*others, replace(old, mechanism=new.mechanism)))
        return
    for field in before:
        for difference in _of_field(field, old.what, before[field], after[field]):
            changed = msgspec.convert(_with(was, field, after[field]), Release)
            yield Change(difference, (*others, replace(old, mechanism=changed)))


def _of_field(field: str, what: str, was: object, now: object) -> Iterator[Difference]:
    words = FIELDS.get(field, _Words(field.replace("_", " "), Effect.UNKNOWN))
    name = f"{words.name} ({what})"
    if isinstance(was, int | float) and isinstance(now, int | float):
        yield from _number(name, was, now, words.grows)
    elif was != now:
        yield Difference(name, str(was), str(now), Effect.UNKNOWN)


def _flat(mechanism: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a mechanism and of those inside, the kinds joined."""
    own = {key: value for key, value in mechanism.items() if key != "mechanism"}
    if "mechanism" not in mechanism:
        return own
    inner = _flat(mechanism["mechanism"])
    return inner | own | {"kind": f"{own['kind']} {inner['kind']}"}


def _with(mechanism: Mapping[str, Any], field: str, value: object) -> dict[str, Any]:
    """Return the mechanism with one field changed, wherever it is inside."""
    if field in mechanism:
        return {**mechanism, field: value}
    return {**mechanism, "mechanism": _with(mechanism["mechanism"], field, value)}


def _number(cause: str, was: float, now: float, grows: Effect) -> Iterator[Difference]:
    if was != now:
        effect = grows if now > was else OPPOSITE.get(grows, grows)
        yield Difference(cause, f"{was:.6g}", f"{now:.6g}", effect)


def _in_claims(old: Claim, new: Claim) -> Iterator[Difference]:
    words = {
        "sampling": (old.sampling.value, new.sampling.value),
        "adjacency": (old.adjacency.value, new.adjacency.value),
        "unit of privacy": (old.unit, new.unit),
        "accountant": (old.accountant, new.accountant),
        "delta": _deltas(old.delta, new.delta),
        "what the claim leaves out": (_listed(old.leaves_out), _listed(new.leaves_out)),
        "what is taken as public": (_listed(old.takes_as_public), _listed(new.takes_as_public)),
    }
    for cause, (was, now) in words.items():
        if was != now:
            yield Difference(cause, was, now, Effect.UNKNOWN)


def _deltas(was: float, now: float) -> tuple[str, str]:
    """Return both deltas in as many digits as they differ in."""
    if same_number(was, now):
        return "", ""
    short = (f"{was:g}", f"{now:g}")
    return short if short[0] != short[1] else (repr(was), repr(now))


def _listed(items: tuple[str, ...]) -> str:
    return ", ".join(items) or "nothing"


def _beside(before: Baseline, after: Baseline) -> Iterator[Difference]:
    """Compare what no accountant reads."""
    was, now = (_fixed(one) for one in (before, after))
    if was != now:
        yield Difference("schedule", was, now, Effect.UNKNOWN)
    yield from _number("clip norm", before.clip_norm, after.clip_norm, Effect.NONE)
    old, new = (one.claim.randomness.value for one in (before, after))
    if old != new:
        yield Difference("randomness", old, new, Effect.NONE)
    yield from _in_names("data", before.data, after.data)
    yield from _in_names("model", before.model, after.model)
    yield from _in_versions(_versions(before), _versions(after))


def _in_names(what: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Difference]:
    """Compare what is said of data or model, by name; one of both may know less."""
    for name in dict.fromkeys((*old, *new)):
        was, now = (one.get(name, "not known") for one in (old, new))
        if was != now:
            yield Difference(f"{what} ({name})", was, now, Effect.NONE)


def _fixed(run: Baseline) -> str:
    return "fixed in advance" if run.schedule_fixed_in_advance else "chosen on the way"


def _versions(run: Baseline) -> dict[str, str]:
    return {"dpaudit": run.claim.dpaudit_version} | run.versions


def _in_versions(old: dict[str, str], new: dict[str, str]) -> Iterator[Difference]:
    for name in dict.fromkeys((*old, *new)):
        was, now = (one.get(name, "not there") for one in (old, new))
        if was != now:
            yield Difference(f"version of {name}", was, now, Effect.NONE)
