"""One audit of a trainer: all checks, one level, one verdict."""

from __future__ import annotations

from collections.abc import Sequence

from dpaudit.attacks.conformance.batch_noise import check_batch_noise
from dpaudit.attacks.conformance.correlation import check_correlation, check_ranks, check_resume
from dpaudit.attacks.conformance.effort import LEVEL, Effort
from dpaudit.attacks.conformance.noise import check_noise
from dpaudit.attacks.conformance.probes import make_probes
from dpaudit.attacks.conformance.public_constants import check_constants
from dpaudit.attacks.conformance.quiet import Quiet, find_way, listen
from dpaudit.attacks.conformance.rank_rows import Kind, why_unclear
from dpaudit.attacks.conformance.replay import check_replay
from dpaudit.attacks.conformance.sampler import Draws, check_sampler, draw
from dpaudit.attacks.conformance.trainers import MakeTrainer, Record, of_claimed_size
from dpaudit.attacks.conformance.words import undecided, violated
from dpaudit.vocabulary.conformance import ConformanceResult, Finding, StepClaim, outcome_of
from dpaudit.vocabulary.errors import InvalidArgument, require_count


def check(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    *,
    records: Sequence[Record],
    probes: Sequence[Record] | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> ConformanceResult:
    """Return whether a trainer's steps are what ``claim`` says.

    Args:
        make_trainer: From records and a seed to a trainer; see ``trainers``.
        claim: What is claimed of every step.
        records: Ordinary records, (x, y), at least two: probes are made from them.
        probes: Records to replay in place of those.
        effort: How much is run; None: enough to see 2% less noise.
        seed: Of the audit: it fixes the seeds that the trainer is made with, so that an audit
            can be repeated.

    Raises:
        InvalidArgument: there are too few records, or the trainer does not return what it must.
    """
    require_count("seed", seed, least=0)
    if len(records) < 2:
        raise InvalidArgument("records", f"{len(records)} of them", "at least two")
    effort = effort or Effort()
    data = of_claimed_size(make_trainer, records)
    quiet = listen(make_trainer, claim, find_way(make_trainer, claim, data, seed), effort, seed)
    draws = draw(make_trainer, claim, data, effort, seed)
    findings = (
        *check_replay(make_trainer, claim, records, make_probes(records, probes), effort, seed),
        *check_constants(make_trainer, claim, records, seed),
        *check_noise(quiet, claim),
        *check_batch_noise(make_trainer, claim, data, draws, effort, seed),
        *check_correlation(quiet, claim),
        *_ranks(quiet, draws),
        *check_resume(make_trainer, claim, quiet, effort, seed),
        *check_sampler(draws, claim),
    )
    return result_of(claim, findings)


def result_of(
    claim: StepClaim, findings: Sequence[Finding], ledger_head: str | None = None
) -> ConformanceResult:
    """Return findings with their verdict."""
    return ConformanceResult(
        claim=claim,
        findings=tuple(findings),
        level=LEVEL,
        verdict=outcome_of(tuple(findings)),
        ledger_head=ledger_head,
    )


def _ranks(quiet: Quiet, draws: Draws | None) -> list[Finding]:
    if quiet.ranks is None:
        return []
    if draws is None or not draws.rows:
        why = "no step with records shows what the ranks' rows are (is sampled missing?)"
        return [undecided("correlation", "ranks", "the ranks' rows", why)]
    tested = "the ranks' rows, and the update"
    torn = next((rows.why for rows in draws.rows if rows.kind is Kind.TORN), "")
    if torn:
        return [violated("correlation", "ranks", tested, torn)]
    unclear = why_unclear(draws.rows)
    if unclear:
        return [undecided("correlation", "ranks", tested, unclear)]
    return check_ranks(quiet, all(rows.kind is Kind.REPLICAS for rows in draws.rows))
