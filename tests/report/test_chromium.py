"""The pages in a real browser: nothing is refused, nothing leaves, everyone can read them."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from dpaudit.report.html import render
from dpaudit.report.page_comparison import render_both
from tests.report.payloads import PAYLOADS
from tests.report.samples import (
    bare_evidence,
    filled_by,
    make_evidence,
    make_two_runs,
)
from tests.report.undrawn import undrawn

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGES: dict[str, Callable[[], str]] = {
    "full": lambda: render(make_evidence()),
    "bare": lambda: render(bare_evidence()),
    "both": lambda: render_both(make_two_runs()),
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
    assert serious_findings(opened) == []


def serious_findings(page: Any) -> list[str]:
    """Return what axe-core finds serious or critical."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in {"serious", "critical"}
        for node in one["nodes"]
    ]


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
        "one": (make_evidence, render),
        "both": (make_two_runs, render_both),
    }[kind]
    with undrawn():
        html = render_page(filled_by(make(), given.__getitem__))
    unprotected.set_content(html)
    assert unprotected.evaluate(FIRED) is None
    assert unprotected.said == []
    assert unprotected.asked == []
    assert unprotected.evaluate("document.scripts.length") == 0
