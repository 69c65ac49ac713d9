"""Two runs in one page: every difference by cause, every figure of both, nothing made equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from dpaudit.report.evidence import ComparisonEvidence
from dpaudit.report.report_pages import ComparedRow, comparison_page
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from tests.report.active_content import assert_inert
from tests.report.html_parser import Page
from tests.report.samples import (
    bare_evidence,
    make_evidence,
    make_membership,
    make_two_runs,
)
from tests.report.stub_figures import undrawn

SECTIONS = ["differences", "claim", "curves", "audit", "canaries", "membership", "gate"]


@pytest.fixture(scope="module")
def html() -> str:
    """The one page of this module whose figures are drawn."""
    return comparison_page(make_two_runs())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(autouse=True)
def quick(html: str) -> Iterator[None]:
    with undrawn():
        yield


def text_of(runs: ComparisonEvidence) -> str:
    return Page(comparison_page(runs)).text


def test_the_page_is_inert_and_its_sections_are_in_order(html: str, page: Page) -> None:
    assert_inert(html)
    assert [section["id"] for section in page.all("section")] == SECTIONS


def test_both_are_named_and_judged_at_the_top(page: Page) -> None:
    top = page.text[: page.text.index("What differs")]
    assert "A: digits-eps3 and B: digits-eps4" in top
    assert "INCONCLUSIVE (a warning only: --inconclusive warn" in top
    assert "no policy evaluated" in top


def test_each_cause_states_its_effect_and_its_own_cost(page: Page) -> None:
    assert "noise multiplier (gradient sum)A: 2B: 1.2raises epsilon" in page.text
    assert "epsilon with this change alone, upper bound: 4.18" in page.text
    assert "version of torchA: 2.10B: 2.11leaves epsilon as it is–not computed" in page.text


def test_figures_are_overlaid_or_beside_each_other_each_with_words(page: Page) -> None:
    drawings = page.all("svg")
    overlaid, beside = 3, 2 * 2 + 2  # audit and canaries of both; ROC of both
    assert len(drawings) == overlaid + beside
    assert all(len((drawing["aria-label"] or "").split()) > 8 for drawing in drawings)


def test_ids_are_distinct(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1


def test_claims_of_different_things_are_said_not_to_compare(page: Page) -> None:
    assert "These claims do not compare: they differ in delta" in page.text
    same = ComparisonEvidence(make_evidence(), make_evidence(), ())
    assert "do not compare" not in text_of(same)


def test_what_differs_is_marked_in_words_too(page: Page) -> None:
    assert "Epsilon, upper bound (differs)A: 2.985B: 4.2" in page.text
    assert "AccountantA: pldB: pld" in page.text


def test_what_one_run_lacks_is_not_measured() -> None:
    runs = ComparisonEvidence(make_evidence(), bare_evidence(), ())
    text = text_of(runs)
    assert "B: not measured" in text
    assert text.count("Not measured.") == 3  # audit, canaries, ROC of B
    assert "The ledgers do not differ in anything that they record" in text


def test_two_bare_runs_say_that_nothing_was_measured() -> None:
    text = text_of(ComparisonEvidence(bare_evidence(), bare_evidence(), ()))
    for words in (
        "Epsilon against steps was not computed",
        "No privacy profile was computed",
        "No trade-off curve was computed",
        "No lower bound on epsilon was measured on either run",
        "No true-positive rate was measured on either run",
        "No policy was evaluated on either run",
    ):
        assert words in text


def test_bounds_of_one_name_at_different_deltas_are_not_put_side_by_side() -> None:
    bound = make_evidence().audit.bounds[0]
    other = msgspec.structs.replace(bound, delta=1e-4)
    head = make_evidence().claim.ledger_head
    audits = [AuditReport(head, 0.95, (one,), ()) for one in (bound, other)]
    runs = [msgspec.structs.replace(bare_evidence(), audit=audit) for audit in audits]
    text = text_of(ComparisonEvidence(*runs, ()))
    assert "at delta 1e-05) (differs)A: 0.9042B: not measured" in text
    assert "at delta 0.0001) (differs)A: not measuredB: 0.9042" in text


def test_a_row_differs_where_its_words_do() -> None:
    assert ComparedRow("x", "1", "2").differs
    assert not ComparedRow("x", "1", "1").differs


def test_a_run_of_two_ledgers_is_refused() -> None:
    claim = msgspec.structs.replace(make_evidence().claim, ledger_head="other")
    stale = msgspec.structs.replace(make_evidence(), claim=claim)
    with pytest.raises(IntegrityError, match="other"):
        comparison_page(ComparisonEvidence(bare_evidence(), stale, ()))


def test_nan_is_never_shown() -> None:
    with pytest.raises(InvalidArgument, match="tpr"):  # no evidence can hold it
        msgspec.structs.replace(make_membership()[0].tpr_at_fpr[0], tpr=float("nan"))
