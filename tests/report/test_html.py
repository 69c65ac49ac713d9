"""The HTML report: nothing runs, nothing is fetched, nothing is rounded in our favour."""

from __future__ import annotations

import math
import re
from collections import Counter
from decimal import Decimal
from functools import cache
from html.parser import HTMLParser

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dpaudit.report.evidence import Curve, ProfilePoint, ReportEvidence
from dpaudit.report.html import contradicting, render
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import (
    AuditReport,
    AuditResult,
    BoundKind,
    MembershipResult,
    TprAtFpr,
)
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.errors import AccountingError, IntegrityError
from dpaudit.vocabulary.ledger import Randomness, Sampling
from dpaudit.vocabulary.rounding import round_down, round_near, round_up
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome, Verdict

HEAD = "5f2b" * 16
DELTA = 1e-5
SECTIONS = ["claim", "accountants", "steps", "profile", "audit", "membership", "gate"]
PAYLOADS = [
    "<script>alert(1)</script>",
    '" onload="alert(1)',
    "' onerror='alert(1)",
    "</svg><script>alert(1)</script>",
    "</title></style><script>alert(1)</script>",
    "--><img src=x onerror=alert(1)>",
    "]]><script>alert(1)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;",
    "javascript:alert(1)",
    "$\\frac{1}{",
    "$x$ 100% _under_",
    "_hidden",
    "\x00\x1b[31m\n\t",
    "名前 \u202e اسم 🎲",
    "not utf-8: \udcff",
    "word " * 200,
    "x" * 2000,
]


def make_claim() -> Claim:
    return Claim(
        epsilon=Bound(2.9703, 2.98461),
        delta=DELTA,
        accountant="pld",
        adjacency=Adjacency.ADD_OR_REMOVE_ONE,
        sampling=Sampling.POISSON,
        randomness=Randomness.SECURE,
        releases=101,
        ledger_head=HEAD,
        dpaudit_version="0.1.0",
        leaves_out=("hyperparameter-tuning",),
        takes_as_public=("feature shape", "label set", "hyper-parameters"),
    )


def make_answers() -> tuple[EpsilonAnswer, ...]:
    methods = {
        "pld": {"privacy loss distribution": Bound(2.9703, 2.98461)},
        "rdp": {
            "moments, integer orders": Bound(0, 3.3512),
            "Renyi, real orders": Bound(0, 3.3017),
        },
        "naive": {
            "basic composition": Bound(0, 95.1234),
            "advanced composition": Bound(0, 60.4321),
        },
    }
    return tuple(
        EpsilonAnswer(
            name,
            Adjacency.ADD_OR_REMOVE_ONE,
            DELTA,
            Bound(max(b.lower for b in by.values()), min(b.upper for b in by.values())),
            by,
            Sampling.POISSON,
        )
        for name, by in methods.items()
    )


def make_audit() -> AuditReport:
    bounds = (
        AuditResult(
            name="gradient canaries, final model",
            method="one-run guessing, Steinke, Nasr & Jagielski 2023",
            kind=BoundKind.CERTIFIED,
            epsilon_lower=0.9042,
            delta=DELTA,
            confidence=0.975,
            assumes="",
            trials=1000,
            guesses=200,
            correct=160,
            thresholds="fixed before the bits were read",
            detectable_epsilon=4.2137,
        ),
        AuditResult(
            name="gradient canaries, every step",
            method="Gaussian mechanism fitted to the scores, Clopper-Pearson",
            kind=BoundKind.CONDITIONAL,
            epsilon_lower=2.1049,
            delta=DELTA,
            confidence=0.975,
            assumes="scores of different canaries are independent and Gaussian",
            trials=1000,
            guesses=1000,
            correct=702,
            thresholds="all canaries are guessed",
            detectable_epsilon=3.4,
        ),
        AuditResult(
            name="mislabelled inputs",
            method="plug-in ratio of rates",
            kind=BoundKind.ESTIMATE,
            epsilon_lower=1.3,
            delta=DELTA,
            confidence=0.95,
            assumes="nothing; it is no bound",
            trials=400,
            guesses=80,
            correct=53,
            thresholds="best of 20 in hindsight",
        ),
    )
    return AuditReport(HEAD, 0.95, bounds, make_membership(), heldout_accuracy=0.931)


