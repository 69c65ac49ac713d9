"""The HTML report: nothing runs, nothing is fetched, nothing is rounded in our favour."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpaudit.report.evidence import (
    ReportEvidence,
    Statements,
    contradicting_bounds,
    membership_attacks,
)
from dpaudit.report.page_template import security_policy
from dpaudit.report.report_pages import report_page
from dpaudit.vocabulary.audit import AuditReport, BoundKind
from dpaudit.vocabulary.errors import AccountingError, IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound, Unit
from dpaudit.vocabulary.rounding import round_down, round_nearest, round_up
from dpaudit.vocabulary.verdict import InconclusiveHandling, Outcome, RuleOutcome, Verdict
from tests.report.active_content import assert_inert
from tests.report.html_parser import Page
from tests.report.samples import (
    HEAD,
    bare_evidence,
    made_attack,
    make_answers,
    make_attack_report,
    make_audit,
    make_basis,
    make_claim,
    make_evidence,
    make_membership,
    make_verdict,
)
from tests.report.stub_figures import undrawn

SECTIONS = [
    *("summary", "claim", "curves", "audit", "membership"),
    *("conformance", "gate", "assumptions", "history", "card"),
]
FIGURES = 7


def text_of(evidence: ReportEvidence) -> str:
    return Page(report_page(evidence)).text


@pytest.fixture(scope="module")
def html() -> str:
    """The one page of this module whose figures are drawn."""
    return report_page(make_evidence())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(autouse=True)
def quick(html: str) -> Iterator[None]:
    with undrawn():
        yield


def test_the_page_runs_nothing_and_fetches_nothing(page: Page, html: str) -> None:
    assert_inert(html)
    assert "http" not in "".join(page.words)


def test_the_policy_of_the_page_allows_its_own_style_sheet_alone(page: Page, html: str) -> None:
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(rule.split(maxsplit=1) for rule in (policy["content"] or "").split("; "))
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    assert allowed == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digest}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert policy["content"] == security_policy(styles[0])


def test_the_style_sheet_fetches_nothing(html: str) -> None:
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == 1
    assert not re.search(r"url\(|@import|expression", styles[0])


@pytest.mark.parametrize("make", [make_evidence, bare_evidence])
def test_every_section_is_there_in_order_and_named(make) -> None:
    page = Page(report_page(make()))
    sections = page.all("section")
    assert [section["id"] for section in sections] == SECTIONS
    headings = [heading["id"] for heading in page.all("h2")]
    named = [*sections, *page.all("nav")]
    assert sorted(map(str, headings)) == sorted(str(one["aria-labelledby"]) for one in named)


@pytest.mark.parametrize("make", [make_evidence, bare_evidence])
def test_the_contents_list_every_section_after_the_summary(make) -> None:
    page = Page(report_page(make()))
    links = [str(link["href"]) for link in page.all("a") if link.get("class") != "skip"]
    first = links.index("#claim")
    assert [link[1:] for link in links[first : first + len(SECTIONS) - 1]] == SECTIONS[1:]


def test_the_summary_comes_first_and_before_the_contents(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.index("section") < tags.index("nav") < tags.index("table")
    assert page.all("section")[0]["id"] == "summary"


def summary(evidence: ReportEvidence) -> str:
    text = text_of(evidence)
    return text[text.index("Summary") : text.index("Contents")]


def test_the_summary_states_claim_strongest_attack_and_facts() -> None:
    found = summary(make_evidence())
    for words in (
        "Upper bound on epsilon: 2.985 at delta 1e-05, for one record, neighbors by",
        "Lower bound on epsilon by audit: 2.104 at delta 1e-05 (conditional; gradient canaries, "
        "every step). It does not contradict the claim.",
        "Membership inference by loss threshold, the strongest of 4 attacks: it identified 1.25% "
        "of the members at a false-positive rate of 1% (interval 0.408% to 2.894%, confidence "
        "0.95).",
        "Report written2026-11-30 09:15 UTC",
        "Data setdigits (test fraction 0.2, split seed 0)",
        "Modelmlp, trained with sgd",
        "Policydpaudit.toml (the project's policy; 1 option set outside of the files)",
        "Policy evaluated2026-11-29 12:30 UTC",
    ):
        assert words in found


def test_the_summary_states_what_was_not_tested() -> None:
    found = summary(make_evidence())
    for words in (
        "A true epsilon below 3.4: the audit is not known to detect it with 95% power.",
        "Membership attacks other than loss threshold, LiRA, 16 shadows, RMIA, RMIA, offline.",
        "False-positive rates of 0.0001, 0.001: too few non-members for 4 attacks.",
        "Not accounted for: hyperparameter-tuning.",
        "Other runs on the same records",
    ):
        assert words in found
    assert "no conformance test was run" not in found


def test_the_summary_of_a_bare_claim_says_that_nothing_was_tested() -> None:
    found = summary(bare_evidence())
    for words in (
        "Lower bound on epsilon: not measured.",
        "Membership inference: no true-positive rate was measured.",
        "Whether the claim is true: no lower bound on epsilon was measured.",
        "Membership inference: no attack was run.",
        "no conformance test was run.",
        "no policy was evaluated.",
        "Report writtennot recorded",
        "Data setnot recorded",
        "Policynone was evaluated",
    ):
        assert words in found


def test_the_summary_says_that_a_bound_contradicts_the_claim() -> None:
    audit = audit_with(epsilon_lower=4.0)
    found = summary(msgspec.structs.replace(make_evidence(), audit=audit))
    assert "Lower bound on epsilon by audit: 4 at delta 1e-05" in found
    assert "It contradicts the claim." in found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"project_digest": "34" * 32}, "not the project's policy"),
        ({"basis": None}, "Policynot recorded"),
        ({"no_project": True}, "the project has no policy"),
    ],
)
def test_the_summary_states_the_origin_of_the_policy(changes, words) -> None:
    verdict, digest = make_verdict(), changes.get("project_digest", "")
    if "basis" in changes:
        verdict = msgspec.structs.replace(verdict, basis=None)
    if "no_project" in changes:
        basis = msgspec.structs.replace(make_basis(), project_digest="")
        verdict = msgspec.structs.replace(verdict, basis=basis)
    evidence = msgspec.structs.replace(make_evidence(), verdict=verdict, project_digest=digest)
    assert words in summary(evidence)


def test_each_assumption_is_stated_once(page: Page) -> None:
    shared = "canaries that do not interact; a known family"
    audit = make_audit()
    bounds = tuple(
        msgspec.structs.replace(
            audit.bounds[1], name=name, assumes=f"{shared}{more}", confidence=0.99
        )
        for name, more in (("one", ""), ("two", "; normal noise"), ("three", "; normal noise"))
    )
    evidence = msgspec.structs.replace(
        make_evidence(), audit=msgspec.structs.replace(audit, bounds=bounds, confidence=0.9)
    )
    text = text_of(evidence)
    for assumption in (*shared.split("; "), "normal noise"):
        assert text.count(assumption) == 1
    assert "A1canaries that do not interact" in text
    assert text.count("A1, A2, A3") == 2
    for one in (*make_audit().bounds, *make_membership()):
        for assumption in one.assumes.split("; "):
            assert " " not in assumption or page.text.count(assumption) == 1
    assert page.text.count("feature shape, label set, hyper-parameters") == 2  # claim, model card


def test_markup_is_no_list_of_assumptions() -> None:
    text = "a; b; <i>c</i>; &quot; onload=x"
    assert Statements("A", [text, "a; b", "b; c"]).items == (
        ("A1", text),
        ("A2", "a"),
        ("A3", "b"),
        ("A4", "c"),
    )


def test_the_claim_of_the_verdict_is_shown_where_it_is_another() -> None:
    assert "Not covered" not in text_of(make_evidence()).split("Policy and evaluated files")[1]
    claim = msgspec.structs.replace(make_claim(), delta=1e-6)
    verdict = msgspec.structs.replace(make_verdict(), claim=claim)
    text = text_of(msgspec.structs.replace(make_evidence(), verdict=verdict))
    assert "delta 1e-06" in text.split("Policy and evaluated files")[1]


def test_ids_are_distinct_and_every_reference_arrives(page: Page) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert max(ids.values()) == 1
    for _, attributes in page.elements:
        for key, value in attributes.items():
            if key != "aria-label":
                assert set(re.findall(r"url\(#(.*?)\)", value or "")) <= set(ids)
        assert (attributes.get("href") or "#claim")[1:] in ids


def test_every_figure_is_an_image_with_words(page: Page) -> None:
    drawings = page.all("svg")
    assert len(drawings) == FIGURES
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert len((drawing["aria-label"] or "").split()) > 8
        assert drawing["viewbox"]
        assert "width" not in drawing


def test_figures_hold_text_that_follows_the_colour_of_the_page(html: str) -> None:
    assert "#010203" not in html
    assert 'fill="currentColor"' in html
    assert "<metadata" not in html
    assert "<?xml" not in html
    assert html.count("<!doctype") == 1


def test_what_was_not_measured_is_said_to_be_so() -> None:
    page = Page(report_page(bare_evidence()))
    assert not page.all("svg")
    assert not page.all("table")
    for words in (
        "no policy evaluated",
        "Epsilon by other accountants was not computed",
        "Epsilon against steps was not computed",
        "The privacy profile was not computed",
        "No lower bound on epsilon was measured",
        "Membership inference was not measured",
        "accuracy on held-out records was not measured",
        "No policy was evaluated on this run",
    ):
        assert words in page.text


def test_an_audit_that_measured_nothing_draws_nothing() -> None:
    evidence = msgspec.structs.replace(bare_evidence(), audit=AuditReport(HEAD, 0.95, (), ()))
    page = Page(report_page(evidence))
    assert not page.all("svg")
    assert "No lower bound on epsilon was measured" in page.text


def test_claim_is_described_with_all_assumptions(page: Page) -> None:
    for words in (
        "Epsilon upper bound 2.985, lower bound 2.97 (pld accountant)",
        "Delta 1e-05",
        "Neighbors add-or-remove-one, the unit being one record",
        "Sampling Poisson sampling",
        "Randomness secure",
        "(101 releases)",
    ):
        assert words in page.text
    assert make_evidence().mechanism_in_words in page.text
    assert "feature shape, label set, hyper-parameters" in page.text
    assert "hyperparameter-tuning" in page.text
    assert "Further releases about the same records, such as other runs" in page.text
    assert "keep it internal" in page.text
    assert HEAD in page.text
    assert "Seeded randomness" not in page.text


def test_claim_without_declarations_states_that() -> None:
    claim = msgspec.structs.replace(
        make_claim(), epsilon=Bound(0, 3), unaccounted=(), assumed_public=(), releases=1
    )
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert text.count("Nothing was declared") == 2
    assert "upper bound 3, lower bound not known" in text
    assert "(1 release)" in text


def test_seeded_randomness_is_warned_of() -> None:
    claim = msgspec.structs.replace(make_claim(), randomness=Randomness.SEEDED)
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert "Anyone who knows the seed knows the noise" in text


@pytest.mark.parametrize("epsilon", [0.0, 1e-300, 50.0, 51.0, 1e5, 1e300])
@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize("sampling", Sampling)
def test_every_claim_has_a_description(epsilon, adjacency, sampling) -> None:
    claim = msgspec.structs.replace(
        make_claim(), epsilon=Bound(0, epsilon), adjacency=adjacency, sampling=sampling
    )
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert ("protects nobody" in text) == (epsilon > 50)


@pytest.mark.parametrize("outcome", Outcome)
def test_the_verdict_is_told_in_words(outcome) -> None:
    verdict = Verdict((RuleOutcome("claim.max_epsilon", outcome, "because"),), HEAD)
    page = Page(report_page(msgspec.structs.replace(bare_evidence(), verdict=verdict)))
    banner = page.text.index("digits-eps3", page.text.index("Privacy report"))
    assert outcome.value in page.text[banner : banner + 40]
    assert page.text.count("because") == 1


def test_a_verdict_without_rules_is_no_success() -> None:
    text = text_of(msgspec.structs.replace(bare_evidence(), verdict=Verdict((), HEAD)))
    assert "INCONCLUSIVE" in text
    assert "without rules there is no evidence" in text


def test_absence_of_findings_is_not_reported_as_proof(page: Page) -> None:
    assert "No bound contradicts the claim. This does not prove the claim." in page.text
    assert "A failed attack does not show that every attack fails" in page.text


def audit_with(**changes: object) -> AuditReport:
    bound = msgspec.structs.replace(make_audit().bounds[0], **changes)
    return msgspec.structs.replace(make_audit(), bounds=(bound,))


def test_a_bound_above_the_claim_is_shouted() -> None:
    audit = audit_with(epsilon_lower=4.0)
    text = text_of(msgspec.structs.replace(make_evidence(), audit=audit))
    assert "The audit contradicts the claim" in text
    assert "No bound contradicts" not in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epsilon_lower": 2.98461}, False),
        ({"epsilon_lower": 2.98462}, True),
        ({"epsilon_lower": 4.0, "kind": BoundKind.ESTIMATE}, False),
        ({"epsilon_lower": 4.0, "kind": BoundKind.CONDITIONAL}, True),
        ({"epsilon_lower": 4.0, "delta": 1e-6}, False),
        ({"epsilon_lower": 4.0, "delta": 1e-4}, True),
        ({"epsilon_lower": 4.0, "delta": 0.0}, False),
    ],
)
def test_only_a_bound_at_a_delta_no_smaller_contradicts(changes, expected) -> None:
    assert bool(contradicting_bounds(audit_with(**changes), make_claim())) == expected


def test_result_states_its_adjacency_and_delta() -> None:
    answer = msgspec.structs.replace(make_answers()[0], adjacency=Adjacency.REPLACE_ONE)
    text = text_of(msgspec.structs.replace(make_evidence(), answers=(answer,)))
    assert "at delta 1e-05, replace-one, Poisson sampling" in text


@pytest.mark.parametrize(
    "change",
    [
        {"audit": msgspec.structs.replace(make_audit(), ledger_head="other")},
        {"verdict": Verdict((), "other")},
    ],
)
def test_a_report_on_two_ledgers_is_refused(change) -> None:
    with pytest.raises(IntegrityError, match="other"):
        report_page(msgspec.structs.replace(make_evidence(), **change))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_shown_is_rounded_against_ourselves(value) -> None:
    shown = Decimal(repr(value))
    assert Decimal(round_up(value)) >= shown
    assert Decimal(round_down(value)) <= shown


@given(st.floats(1e-300, 1e300))
def test_rounding_costs_less_than_a_thousandth(value) -> None:
    for text in (round_up(value), round_down(value), round_nearest(value)):
        assert abs(Decimal(text) / Decimal(value) - 1) < Decimal("0.00101")
        assert len(Decimal(text).normalize().as_tuple().digits) <= 4


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_rounding_keeps_order(one, other) -> None:
    assume(one <= other)
    assert Decimal(round_up(one)) <= Decimal(round_up(other))
    assert Decimal(round_down(one)) <= Decimal(round_down(other))


@pytest.mark.parametrize(
    ("value", "down", "up"),
    [
        (0.0, "0", "0"),
        (0.1, "0.1", "0.1"),
        (2.98461, "2.984", "2.985"),
        (9.99999, "9.999", "10"),
        (12345.0, "12340", "12350"),
        (3e-7, "3e-7", "3e-7"),
        (math.inf, "infinite", "infinite"),
    ],
)
def test_numbers_read_well(value, down, up) -> None:
    assert (round_down(value), round_up(value)) == (down, up)


def test_nan_is_never_shown() -> None:
    with pytest.raises(AccountingError):
        round_up(math.nan)
    with pytest.raises(InvalidArgument, match="auc"):  # no evidence can hold it
        msgspec.structs.replace(make_membership()[0], auc=math.nan)


def test_a_waived_rule_says_why_and_until_when(page: Page) -> None:
    assert "waived until 2027-01-31" in page.text
    assert "Waived: known outliers, ticket 123" in page.text
    assert "1 rule more is not met and is waived" in page.text
    assert "1 of 2 rules of audit waived" in page.text


def outcome_box(**changes: object) -> tuple[str, str]:
    """Return the style and the words of the verdict's box."""
    html = report_page(msgspec.structs.replace(make_evidence(), **changes))
    found = re.search(r'<div class="verdict (\w+)">\s*<p class="outcome">(.*?)</p>', html, re.S)
    assert found is not None
    return found[1], re.sub(r"<[^>]*>", "", found[2])


