"""Is the noise as wide as is claimed, everywhere, and normal?

Where no record takes part, every coordinate of every step is noise alone: the squares of a
group add up to a chi-square. Too much noise convicts like too little: it is not the
mechanism that is claimed, though it may well keep the claimed epsilon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dpaudit.attacks.conformance.effort import EACH
from dpaudit.attacks.conformance.quiet import Quiet
from dpaudit.attacks.conformance.tails import (
    Array,
    detectable_scale,
    scale_p_values,
    uniform_p_value,
)
from dpaudit.attacks.conformance.words import statistical, undecided, violated
from dpaudit.vocabulary.conformance import Finding, StepClaim

CHECK = "noise"
MOST_NAMED = 4
BLOCK = 4


@dataclass(frozen=True)
class Squares:
    """Sums of squares of noise over its claimed deviation.

    Attributes:
        sums: Shape ``(tests,)``.
        samples: How many squares each has.
        shifts: The most that records may have added to each.
        names: What each is the sum over.
    """

    sums: Array
    samples: NDArray[np.int64]
    shifts: Array
    names: tuple[str, ...]


def check_noise(quiet: Quiet, claim: StepClaim) -> list[Finding]:
    """Return whether the noise has the claimed scale and law.

    Source: a sum of n squares of standard normals is a chi-square with n degrees of freedom.
    """
    where = f"noise {quiet.way.how}"
    if not quiet.finite:
        inside = f" in {', '.join(quiet.not_finite)}" if quiet.not_finite else ""
        why = (
            f"a step that no record joined is not finite{inside}: it shows that "
            "the batch was empty (is something divided by the number of its records?)"
        )
        return [violated(CHECK, "finite", where, why)]
    if not quiet.empty.any():
        return [undecided(CHECK, "scale", where, "no step without a record was seen")]
    return [
        _scale("scale", where, _everywhere(quiet, claim), quiet),
        _scale("scale of each group", where, _by_group(quiet, claim), quiet),
        _scale("scale of each step", where, _by_step(quiet, claim), quiet),
        _scale("scale of each coordinate", where, _by_coordinate(quiet, claim), quiet),
        _law(where, quiet),
    ]


def _scale(name: str, where: str, squares: Squares, quiet: Quiet) -> Finding:
    tests = len(squares.sums)
    p_values = scale_p_values(squares.sums, squares.samples, squares.shifts)
    p_value = min(1.0, tests * float(p_values.min()))
    factors = np.sqrt(squares.sums / squares.samples)
    worst = int(p_values.argmin())
    convicted = np.flatnonzero(tests * p_values <= EACH)
    least = detectable_scale(float(squares.samples.min()), EACH / tests)
    wrong = "; ".join(
        f"the noise {squares.names[i]} has {factors[i]:.3g} times the claimed standard deviation"
        for i in convicted[:MOST_NAMED]
    )
    more = f"; and {len(convicted) - MOST_NAMED} more" if len(convicted) > MOST_NAMED else ""
    return statistical(
        check=CHECK,
        name=name,
        tested=f"{where}: {int(squares.sums.size)} sums of squares against chi-square, "
        f"{int(squares.samples.min())} samples or more in each",
        p_value=p_value,
        seen=f"{factors[worst]:.4g} times the claimed standard deviation {squares.names[worst]}, "
        "the least likely of all",
        wrong=wrong + more + _silent_ranks(quiet),
        power=f"noise that is {least:.2%} too low would be seen 95 times in 100",
        detectable=least,
    )


def _silent_ranks(quiet: Quiet) -> str:
    if quiet.ranks is None:
        return ""
    silent = [str(r) for r in range(quiet.ranks.shape[2]) if not quiet.ranks[:, :, r].any()]
    return f"; rank {', '.join(silent)} adds no noise" if silent else ""


def _everywhere(quiet: Quiet, claim: StepClaim) -> Squares:
    return _squares(
        quiet, claim, np.square(quiet.noise).sum(keepdims=True).ravel(), ("as a whole",), 1
    )


def _by_group(quiet: Quiet, claim: StepClaim) -> Squares:
    by_coordinate = np.square(quiet.noise).sum(axis=(0, 1))
    sums = np.array([by_coordinate[own].sum() for own in quiet.groups.values()])
    sizes = np.array([len(own) for own in quiet.groups.values()])
    names = tuple(f"of {name}" for name in quiet.groups)
    steps = int(quiet.empty.sum())
    return Squares(sums, sizes * steps, np.full(len(sums), _shift(quiet, claim, steps)), names)


def _by_step(quiet: Quiet, claim: StepClaim) -> Squares:
    runs = quiet.empty.sum(axis=0)
    seen = np.flatnonzero(runs)
    sums = np.square(quiet.noise).sum(axis=(0, 2))[seen]
    names = tuple(f"at step {step}" for step in seen)
    shifts = np.array([_shift(quiet, claim, int(count)) for count in runs[seen]])
    return Squares(sums, runs[seen] * quiet.noise.shape[2], shifts, names)


def _by_coordinate(quiet: Quiet, claim: StepClaim) -> Squares:
    sums = np.square(quiet.noise).sum(axis=(0, 1))
    group_of = {int(i): name for name, own in quiet.groups.items() for i in own}
    names = tuple(f"of one coordinate of {group_of[i]}" for i in range(len(sums)))
    return _squares(quiet, claim, sums, names, len(sums))


def _squares(
    quiet: Quiet, claim: StepClaim, sums: Array, names: tuple[str, ...], tests: int
) -> Squares:
    steps = int(quiet.empty.sum())
    samples = np.full(tests, steps * quiet.noise.shape[2] // tests)
    return Squares(sums, samples, np.full(tests, _shift(quiet, claim, steps)), names)


def _shift(quiet: Quiet, claim: StepClaim, steps: int) -> float:
    """Return the most that a single clipped record adds to the squares of so many steps."""
    return 0.0 if quiet.way.known else steps / claim.noise_multiplier**2


def _law(where: str, quiet: Quiet) -> Finding:
    """Test coordinates over the length of their neighbours: Student's law, at any scale.

    Of BLOCK independent normals, one over the root mean square of the others follows
    Student's law with BLOCK - 1 degrees of freedom. Blocks share no number.
    """
    tested = f"{where}: coordinates over the length of their neighbours, against Student's law"
    if not quiet.way.known:
        return undecided(CHECK, "law", tested, "a record may be in every step: see the scale")
    rows = quiet.noise[quiet.empty]
    blocks = rows.ravel()[: rows.size // BLOCK * BLOCK].reshape(-1, BLOCK)
    if len(blocks) == 0:
        return undecided(CHECK, "law", tested, "too few samples")
    lengths = np.sqrt(np.square(blocks[:, 1:]).mean(axis=1))
    ratios = blocks[:, 0] / np.maximum(lengths, 1e-300)
    gap, p_value = uniform_p_value(stats.t.cdf(ratios, BLOCK - 1))
    least = float(np.sqrt(np.log(2 / EACH) / (2 * len(blocks))))
    return statistical(
        check=CHECK,
        name="law",
        tested=tested,
        p_value=p_value,
        seen=f"the largest gap between the laws is {gap:.3g}, on {len(blocks)} blocks",
        wrong=f"the noise is not independent normals: the laws are {gap:.3g} apart",
        power=f"a gap of {least:.3g} between the laws would be refuted (uniform noise has 0.04)",
        detectable=least,
    )