def make_membership() -> tuple[MembershipResult, ...]:
    def attack(name: str, power: float, auc: float) -> MembershipResult:
        fprs = [i / 400 for i in range(401)]
        return MembershipResult(
            attack=name,
            members=400,
            nonmembers=400,
            auc=auc,
            balanced_accuracy=0.527,
            tpr_at_fpr=(
                TprAtFpr(0.01, 0.0125, Bound(0.00408, 0.02894), 0.95),
                TprAtFpr(0.1, 0.1175, Bound(0.0877, 0.1532), 0.95),
            ),
            roc=tuple((fpr, fpr**power) for fpr in fprs),
        )

    return attack("loss threshold", 0.92, 0.5208), attack("LiRA, 16 shadows", 0.85, 0.5411)


def make_evidence() -> ReportEvidence:
    steps = tuple(range(5, 101, 5))
    shapes = {"pld": (2.98461, 0.5), "rdp": (3.3017, 0.5), "naive": (60.4321, 0.9)}
    return ReportEvidence(
        run="digits-eps3",
        claim=make_claim(),
        mechanism_in_words=(
            "100 steps of DP-SGD: Gaussian noise of 1.2 times the clip norm on batches that each "
            "record joins with probability 0.1; and the record count, once, with noise 50"
        ),
        answers=make_answers(),
        curves=tuple(
            Curve(name, steps, tuple(end * (n / 100) ** power for n in steps))
            for name, (end, power) in shapes.items()
        ),
        profile=tuple(
            ProfilePoint(delta, Bound(0.995 * epsilon - 0.03, epsilon))
            for k in range(1, 37)
            for delta in (10 ** (-k / 3),)
            for epsilon in (2.98461 * math.sqrt(k / 15),)
        ),
        audit=make_audit(),
        verdict=Verdict(
            (
                RuleOutcome("claim.max_epsilon", Outcome.HOLDS, "2.985 is at most 3"),
                RuleOutcome("claim.may_leave_out", Outcome.HOLDS, "tuning may be left out"),
                RuleOutcome(
                    "audit.min_power_epsilon",
                    Outcome.INCONCLUSIVE,
                    "the audit would have caught 3.4, not 2",
                ),
            ),
            HEAD,
        ),
    )


def bare_evidence() -> ReportEvidence:
    return msgspec.structs.replace(
        make_evidence(), answers=(), curves=(), profile=(), audit=None, verdict=None
    )


