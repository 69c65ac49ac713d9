"""The paragraphs for a model card: complete, rounded against ourselves, and only text."""

from __future__ import annotations

import cmarkgfm
import msgspec
import pytest
from cmarkgfm.cmark import Options

from dpaudit.report.model_card import NO_PROOF, escape, model_card_markdown
from dpaudit.report.report_pages import report_page
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.verdict import Verdict
from tests.report.active_content import elements
from tests.report.html_parser import Page
from tests.report.payloads import PAYLOADS
from tests.report.samples import (
    bare_evidence,
    filled_with,
    make_audit,
    make_claim,
    make_evidence,
)
from tests.report.stub_figures import undrawn


def test_the_card_says_what_the_claim_depends_on() -> None:
    card = model_card_markdown(make_evidence())
    for words in (
        "Upper bound on epsilon: 2.985 at delta 1e-05 under add-or-remove-one",
        "adding or removing any one record",
        "the unit is one record",
        "Poisson sampling and secure randomness",
        "pld accountant of dpaudit 0.1.0",
        "101 releases in total",
        "Not accounted for: hyperparameter-tuning.",
        "Assumed public: feature shape, label set, hyper-parameters.",
    ):
        assert words in card


def test_the_card_says_what_was_measured_and_how_sure_that_is() -> None:
    card = model_card_markdown(make_evidence())
    for words in (
        "lower bound 2.104 at delta 1e-05 (conditional: gradient canaries, every step)",
        "lower bound 0.9042 at delta 1e-05 (certified: gradient canaries, final model)",
        "estimate 1.3 at delta 1e-05 (estimate: mislabelled inputs)",
        "The joint confidence of the lower bounds is 0.95",
        "The strongest of 4 membership attacks, loss threshold,",
        "(interval 0.00408 to 0.02894, confidence 0.95)",
        "was tested by 2 tests: INCONCLUSIVE",
    ):
        assert words in card


def test_the_card_says_the_verdict_and_that_it_is_no_proof() -> None:
    card = model_card_markdown(make_evidence())
    assert "By a policy of 4 rules: INCONCLUSIVE (a warning only: --inconclusive warn" in card
    assert f"Policy: dpaudit.toml (SHA-256 {'cd' * 32}); in force SHA-256 {'ab' * 32}." in card
    assert f"model SHA-256 {'ef' * 32}" in card
    assert "every step may be published" in card
    assert "is waived until 2027-01-31 (known outliers, ticket 123)" in card
    assert card.endswith(NO_PROOF)


def test_what_was_not_measured_is_said_to_be_so() -> None:
    card = model_card_markdown(bare_evidence())
    assert "No lower bound on epsilon was measured." in card
    assert "No membership attack was measured" in card
    assert "conformance of the trainer was not tested" in card
    assert "No policy was evaluated" in card
    assert card.endswith(NO_PROOF)


def test_a_seeded_run_has_no_privacy_against_those_who_know_the_seed() -> None:
    claim = msgspec.structs.replace(make_claim(), randomness=Randomness.SEEDED)
    card = model_card_markdown(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert "no privacy at all" in card


def test_contradiction_is_reported() -> None:
    bound = msgspec.structs.replace(make_audit().bounds[0], epsilon_lower=4.0)
    audit = msgspec.structs.replace(make_audit(), bounds=(bound,))
    card = model_card_markdown(msgspec.structs.replace(make_evidence(), audit=audit))
    assert "This contradicts the claim." in card
    assert "This contradicts" not in model_card_markdown(make_evidence())


def test_a_card_of_two_ledgers_is_refused() -> None:
    with pytest.raises(IntegrityError, match="other"):
        model_card_markdown(msgspec.structs.replace(make_evidence(), verdict=Verdict((), "other")))


def test_the_page_shows_the_card_as_it_is_pasted() -> None:
    with undrawn():
        page = Page(report_page(make_evidence()))
    assert " ".join(model_card_markdown(make_evidence()).split()) in page.text


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_pasted_into_markdown_whatever_a_string_holds_is_text(payload: str) -> None:
    card = model_card_markdown(filled_with(make_evidence(), payload))
    html = cmarkgfm.github_flavored_markdown_to_html(card, Options.CMARK_OPT_UNSAFE)
    found = [name for name, _ in elements(html)]
    assert set(found) <= {"html", "head", "body", "p", "strong"}
    assert found.count("p") == found.count("strong") == 3
    assert "://" not in escape(payload).replace("\\://", "")


def test_ordinary_names_stay_readable() -> None:
    assert escape("digits-eps3 (LiRA, 16 shadows)") == "digits-eps3 (LiRA, 16 shadows)"
    assert escape("a_b <c> & d") == "a\\_b &lt;c&gt; &amp; d"
