"""A hundred payloads in every string of the evidence: whatever a string holds is text."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest

from dpaudit.report import history_figures, membership_figures, privacy_figures
from dpaudit.report.evidence import EpsilonCurve
from dpaudit.report.report_pages import comparison_page, report_page
from tests.report.active_content import assert_inert, elements, shape
from tests.report.payloads import PAYLOADS
from tests.report.samples import (
    DELTA,
    filled_with,
    make_attack_report,
    make_audit,
    make_canary_scores,
    make_claim,
    make_evidence,
    make_federated_evidence,
    make_history,
    make_two_runs,
)
from tests.report.stub_figures import undrawn

PAGES: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "one": (cache(make_evidence), report_page),
    "both": (cache(make_two_runs), comparison_page),
    "federation": (cache(make_federated_evidence), report_page),
}


def fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every field of every struct in ``value``, named by the struct's type."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f"{type(value).__name__}.{name}", getattr(value, name)
            yield from fields(getattr(value, name))
    elif isinstance(value, tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from fields(item)


def test_the_samples_leave_no_field_empty() -> None:
    """So that a string field that is new is filled by itself, or this test asks for it."""
    filled: dict[str, bool] = {}
    samples = (make_evidence(), make_two_runs(), make_federated_evidence())
    for name, value in (pair for sample in samples for pair in fields(sample)):
        filled[name] = filled.get(name, False) or value not in (None, (), {}, "")
    participant = "FederationHeader.participant"  # None in the ledger of a server
    assert [name for name, full in filled.items() if not full] == [participant]


def test_every_string_of_the_evidence_is_filled() -> None:
    """By what would be written as JSON: no string is left but those of closed sets and dates."""
    marked = msgspec.to_builtins(filled_with(make_evidence(), "PAYLOAD"))
    kept = {text for text in _strings(marked) if text != "PAYLOAD"}
    closed = {"pld", "digits-eps3", make_claim().ledger_head, "gradient canaries, every step"}
    assert not kept & closed
    assert len(kept) < 30
    assert all(len(text) < 30 for text in kept)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def test_there_are_a_hundred_payloads() -> None:
    assert len(set(PAYLOADS)) >= 100


@cache
def plain_shape(kind: str) -> list[tuple[str, tuple[str, ...]]]:
    make, render_page = PAGES[kind]
    return shape(render_page(filled_with(make(), "name")))


# The templates are those of one run: a third of the payloads meets the other pages by default.
FILLED = [
    pytest.param(
        payload, kind, id=f"{number}-{kind}",
        marks=() if kind == "one" or number % 3 == 0 else pytest.mark.slow,
    )
    for number, payload in enumerate(PAYLOADS)
    for kind in PAGES
]  # fmt: skip


@pytest.mark.parametrize(("payload", "kind"), FILLED)
def test_whatever_a_string_holds_is_text(payload: str, kind: str) -> None:
    make, render_page = PAGES[kind]
    with undrawn():
        html = render_page(filled_with(make(), payload))
        plain = plain_shape(kind)
    assert_inert(html)
    assert "<script" not in html.lower()
    assert not set("\x00\x1b\u202e\ufffe") & set(html)
    assert html.encode()
    assert shape(html) == plain


@pytest.mark.parametrize("kind", PAGES)
def test_empty_strings_break_nothing(kind: str) -> None:
    make, render_page = PAGES[kind]
    with undrawn():
        assert_inert(render_page(filled_with(make(), "")))


@pytest.mark.parametrize("kind", PAGES)
def test_drawn_pages_are_inert_too(kind: str) -> None:
    make, render_page = PAGES[kind]
    payload = "</text></svg></figure><img src=x onerror=window.fired=1>"
    assert_inert(render_page(filled_with(make(), payload)))


def _named(values: Sequence[Any], field: str) -> list[Any]:
    """Return as many of ``values`` as there are payloads, each named by one."""
    return [
        msgspec.structs.replace(values[i % len(values)], **{field: payload})
        for i, payload in enumerate(PAYLOADS)
    ]


FIGURES: dict[str, Callable[[], str]] = {
    "steps": lambda: privacy_figures.draw_epsilon_over_steps(
        [EpsilonCurve(payload, (1, 2), (1.0, 2.0)) for payload in PAYLOADS], label="x"
    ),
    "profiles": lambda: privacy_figures.draw_privacy_profiles(
        [(payload, make_evidence().profile[:3], make_claim()) for payload in PAYLOADS], label="x"
    ),
    "bounds": lambda: privacy_figures.draw_audit_bounds(
        _named(make_audit().bounds, "name"), 3.0, DELTA, label="x"
    ),
    "tradeoff": lambda: membership_figures.draw_tradeoff(
        make_evidence().tradeoff, _named(make_attack_report().membership, "attack"), label="x"
    ),
    "tradeoffs": lambda: membership_figures.draw_tradeoffs(
        [(payload, make_evidence().tradeoff) for payload in PAYLOADS], label="x"
    ),
    "canaries": lambda: membership_figures.draw_canary_scores(
        filled_with(make_canary_scores(), PAYLOADS[0]), label="x"
    ),
    "history": lambda: history_figures.draw_past_runs(_named(make_history(), "run"), label="x"),
}


@pytest.mark.filterwarnings("ignore:constrained_layout")  # a hundred names find no room
@pytest.mark.parametrize("name", FIGURES)
def test_every_payload_as_a_name_in_a_figure_is_text(name: str) -> None:
    svg = FIGURES[name]()
    found = elements(f"<!doctype html><style></style>{svg}")
    assert_inert(f"<!doctype html><style></style>{svg}")
    assert sum(tag == "svg" for tag, _ in found) == 1
    assert ET.fromstring(svg).tag == "svg"
