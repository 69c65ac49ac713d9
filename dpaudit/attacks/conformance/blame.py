"""What is wrong with a step that one record moved too far, and where, in words."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dpaudit.attacks.conformance.pairs import Pair

AS_A_WHOLE = 2.05  # clip norms: a sum that is clipped as a whole moves by 2 at most
WHOLE, JUST = 1e-4, 1e-3  # relative: a multiple of the clip norm, and the clip norm itself
MOST_NAMED = 4
MOST_TIMES = 50  # copies of a record; of larger movements any is near some multiple


def blame(pair: Pair, clip_norm: float, limit: float) -> str:
    """Return what is wrong with a pair whose difference is not at most ``limit`` in norm."""
    where = _named(pair.groups)
    if not np.isfinite(pair.with_probe).all():
        broken = [
            n for n, own in pair.groups.items() if not np.isfinite(pair.with_probe[own]).all()
        ]
        return (
            "gradients that are not finite pass the clip: one record made the sum NaN or "
            f"infinite; parameters {_named(broken)}"
        )
    if not np.isfinite(pair.without).all():
        broken = [n for n, own in pair.groups.items() if not np.isfinite(pair.without[own]).all()]
        return (
            "one record made the sum finite: without it, the sum is NaN or infinite, as a mean "
            f"over no records is; parameters {_named(broken)}"
        )
    norm = float(np.linalg.norm(pair.difference))
    moved = f"one record moved the sum by {norm / clip_norm:.4g} C"
    factor = rescaled(pair)
    if factor is not None:
        return (
            f"the whole noisy sum was multiplied by {factor:.4g}: something in the step depends "
            "on the records (the actual batch size, a learning rate, the size of the data set); "
            f"{moved}"
        )
    if pair.joined is False:
        return f"{moved} in a step that it did not join: something looks at the whole data set"
    times = round(norm / clip_norm)
    if 1 < times <= MOST_TIMES and abs(norm / clip_norm - times) < WHOLE * times:
        return (
            f"one record counts {times} times: {moved} (its copies are clipped one by one, or "
            f"several ranks take it); parameters {where}"
        )
    norms = {n: float(np.linalg.norm(pair.difference[own])) for n, own in pair.groups.items()}
    beyond = [name for name, size in norms.items() if not size <= limit]
    if beyond and (norm > AS_A_WHOLE * clip_norm or _biases(beyond, norms)):
        return f"{_what(beyond, norms)} gradients are not clipped: {moved}; parameters " + _named(
            sorted(beyond, key=lambda name: -norms[name])
        )
    full = [name for name, size in norms.items() if abs(size / clip_norm - 1) < JUST]
    if len(full) > 1:
        return f"each group of parameters is clipped by itself: {moved}; parameters {_named(full)}"
    return (
        f"records are not clipped one by one: {moved} (not at all, or in a batch or a "
        "sum of some records as a whole, or records see each other's statistics, or the sum is "
        "divided by a number that depends on the records); parameters "
        f"{where}"
    )


def rescaled(pair: Pair) -> float | None:
    """Return by what the whole sum was multiplied, if that is most of what happened to it."""
    length = float(pair.without @ pair.without)
    if length == 0:
        return None
    factor = float(pair.with_probe @ pair.without) / length
    left = float(np.linalg.norm(pair.with_probe - factor * pair.without))
    return factor if left < float(np.linalg.norm(pair.difference)) / 2 else None


def _what(beyond: list[str], norms: Mapping[str, float]) -> str:
    if _biases(beyond, norms):
        return "bias"
    return "some" if len(beyond) < len(norms) else "a record's"


def _biases(beyond: list[str], norms: Mapping[str, float]) -> bool:
    return all("bias" in name.lower() for name in beyond) and len(beyond) < len(norms)


def _named(names: Mapping[str, object] | list[str]) -> str:
    some = list(names)[:MOST_NAMED]
    return ", ".join(some) + (f" and {len(names) - len(some)} more" if len(names) > 4 else "")