def passing(**changes: object) -> Verdict:
    rules = (RuleOutcome("claim.max_epsilon", Outcome.PASS, "small"),)
    basis = msgspec.structs.replace(make_basis(), **changes)
    return Verdict(rules, HEAD, claim=make_claim(), basis=basis)


def test_only_a_verdict_by_the_projects_policy_is_green() -> None:
    assert outcome_box(verdict=passing())[0] == "pass"
    assert outcome_box(verdict=passing(project_digest=""), project_digest="")[0] == "pass"
    others = (
        {"verdict": passing(policy_digest="12" * 32)},  # the project's was another then
        {"verdict": passing(), "project_digest": "34" * 32},  # it is another now
    )
    for changes in others:
        tone, words = outcome_box(**changes)
        assert tone == "unjudged"
        assert "under another policy than the project" in words
    tone, words = outcome_box(verdict=msgspec.structs.replace(passing(), basis=None))
    assert tone == "unjudged"
    assert "its policy was not recorded" in words


def test_the_page_says_by_which_policy_and_of_which_model(page: Page) -> None:
    for shown in (
        f"dpaudit.toml (SHA-256 {'cd' * 32})",
        f"SHA-256 {'ab' * 32}",
        f"SHA-256 {'ef' * 32}",
        "--inconclusive = warn (command line)",
        "2026-11-29 12:30:00 UTC",
        "every step may be published",
        "Warning: the waiver of claim.sampling (old) is not used",
    ):
        assert shown in page.text