class Page(HTMLParser):
    """What a browser would see: elements, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def filled_with(value: object, payload: str) -> object:
    """Put ``payload`` into every string of the evidence, keys of dictionaries too."""
    if isinstance(value, str):
        return payload
    if isinstance(value, tuple):
        return tuple(filled_with(item, payload) for item in value)
    if isinstance(value, dict):
        return dict.fromkeys([payload], filled_with(next(iter(value.values())), payload))
    if isinstance(value, msgspec.Struct):
        fields = {
            name: filled_with(getattr(value, name), payload) for name in value.__struct_fields__
        }
        return type(value)(**fields)
    return value


def text_of(evidence: ReportEvidence) -> str:
    return Page(render(evidence)).text


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(make_evidence()))


def test_the_page_runs_nothing_and_fetches_nothing(page: Page) -> None:
    assert_inert(page)
    assert "http" not in "".join(page.words)


def assert_inert(page: Page) -> None:
    allowed = {"html", "head", "meta", "title", "style", "body", "header", "main", "section"}
    allowed |= {"footer", "h1", "h2", "h3", "p", "strong", "span", "small", "b", "a", "code", "br"}
    allowed |= {"ul", "li", "dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th", "td"}
    allowed |= {"figure", "figcaption", "svg", "g", "path", "use", "text", "tspan", "defs"}
    allowed |= {"clippath", "rect", "pattern"}
    assert {name for name, _ in page.elements} <= allowed
    for name, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "src"], name
        for key in ("href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith("#"), name
        for key, value in attributes.items():
            if key not in {"aria-label", "content"}:
                assert "url(" not in (value or "").replace("url(#", ""), (name, key)


def test_the_policy_of_the_page_forbids_all_but_inline_styles(page: Page) -> None:
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    allowed = dict(rule.split(maxsplit=1) for rule in (policy["content"] or "").split("; "))
    assert allowed["default-src"] == "'none'"
    assert allowed["style-src"] == "'unsafe-inline'"
    assert allowed["img-src"] == "data:"
    assert "script-src" not in allowed


def test_the_style_sheet_fetches_nothing() -> None:
    styles = re.findall(r"<style>(.*?)</style>", render(make_evidence()), re.DOTALL)
    assert len(styles) == 1
    assert not re.search(r"url\(|@import|expression", styles[0])


@pytest.mark.parametrize("make", [make_evidence, bare_evidence])
def test_every_section_is_there_in_order_and_named(make) -> None:
    page = Page(render(make()))
    sections = page.all("section")
    assert [section["id"] for section in sections] == SECTIONS
    headings = {heading["id"] for heading in page.all("h2")}
    assert headings == {section["aria-labelledby"] for section in sections}


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
    assert len(drawings) == 4
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert len((drawing["aria-label"] or "").split()) > 8
        assert drawing["viewbox"]
        assert "width" not in drawing


def test_figures_hold_text_that_follows_the_colour_of_the_page() -> None:
    html = render(make_evidence())
    assert "#010203" not in html
    assert "fill: currentColor" in html
    assert "<metadata" not in html
    assert "<?xml" not in html
    assert html.count("<!doctype") == 1


def test_the_same_evidence_makes_the_same_page() -> None:
    assert render(make_evidence()) == render(make_evidence())


def test_what_was_not_measured_is_said_to_be_so() -> None:
    page = Page(render(bare_evidence()))
    assert not page.all("svg")
    assert not page.all("table")
    for words in (
        "not judged yet",
        "No other accountant was asked: not measured",
        "Epsilon against steps was not measured",
        "The privacy profile was not measured",
        "No lower bound on epsilon was measured",
        "Membership inference was not measured",
        "accuracy on held-out records was not measured",
        "this run was not measured against any policy",
    ):
        assert words in page.text


def test_an_audit_that_measured_nothing_draws_nothing() -> None:
    evidence = msgspec.structs.replace(make_evidence(), audit=AuditReport(HEAD, 0.95, (), ()))
    page = Page(render(evidence))
    assert len(page.all("svg")) == 2
    assert "No lower bound on epsilon was measured" in page.text


def test_the_claim_is_told_with_everything_it_depends_on(page: Page) -> None:
    assert (
        "At delta 1e-05, epsilon is at most 2.985 (and certainly not below 2.97), by the pld "
        "accountant, under add-or-remove-one, with Poisson sampling and secure randomness, "
        "101 releases."
    ) in page.text
    assert make_evidence().mechanism_in_words in page.text
    assert "feature shape, label set, hyper-parameters" in page.text
    assert "hyperparameter-tuning" in page.text
    assert "Other runs on the same records, tuning runs included" in page.text
    assert "keep it internal" in page.text
    assert HEAD in page.text
    assert "Seeded" not in page.text


def test_a_claim_without_declarations_says_so() -> None:
    claim = msgspec.structs.replace(
        make_claim(), epsilon=Bound(0, 3), leaves_out=(), takes_as_public=(), releases=1
    )
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert text.count("Nothing was declared") == 2
    assert "no lower bound is known" in text
    assert "1 release." in text


def test_seeded_randomness_is_warned_of() -> None:
    claim = msgspec.structs.replace(make_claim(), randomness=Randomness.SEEDED)
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert "Whoever knows the seed knows the noise" in text


@pytest.mark.parametrize("epsilon", [0.0, 1e-300, 50.0, 51.0, 1e5, 1e300])
@pytest.mark.parametrize("adjacency", Adjacency)
@pytest.mark.parametrize("sampling", Sampling)
def test_any_claim_can_be_told(epsilon, adjacency, sampling) -> None:
    claim = msgspec.structs.replace(
        make_claim(), epsilon=Bound(0, epsilon), adjacency=adjacency, sampling=sampling
    )
    text = text_of(msgspec.structs.replace(bare_evidence(), claim=claim))
    assert ("protects nobody" in text) == (epsilon > 50)


@pytest.mark.parametrize("outcome", Outcome)
def test_the_verdict_is_told_in_words(outcome) -> None:
    verdict = Verdict((RuleOutcome("claim.max_epsilon", outcome, "because"),), HEAD)
    page = Page(render(msgspec.structs.replace(bare_evidence(), verdict=verdict)))
    banner = page.text.index("digits-eps3", page.text.index("Privacy report"))
    assert outcome.value in page.text[banner : banner + 40]
    assert page.text.count("because") == 1


def test_a_verdict_without_rules_is_no_success() -> None:
    text = text_of(msgspec.structs.replace(bare_evidence(), verdict=Verdict((), HEAD)))
    assert "INCONCLUSIVE" in text
    assert "no rules are no evidence" in text


def test_finding_nothing_is_never_told_as_a_proof(page: Page) -> None:
    assert "No bound here contradicts the claim. That is not a proof" in page.text
    assert "not that none would succeed" in page.text


def audit_with(**changes: object) -> AuditReport:
    bound = msgspec.structs.replace(make_audit().bounds[0], **changes)
    return msgspec.structs.replace(make_audit(), bounds=(bound,))


def test_a_bound_above_the_claim_is_shouted() -> None:
    audit = audit_with(epsilon_lower=4.0)
    text = text_of(msgspec.structs.replace(make_evidence(), audit=audit))
    assert "The audit contradicts the claim" in text
    assert "No bound here contradicts" not in text


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
    assert bool(contradicting(audit_with(**changes), make_claim())) == expected


def test_an_answer_to_another_question_says_which() -> None:
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
        render(msgspec.structs.replace(make_evidence(), **change))


@cache
def plain_page() -> Page:
    return Page(render(filled_with(make_evidence(), "name")))


def test_empty_strings_break_nothing() -> None:
    assert_inert(Page(render(filled_with(make_evidence(), ""))))


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_whatever_a_string_holds_is_text(payload) -> None:
    evidence = filled_with(make_evidence(), payload)
    html = render(evidence)
    page = Page(html)
    assert_inert(page)
    assert "<script" not in html.lower()
    assert not set("\x00\x1b\u202e") & set(html)
    assert html.encode()
    plain = plain_page()
    assert [name for name, _ in page.elements] == [name for name, _ in plain.elements]
    assert [list(attributes) for _, attributes in page.elements] == [
        list(attributes) for _, attributes in plain.elements
    ]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_is_shown_is_rounded_against_ourselves(value) -> None:
    shown = Decimal(repr(value))
    assert Decimal(round_up(value)) >= shown
    assert Decimal(round_down(value)) <= shown


@given(st.floats(1e-300, 1e300))
def test_rounding_costs_less_than_a_thousandth(value) -> None:
    for text in (round_up(value), round_down(value), round_near(value)):
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
    attack = msgspec.structs.replace(make_membership()[0], auc=math.nan)
    audit = msgspec.structs.replace(make_audit(), membership=(attack,))
    with pytest.raises(AccountingError):
        render(msgspec.structs.replace(make_evidence(), audit=audit))


def test_extreme_evidence_can_be_drawn() -> None:
    audit = audit_with(epsilon_lower=0.0, detectable_epsilon=None)
    attack = msgspec.structs.replace(
        make_membership()[0], members=1, nonmembers=1, roc=((0.0, 0.0), (1.0, 1.0)), tpr_at_fpr=()
    )
    evidence = msgspec.structs.replace(
        make_evidence(),
        claim=msgspec.structs.replace(make_claim(), epsilon=Bound(0, 0)),
        curves=(Curve("pld", (1,), (0.0,)), Curve("rdp", (1, 2), (1.0, math.inf))),
        profile=(ProfilePoint(1e-5, Bound(0, 0)),),
        audit=msgspec.structs.replace(audit, membership=(attack,)),
    )
    assert len(Page(render(evidence)).all("svg")) == 4
