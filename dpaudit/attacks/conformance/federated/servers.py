"""All conformance tests of a server, combined in one result."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from dpaudit.attacks.conformance.federated.malformed_updates import check_malformed_updates
from dpaudit.attacks.conformance.federated.planted_updates import check_planted_updates
from dpaudit.attacks.conformance.federated.server_noise import (
    check_count,
    check_global_generators,
    check_restart,
    check_server_noise,
    in_server_terms,
    play_quiet_round,
    record_server_noise,
)
from dpaudit.attacks.conformance.federated.server_protocol import MakeServer, ServerRun
from dpaudit.attacks.conformance.sampler import SampledBatches, check_sampler
from dpaudit.attacks.conformance.statistical_tests import Effort, inconclusive_finding
from dpaudit.attacks.conformance.trainer_protocol import derive_seeds
from dpaudit.vocabulary.conformance import ConformanceFinding, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import require_count
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.settings import NoProgress, Progress
from dpaudit.vocabulary.verdict import Outcome

DRAW_SEEDS = 75
NO_DRAW = (
    "the server has no method draw: the rate at which participants are drawn, which amplifies the "
    "guarantee, is not tested; give it draw(), which returns the participants of a round"
)


def check_server(
    make_server: MakeServer,
    claim: StepClaim,
    *,
    effort: Effort | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ConformanceResult:
    """Test whether a server aggregates updates as ``claim`` describes.

    If the server conforms, the verdict is FAIL with probability at most ``LEVEL``.

    Args:
        make_server: Makes a server from a seed; see ``federated.server_protocol``.
        claim: The claim on each round. ``clip_norm`` bounds the L2 norm of an update,
            ``sampling_rate`` is the probability with which a participant is drawn, and
            ``update_scale`` the factor from the noisy sum to what ``aggregate`` returns.
        effort: How much to run. None is enough to detect 2% less noise than claimed.
        seed: Seed of the audit, at least 0.
        progress: Receives each finished check.

    Returns:
        All findings, with their verdict: FAIL if any finding is FAIL, INCONCLUSIVE if any other
        is INCONCLUSIVE, PASS if all pass.

    Raises:
        InvalidArgument: If the server or ``seed`` does not meet the protocol.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance import StepClaim
        >>> from dpaudit.attacks.conformance.federated import check_server
        >>> class Sums:
        ...     participants, reference = 4, {"w": np.zeros(40)}
        ...     def __init__(self, seed):
        ...         self.seed, self.number = seed, 0
        ...     def aggregate(self, updates, expected):
        ...         self.number += 1
        ...         rng = np.random.default_rng([self.seed, self.number])
        ...         total = 2.0 * 0.5 * rng.standard_normal(40)
        ...         for update in updates.values():
        ...             w = update.get("w")
        ...             if set(update) == {"w"} and w.shape == (40,) and w.dtype == float:
        ...                 if np.isfinite(w).all():
        ...                     total += w * min(1.0, 0.5 / max(np.linalg.norm(w), 1e-12))
        ...         return {"w": total}
        >>> claim = StepClaim(
        ...     noise_multiplier=2.0, clip_norm=0.5, sampling_rate=1.0, steps=10, update_scale=1.0
        ... )
        >>> check_server(Sums, claim).verdict.value
        'PASS'

        A claim of more noise than the server adds fails:

        >>> import msgspec
        >>> check_server(Sums, msgspec.structs.replace(claim, noise_multiplier=4.0)).verdict.value
        'FAIL'
    """
    from dpaudit.attacks.conformance import conformance_result  # noqa: PLC0415 - it imports us

    require_count("seed", seed, least=0)
    effort, progress = effort or Effort(), progress or NoProgress()
    checks: tuple[Callable[[], Iterable[ConformanceFinding]], ...] = (
        lambda: check_planted_updates(make_server, claim, seed),
        lambda: check_malformed_updates(make_server, claim, seed),
        lambda: check_server_noise(record_server_noise(make_server, claim, effort, seed), claim),
        lambda: check_global_generators(make_server, claim, seed),
        lambda: check_count(make_server, claim, seed),
        lambda: check_restart(make_server, claim, seed),
        lambda: check_draws(make_server, claim, effort, seed),
    )
    progress.start("conformance of the server", len(checks))
    findings: list[ConformanceFinding] = []
    for run_check in checks:
        findings += run_check()
        progress.advance()
    return conformance_result(claim, findings)


def check_draws(
    make_server: MakeServer, claim: StepClaim, effort: Effort, seed: int
) -> list[ConformanceFinding]:
    """Test whether participants are drawn as accounted for.

    Args:
        make_server: Makes a server that may have a method ``draw``.
        claim: The claim, with the kind of sampling and its rate.
        effort: Number of rounds, and the longest run.
        seed: Seed of the audit.

    Returns:
        Findings of the sampler's tests. A claim without amplification passes, since any choice of
        participants is covered; otherwise an INCONCLUSIVE finding if there is no ``draw``.
    """
    tested = "the participants of each round"
    if claim.sampling_rate == 1 and claim.sampling is not Sampling.FIXED_SIZE:
        return [
            ConformanceFinding(
                check="sampler", name="no amplification", outcome=Outcome.PASS, tested=tested,
                why="the claim is that of rounds with all participants, which covers any others",
                power="exact: no property of the drawing is claimed",
            )
        ]  # fmt: skip
    steps = max(2, min(claim.steps, effort.longest_run))
    runs = max(2, -(-effort.sampler_steps // steps))
    seeds = derive_seeds(seed, DRAW_SEEDS, runs)
    size = ServerRun(make_server, claim, seeds[0]).server.participants
    joined, twice = np.zeros((runs, steps, size), dtype=np.bool_), None
    for run, one in enumerate(seeds):
        server = ServerRun(make_server, claim, one)
        for number in range(steps):
            drawn = server.draw()
            if drawn is None:
                return [inconclusive_finding("sampler", "inclusion", tested, NO_DRAW)]
            joined[run, number, drawn] = True
            if len(set(drawn)) < len(drawn):
                again = next(who for who in drawn if drawn.count(who) > 1)
                twice = twice or (again, number)
            play_quiet_round(server, drawn, drawn)
    draws = SampledBatches(joined, twice, (), np.zeros((runs, steps)), 1)
    return [in_server_terms(finding) for finding in check_sampler(draws, claim)]