def test_what_only_warns_is_told_as_such(page: Page) -> None:
    words = "a warning only: --inconclusive warn; 1 of 2 rules of audit waived"
    assert f"? INCONCLUSIVE ({words})" in page.text
    fails = msgspec.structs.replace(make_verdict(), inconclusive=InconclusiveHandling.FAIL)
    text = text_of(msgspec.structs.replace(bare_evidence(), verdict=fails))
    assert "a warning only" not in text
    assert "? INCONCLUSIVE" in text


def test_a_policy_whose_rules_are_all_waived_demands_nothing() -> None:
    waived = make_verdict().rules[-1:]
    text = text_of(msgspec.structs.replace(bare_evidence(), verdict=Verdict(waived, HEAD)))
    assert "Every rule of the policy is waived, so no rule counts" in text


def test_further_attacks_stand_beside_those_of_the_audit(page: Page) -> None:
    for name in ("loss threshold", "LiRA, 16 shadows", "RMIA", "RMIA, offline"):
        assert name in page.text
    assert "inconclusive: it scores below chance" in page.text
    assert "the model of a run, with 16 references" in page.text


def test_the_loss_of_both_commands_has_one_name_that_says_the_command() -> None:
    evidence = make_evidence()
    assert evidence.attack is not None
    report = msgspec.structs.replace(
        evidence.attack, membership=(made_attack("loss", 0.9, 0.53), *evidence.attack.membership)
    )
    shown = membership_attacks(msgspec.structs.replace(evidence, attack=report))
    names = [one.attack for one in shown]
    assert names[:3] == ["loss threshold", "LiRA, 16 shadows", "loss threshold (dpaudit attack)"]
    assert len(set(names)) == len(names)


