"""The page of a verdict: nothing runs, nothing is fetched, the style alone is let in."""

from __future__ import annotations

import base64
import hashlib
import sys

import html5lib
import pytest

from dpaudit.report.verdicts import VERDICT_FORMATS
from dpaudit.report.verdicts.html import verdict_html
from dpaudit.vocabulary.errors import MissingExtra
from dpaudit.vocabulary.verdict import RuleOutcome
from tests.report.verdicts.verdicts import FAIL, NASTY, PASS, WAIVED, judged

OURS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "section", "footer"),
    *("p", "h1", "h2", "div", "code", "br", "dl", "dt", "dd"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


@pytest.mark.parametrize("text", NASTY)
def test_foreign_words_make_no_element_and_no_attribute(text: str) -> None:
    rule = RuleOutcome(text, FAIL.outcome, text)
    page = html5lib.parse(
        verdict_html(judged(rule, WAIVED, run=text).verdict), namespaceHTMLElements=False
    )
    assert {element.tag for element in page.iter()} <= OURS
    names = {name for element in page.iter() for name in element.keys()}  # noqa: SIM118
    assert not {name for name in names if name.startswith("on") or name in {"href", "src", "style"}}


def test_the_policy_of_the_page_lets_in_its_style_alone() -> None:
    page = html5lib.parse(verdict_html(judged(PASS).verdict), namespaceHTMLElements=False)
    style = str(page.find(".//style").text)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [
        meta.get("content") for meta in page.iter("meta") if meta.get("http-equiv") is not None
    ]
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert "--fail" in style


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    for name in ("dpaudit.report.page_template", "dpaudit.report.verdicts.html"):
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtra, match=r"pip install 'dpaudit\[report\]'"):
        VERDICT_FORMATS["html"](judged(PASS))
