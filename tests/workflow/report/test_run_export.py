"""What other tools are told of a run is what the run says."""

from __future__ import annotations

import msgspec
import pytest
from ledgers import STEPS, Begin, book_step, finish

from dpaudit.accountants import pld
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import write_json
from dpaudit.vocabulary.audit import (
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict
from dpaudit.workflow.report.run_export import NO_VERDICT, ExportedRun, collect_export

STEP = PoissonSampled(Gaussian(1.5), 0.1)


def finished(begin: Begin) -> RunDirectory:
    run, writer = begin()
    for step in range(STEPS):
        book_step(writer, step)
    finish(run, writer)
    return run


def figures(told: ExportedRun) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for figure in told.figures:
        found.setdefault(figure.name, []).append((figure.step, figure.value))
    return found


def bound(epsilon: float, kind: BoundKind = BoundKind.CERTIFIED) -> AuditResult:
    return AuditResult("a", "m", kind, epsilon, 1e-5, 0.975, "", 10, 0, 0, "")


def attack(name: str, inconclusive: str | None = None) -> MembershipResult:
    rates = (TprAtFpr(0.01, 0.02, Bound(0.01, 0.04), 0.95),)
    roc = ((0.0, 0.0), (1.0, 1.0))
    return MembershipResult(name, 90, 90, 0.5, 0.5, rates, roc, inconclusive=inconclusive)


def test_the_course_of_epsilon_is_the_accountants_and_ends_at_the_claim(begin: Begin) -> None:
    told = collect_export(finished(begin))
    course = figures(told)["epsilon_at_most/pld"]
    assert [step for step, _ in course] == sorted({step for step, _ in course})
    assert course[-1] == (STEPS, told.evidence.claim.epsilon.upper)
    for step, epsilon in course[::4]:
        assert epsilon == pld.profile(Repeated(STEP, step)).epsilon(delta=1e-5).upper


def test_what_was_not_measured_is_not_told(begin: Begin) -> None:
    told = collect_export(finished(begin))
    assert set(figures(told)) == {"epsilon_at_most/pld", "epsilon_claimed_at_most"}
    assert told.tags["dpaudit.verdict"] == NO_VERDICT
    assert told.parameters["noise_multiplier"] == "1.5"
    assert told.parameters["adjacency"] == "add-or-remove-one"


def test_what_was_measured_is_told_at_the_last_step(begin: Begin) -> None:
    run = finished(begin)
    head = run.read_ledger().head
    bounds = (bound(0.5), bound(0.75), bound(9.0, BoundKind.ESTIMATE))
    attacks = (attack("loss threshold/é"), attack("blind", "no evidence"))
    write_json(run.audit, AuditReport(head, 0.95, bounds, attacks, heldout_accuracy=0.875))
    rule = RuleOutcome("claim.max_epsilon", Outcome.FAIL, "too large")
    write_json(run.verdict, Verdict((rule,), head, measured=run.measured()))
    told = collect_export(run)
    found = figures(told)
    assert found["epsilon_at_least"] == [(STEPS, 0.75)]
    assert found["heldout_accuracy"] == [(STEPS, 0.875)]
    assert found["tpr_at_most/loss_threshold__/fpr_0.01"] == [(STEPS, 0.04)]
    assert not [name for name in found if "blind" in name]
    assert told.tags["dpaudit.verdict"] == "FAIL"
    assert told.tags["dpaudit.ledger_head"] == head


@pytest.mark.parametrize("name", ["audit", "verdict"])
def test_what_is_of_another_ledger_is_refused(begin: Begin, name: str) -> None:
    run = finished(begin)
    rule = RuleOutcome("claim.max_epsilon", Outcome.PASS, "small")
    parts: dict[str, msgspec.Struct] = {
        "audit": AuditReport("00" * 32, 0.95, (), ()),
        "verdict": Verdict((rule,), "00" * 32),
    }
    write_json(getattr(run, name), parts[name])
    with pytest.raises(IntegrityError, match="again"):
        collect_export(run)


def test_an_unfinished_run_is_refused(begin: Begin) -> None:
    run, writer = begin()
    book_step(writer, 0)
    with pytest.raises(IntegrityError, match="not finished"):
        collect_export(run)
