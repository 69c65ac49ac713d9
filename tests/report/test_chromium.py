"""The pages in a real browser: nothing is refused, nothing leaves, everyone can read them."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dpaudit.report.evidence import ReportEvidence
from dpaudit.report.report_pages import comparison_page, report_page
from dpaudit.vocabulary.verdict import Outcome, RuleOutcome
from tests.report.payloads import PAYLOADS
from tests.report.samples import (
    bare_evidence,
    filled_by,
    make_audit,
    make_evidence,
    make_two_runs,
    make_verdict,
)
from tests.report.stub_figures import undrawn

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES: dict[str, Callable[[], str]] = {
    "full": lambda: report_page(make_evidence()),
    "bare": lambda: report_page(bare_evidence()),
    "both": lambda: comparison_page(make_two_runs()),
}
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
}
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(event.violatedDirective + " " + event.blockedURI));
"""
# What sticks out to the right, if it is not inside of a table's own scrolled region.
OVERFLOWING = """() => [...document.querySelectorAll("body *")]
  .filter((one) => !one.closest(".scroll, .skip, svg"))
  .filter((one) => one.getBoundingClientRect().right > window.innerWidth + 0.5)
  .map((one) => one.tagName + "." + one.className)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: install one, or name it in CHROMIUM")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as library:
        running = library.chromium.launch(
            executable_path=found, args=["--no-sandbox"] if root else []
        )
        yield running
        running.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The address of each page."""
    folder = tmp_path_factory.mktemp("pages")
    for name, make in PAGES.items():
        (folder / f"{name}.html").write_text(make(), encoding="utf-8")
    return {name: Path(folder / f"{name}.html").as_uri() for name in PAGES}


@pytest.fixture(params=[(page, view) for page in PAGES for view in VIEWS], ids="-".join)
def opened(request: pytest.FixtureRequest, browser: Any, files: dict[str, str]) -> Iterator[Any]:
    """A page in a view, with what it said and asked for."""
    name, view = request.param
    context = browser.new_context(**VIEWS[view])
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.add_init_script(WATCH)
    page.goto(files[name])
    yield page
    context.close()


def test_pages_read_well_and_keep_to_themselves(opened: Any) -> None:
    assert opened.said == []
    assert opened.evaluate("window.violations") == []
    assert opened.asked == [opened.url]
    assert opened.evaluate(OVERFLOWING) == []
    width = opened.viewport_size["width"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert findings(opened) == []


MOST_HEIGHT = 6000
"""Pixels at a width of 1280, which the page of a run like the demo's may have."""


def as_tall_as_the_demo() -> ReportEvidence:
    """Return evidence with as many rows as ``./demo`` makes: 6 bounds, 1 attack, 10 rules."""
    full = make_evidence()
    audit = msgspec.structs.replace(
        make_audit(),
        confidence=0.9,
        bounds=tuple(
            msgspec.structs.replace(bound, name=f"{bound.name} {again}", confidence=0.99)
            for again in ("A", "B")
            for bound in make_audit().bounds
        ),
        membership=make_audit().membership[:1],
    )
    rules = tuple(
        RuleOutcome(f"audit.max_tpr_at_fpr.0.{number}", Outcome.PASS, 8 * "a reason of ten words ")
        for number in range(10)
    )
    return msgspec.structs.replace(
        full,
        audit=audit,
        attack=None,
        conformance=None,
        history=(),
        verdict=msgspec.structs.replace(make_verdict(), rules=rules),
    )


def test_the_report_of_a_run_like_the_demos_is_not_too_tall(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report_page(as_tall_as_the_demo()), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.as_uri())
    height = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    assert 3000 < height <= MOST_HEIGHT


def test_figures_use_the_width_of_the_page(browser: Any, files: dict[str, str]) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(files["full"])
    widths = page.evaluate("""[...document.querySelectorAll(".pair > figure")]
      .map((one) => one.getBoundingClientRect().width)""")
    shown = page.evaluate("document.querySelector('main').getBoundingClientRect().width")
    page.close()
    assert len(widths) == 7
    assert min(widths) > 0.48 * shown
    assert shown > 0.9 * 1280


def findings(page: Any) -> list[str]:
    """Return everything that axe-core finds, whatever its impact."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


def test_the_style_sheet_is_in_force(browser: Any, files: dict[str, str]) -> None:
    """A hash that is wrong would leave the pages bare, and every other test content."""
    light, dark = (browser.new_context(color_scheme=one) for one in ("light", "dark"))
    colour = "getComputedStyle(document.body).backgroundColor"
    shown = []
    for context in (light, dark):
        page = context.new_page()
        page.goto(files["full"])
        shown.append(page.evaluate(colour))
        lines = page.evaluate("""[...document.querySelectorAll("svg path")]
          .map((one) => getComputedStyle(one).stroke)""")
        assert "rgb(47, 127, 193)" in lines
        context.close()
    assert shown == ["rgb(253, 253, 252)", "rgb(21, 24, 28)"]


@pytest.mark.parametrize("name", PAGES)
def test_every_page_prints(browser: Any, files: dict[str, str], name: str) -> None:
    page = browser.new_page()
    page.goto(files[name])
    printed = page.pdf(format="A4")
    page.close()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") > 1


@pytest.fixture
def unprotected(browser: Any) -> Iterator[Any]:
    """A tab that ignores the page's policy: escaping alone must hold."""
    context = browser.new_context(bypass_csp=True)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("dialog", lambda dialog: (page.said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda asked: page.asked.append(asked.url))
    yield page
    context.close()


FIRED = "new Promise((done) => setTimeout(() => done(window.fired), 150))"


def test_a_payload_that_is_not_text_is_seen(unprotected: Any) -> None:
    unprotected.set_content("<!doctype html><img src=x onerror=window.fired=1>")
    assert unprotected.evaluate(FIRED) == 1


@pytest.mark.parametrize("kind", ["one", "both"])
@pytest.mark.parametrize("first", range(0, len(PAYLOADS), 36))
def test_no_payload_runs_or_fetches_even_without_the_policy(
    unprotected: Any, kind: str, first: int
) -> None:
    """All payloads at once, each in a string of its own, the first one in another each time."""
    turn = cycle((*PAYLOADS[first:], *PAYLOADS[:first]))
    # What is one string in several places, such as a ledger's head, stays one.
    given: defaultdict[str, str] = defaultdict(lambda: next(turn))
    make, render_page = {
        "one": (make_evidence, report_page),
        "both": (make_two_runs, comparison_page),
    }[kind]
    with undrawn():
        html = render_page(filled_by(make(), given.__getitem__))
    unprotected.set_content(html)
    assert unprotected.evaluate(FIRED) is None
    assert unprotected.said == []
    assert unprotected.asked == []
    assert unprotected.evaluate("document.scripts.length") == 0
