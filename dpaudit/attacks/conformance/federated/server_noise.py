"""Noise of a server: as accounted for in every round, whatever the number of replies.

Participants send negligible updates, so a round's sum is noise. The rounds of a run go through all
reply patterns in turn, from all replies to none. A round in which the server releases nothing
needs no noise and is left out. The tests of trainers' noise are reused: scale, distribution, and
correlation between rounds, runs and coordinates. One more test takes the rounds by the number of
replies, and one gives the global generators the same state before every round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.conformance.correlation import (
    Correlations,
    check_correlation,
    correlation_finding,
    correlation_matrix,
)
from dpaudit.attacks.conformance.federated.planted_updates import NEGLIGIBLE_NORM
from dpaudit.attacks.conformance.federated.reply_patterns import PATTERNS, ReplyPattern
from dpaudit.attacks.conformance.federated.server_protocol import (
    MakeServer,
    RoundResult,
    ServerRun,
)
from dpaudit.attacks.conformance.noise_distribution import (
    SquareSums,
    check_noise,
    scale_finding,
)
from dpaudit.attacks.conformance.noise_only_runs import NoiseOnlyMode, NoiseOnlyRuns
from dpaudit.attacks.conformance.statistical_tests import (
    Array,
    Effort,
    failed_finding,
    inconclusive_finding,
)
from dpaudit.attacks.conformance.trainer_protocol import derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding, StepClaim
from dpaudit.vocabulary.verdict import Outcome

CHECK = "noise"
NOISE_SEEDS, SALT_SEEDS, RESUME_SEEDS = 71, 72, 73
LONGEST_RUN, LEAST_ROUNDS = 24, 2 * len(PATTERNS)
SALTED_ROUNDS, SALTED_RUNS = 4, 3
RESUMED_ROUNDS = 4
COUNT_SEEDS, COUNT_RUNS, COUNT_ROUNDS, COUNT_ROUNDING = 76, 40, 10, 1e-6
COMPARED_COORDINATES = 20_000  # of a large model, in the tests between rounds
SERVER_TERMS = (("batch size", "round size"), ("batches", "rounds"), ("step", "round"),
                ("record", "participant"))  # fmt: skip


@dataclass(frozen=True)
class ServerNoise:
    """The noise of some runs, and how many replies each round had.

    Attributes:
        runs: Noise over the accounted deviation, in the form of a trainer's.
        patterns: The reply pattern of each round, shape ``(rounds,)``.
        endings: How the rounds ended that released nothing, by pattern.
    """

    runs: NoiseOnlyRuns
    patterns: tuple[ReplyPattern, ...]
    endings: dict[str, str]


def record_server_noise(
    make_server: MakeServer, claim: StepClaim, effort: Effort, seed: int
) -> ServerNoise:
    """Run a server on negligible updates and record the noise of each round.

    Args:
        make_server: Makes the server.
        claim: The claim on each round.
        effort: Number of noise samples, and the limits of rounds and memory.
        seed: Seed of the audit.

    Returns:
        The noise of at least two runs.
    """
    rounds = max(LEAST_ROUNDS, min(claim.steps, effort.longest_run, LONGEST_RUN))
    patterns = tuple(PATTERNS[number % len(PATTERNS)] for number in range(rounds))
    first = ServerRun(make_server, claim, 0)
    dimension = first.dimension
    runs = max(2, min(math.ceil(effort.noise_samples / (dimension * rounds)),
                      effort.most_noise_steps // rounds))  # fmt: skip
    kept = _kept(dimension, effort.kept // (runs * rounds))
    groups = {
        name: np.flatnonzero((kept >= own.start) & (kept < own.stop))
        for name, own in first.groups.items()
    }
    noise, released, endings = [], [], dict[str, str]()
    for one in derive_seeds(seed, NOISE_SEEDS, runs):
        run = ServerRun(make_server, claim, one)
        results = [_quiet_round(run, pattern) for pattern in patterns]
        endings |= {
            pattern.name: result.ending
            for pattern, result in zip(patterns, results, strict=True)
            if result.noisy_sum is None
        }
        noise.append([_noise_of(result, claim, dimension)[kept] for result in results])
        released.append([result.noisy_sum is not None for result in results])
    mode = NoiseOnlyMode("of rounds with negligible updates")
    found = NoiseOnlyRuns(
        mode, np.array(noise), np.array(released),
        {name: own for name, own in groups.items() if len(own)}, dimension, None,
    )  # fmt: skip
    return ServerNoise(found, patterns, endings)


def check_server_noise(noise: ServerNoise, claim: StepClaim) -> list[ConformanceFinding]:
    """Test scale, distribution and independence of a server's noise.

    Args:
        noise: The recorded noise.
        claim: The claim on each round.

    Returns:
        Findings of the scale overall, by parameter, round, coordinate and number of replies, of
        the distribution, and of correlation. A single INCONCLUSIVE finding if nothing was
        released in any round.
    """
    if not noise.runs.empty.any():
        why = f"no round was released: {'; '.join(noise.endings.values())}"
        return [inconclusive_finding(CHECK, "scale", "noise of rounds", why)]
    found = check_noise(noise.runs, claim)
    if noise.runs.finite:
        found += [_by_replies(noise), *check_correlation(noise.runs, claim)]
    return [in_server_terms(finding) for finding in found]


def check_global_generators(
    make_server: MakeServer, claim: StepClaim, seed: int
) -> list[ConformanceFinding]:
    """Test that the noise does not come from a global generator.

    Anything in the process can seed a global generator: a data loader, an evaluation, a user who
    wants a reproducible run. Every round of several servers, whose seeds differ, starts with the
    same state of the global generators. The noise must still differ between all of them.

    Args:
        make_server: Makes the server.
        claim: The claim on each round.
        seed: Seed of the audit.

    Returns:
        One finding.
    """
    (salt,) = derive_seeds(seed, SALT_SEEDS, 1)
    rows, names = [], []
    for one in derive_seeds(seed, SALT_SEEDS + 1, SALTED_RUNS):
        run = ServerRun(make_server, claim, one, salt=salt)
        for number in range(SALTED_ROUNDS):
            result = _quiet_round(run, PATTERNS[0])
            if result.noisy_sum is not None:
                rows.append(_noise_of(result, claim, run.dimension))
                names.append(f"round {number} under seed {one}")
    between = "rounds that start with the same state of the global generators"
    return [_rows_finding("global generators", between, rows, names)]


def check_count(make_server: MakeServer, claim: StepClaim, seed: int) -> list[ConformanceFinding]:
    """Test the noisy count that moves the clip norm of adaptive clipping.

    Every reply is negligible, so all of them are within the clip norm, and the centered count is
    half of their number.

    Args:
        make_server: Makes a server that may have ``noisy_count`` and ``count_noise``.
        claim: The claim on each round.
        seed: Seed of the audit.

    Returns:
        A finding on the scale of its noise, and one on what a participant adds; none if the
        server has no noisy count.
    """
    seeds = derive_seeds(seed, COUNT_SEEDS, COUNT_RUNS)
    if not hasattr(ServerRun(make_server, claim, seeds[0]).server, "noisy_count"):
        return []
    noise, moved = [], 0.0
    for one in seeds:
        run, fewer = (ServerRun(make_server, claim, one) for _ in range(2))
        everyone = list(run.participants)
        for number in range(COUNT_ROUNDS):
            play_quiet_round(run, everyone, everyone)
            deviation, count = float(run.server.count_noise), float(run.server.noisy_count)
            noise.append((count - len(everyone) / 2) / deviation)
            if number == 0:
                play_quiet_round(fewer, everyone[1:], everyone)
                apart = abs(count - float(fewer.server.noisy_count))
                moved = float(np.maximum(moved, apart))  # NaN stays
    squares = SquareSums(
        np.array([np.square(noise).sum()]), np.array([len(noise)]), np.zeros(1), ("of the count",)
    )
    mode = NoiseOnlyMode("of counts of clipped updates")
    rows = np.reshape(noise, (len(seeds), COUNT_ROUNDS, 1))
    runs = NoiseOnlyRuns(
        mode, rows, np.ones(rows.shape[:2], dtype=np.bool_), {"count": np.arange(1)}, 1, None
    )
    return [
        scale_finding("scale of the count", f"noise {mode.description}", squares, runs),
        _count_finding(moved),
    ]


def _count_finding(moved: float) -> ConformanceFinding:
    """Test how far one participant moves the centered count."""
    name, tested = "count", "the centered count with and without one reply"
    limit = 0.5 + COUNT_ROUNDING
    if not moved <= limit:
        why = f"one participant moves the centered count by {moved:.4g}, more than 1/2"
        return failed_finding("replay", name, tested, why)
    return ConformanceFinding(
        check="replay", name=name, outcome=Outcome.PASS, tested=tested,
        why=f"one participant moves the centered count by {moved:.4g}",
        power="exact for these rounds, up to rounding", norm=moved, limit=limit,
    )  # fmt: skip


def check_restart(make_server: MakeServer, claim: StepClaim, seed: int) -> list[ConformanceFinding]:
    """Test that a restarted server neither reuses noise nor forgets its releases.

    Args:
        make_server: Makes a server that may have ``resumed`` and ``releases``.
        claim: The claim on each round.
        seed: Seed of the audit.

    Returns:
        A finding on the noise, and one on the recorded releases if the server has that attribute;
        none if it has no method ``resumed``.
    """
    (one,) = derive_seeds(seed, RESUME_SEEDS, 1)
    run = ServerRun(make_server, claim, one)
    before = [_quiet_round(run, PATTERNS[0]) for _ in range(RESUMED_ROUNDS)]
    recorded = getattr(run.server, "releases", None)
    resumed = run.resumed()
    if resumed is None:
        return _accounting(before, recorded, None)
    kept = getattr(resumed.server, "releases", None)
    after = [_quiet_round(resumed, PATTERNS[0]) for _ in range(RESUMED_ROUNDS)]
    parts = [
        [_noise_of(result, claim, run.dimension) for result in results if result.error is None]
        for results in (before, after)
    ]
    between = "every round before a restart and every round after it"
    names = [f"round {number} {when} it" for when in ("before", "after")
             for number in range(RESUMED_ROUNDS)]  # fmt: skip
    findings = [_rows_finding("resume", between, parts[0] + parts[1], names, split=len(parts[0]))]
    return [*findings, *_accounting(before, recorded, kept)]


def _accounting(
    before: Sequence[RoundResult], recorded: int | None, kept: int | None
) -> list[ConformanceFinding]:
    """Compare the releases that were recorded with those that were made, and after a restart."""
    if recorded is None:
        return []
    made = sum(result.noisy_sum is not None for result in before)
    tested = f"the releases that the server records, in {len(before)} rounds and after a restart"
    name, check = "recorded releases", "provenance"
    if recorded < made:
        why = f"{made} rounds were released, and {recorded} releases are recorded"
        return [failed_finding(check, name, tested, why)]
    if kept is not None and kept < recorded:
        why = (
            f"{recorded} releases are recorded before a restart, and {kept} after it: the "
            "accountant starts again, and its epsilon leaves out what was released before"
        )
        return [failed_finding(check, name, tested, why)]
    if kept is None:
        return []
    return [
        ConformanceFinding(
            check=check, name=name, outcome=Outcome.PASS, tested=tested,
            why=f"all {made} releases are recorded, and kept over a restart",
            power="exact for these rounds",
        )
    ]  # fmt: skip


def _quiet_round(run: ServerRun, pattern: ReplyPattern) -> RoundResult:
    """Play a round of negligible updates with the replies of a pattern."""
    repliers = pattern.repliers(run.participants, run.number % len(run.participants))
    return play_quiet_round(run, repliers, run.participants)


def play_quiet_round(
    run: ServerRun, repliers: Sequence[int], expected: Sequence[int]
) -> RoundResult:
    """Play a round in which every reply is negligible and not exactly zero.

    Args:
        run: The rounds so far.
        repliers: The participants that reply.
        expected: All participants of the round.

    Returns:
        What the round gave.
    """
    size = NEGLIGIBLE_NORM * run.clip_norm / math.sqrt(run.dimension)
    update = run.update_of(np.full(run.dimension, size))
    return run.play(dict.fromkeys(repliers, update), expected)


def _noise_of(result: RoundResult, claim: StepClaim, dimension: int) -> Array:
    """Return the noise over the accounted deviation; zeros if nothing was released."""
    if result.noisy_sum is None:
        return np.zeros(dimension)
    return result.noisy_sum / (claim.noise_multiplier * result.clip_norm)


def _kept(dimension: int, most: int) -> NDArray[np.int64]:
    """Return the tested coordinates: all, or a fixed random subset of as many as fit."""
    if dimension <= max(1, most):
        return np.arange(dimension)
    return np.sort(np.random.default_rng(0).choice(dimension, max(1, most), replace=False))


def _by_replies(noise: ServerNoise) -> ConformanceFinding:
    """Test the scale of the noise for each number of replies."""
    sums, samples, names = [], [], []
    for pattern in PATTERNS:
        own = np.array([one is pattern for one in noise.patterns])
        rounds = int(noise.runs.empty[:, own].sum())
        if rounds:
            sums.append(float(np.square(noise.runs.noise[:, own]).sum()))
            samples.append(rounds * noise.runs.noise.shape[2])
            names.append(f"where {pattern.name}")
    squares = SquareSums(np.array(sums), np.array(samples), np.zeros(len(sums)), tuple(names))
    where = f"noise {noise.runs.mode.description}"
    if noise.endings:
        where += f" (nothing was released where {' and where '.join(noise.endings)})"
    return scale_finding("scale by number of replies", where, squares, noise.runs)


def _rows_finding(
    name: str, between: str, rows: Sequence[Array], names: Sequence[str], *, split: int = 0
) -> ConformanceFinding:
    """Report correlations of every two rows; with ``split``, of those before it with the others."""
    if len(rows) < 2 or not np.isfinite(rows).all():
        why = "fewer than two rounds released finite noise"
        return inconclusive_finding("correlation", name, f"correlation between {between}", why)
    kept = _kept(len(rows[0]), COMPARED_COORDINATES)
    matrix = np.array(rows)[:, kept]
    full = correlation_matrix(matrix, matrix)
    one, other = np.triu_indices(len(rows), 1)
    if split:
        across = (one < split) & (other >= split)
        one, other = one[across], other[across]
    pairs = [
        f"{names[i]} and {names[j]}" for i, j in zip(one.tolist(), other.tolist(), strict=True)
    ]
    counts = np.full(len(pairs), len(kept))
    return correlation_finding(name, between, Correlations(full[one, other], counts, pairs))


def in_server_terms(finding: ConformanceFinding) -> ConformanceFinding:
    """Return a finding in the terms of a server: rounds and participants for steps and records.

    Args:
        finding: A finding of a test of trainers.

    Returns:
        The finding with other texts.
    """
    texts = {}
    for attribute in ("name", "tested", "why", "power"):
        text = getattr(finding, attribute)
        for word, own in SERVER_TERMS:
            text = text.replace(word, own)
        texts[attribute] = text
    return msgspec.structs.replace(finding, **texts)