def test_extraction_and_baselines_without_the_model_are_shown(page: Page) -> None:
    assert "Texts that the model completes from their beginning" in page.text
    assert "21 of 400" in page.text
    assert "2 of 900" in page.text
    assert "told from non-members by bag of words with an AUC of 0.51" in page.text


def test_attacks_on_another_ledger_are_named_and_not_shown() -> None:
    other = msgspec.structs.replace(make_attack_report(), ledger_head="other")
    text = text_of(msgspec.structs.replace(make_evidence(), attack=other))
    assert "attack.json is of another state of the ledger and is not shown" in text
    assert "RMIA" not in text


def test_every_finding_states_result_and_power(page: Page) -> None:
    assert "? INCONCLUSIVE by 2 tests" in page.text
    assert page.text.count("one record moved the sum by at most 0.999996 C") == 2
    assert page.text.count("a movement above 1.00002 C is detectable") == 2


def test_past_runs_are_listed_by_age_with_this_one_marked(page: Page) -> None:
    rows = [
        page.text.index(f"digits-{day}this run" if day == 4 else f"digits-{day}2026")
        for day in (1, 2, 3, 4)
    ]
    assert rows == sorted(rows)
    assert page.text.count("this run2026-10-04 12:30") == 1


def test_an_accountant_without_a_number_says_why(page: Page) -> None:
    assert "The zcdp accountant has no bound for these releases: no concentrated" in page.text


def test_user_level_claim_states_its_unit() -> None:
    claim = msgspec.structs.replace(make_claim(), unit=Unit.USER)
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert "adding or removing any one user makes" in text
    assert "People with several records" not in text


def test_tables_are_named_and_their_headers_say_what_they_head(page: Page) -> None:
    assert len(page.all("caption")) == len(page.all("table")) > 6
    assert all(header["scope"] in {"col", "row"} for header in page.all("th"))
