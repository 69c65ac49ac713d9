"""Figures stand in a page that takes no style from an attribute; extremes can be drawn."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import islice

import msgspec
import pytest

from dpaudit.report import membership_figures, privacy_figures
from dpaudit.report.evidence import (
    CanaryScoreHistogram,
    EpsilonCurve,
    ProfilePoint,
    ReportEvidence,
    TradeoffPoint,
)
from dpaudit.report.page_figures import run_figures
from dpaudit.report.svg_figure import line_styles, standalone_svg
from dpaudit.vocabulary.privacy_terms import Bound
from tests.report.samples import (
    make_audit,
    make_canary_scores,
    make_claim,
    make_evidence,
    make_membership,
)

FIGURES = {"steps", "profile", "tradeoff", "audit", "canaries", "roc", "history"}

# What SVG lets an attribute say: https://www.w3.org/TR/SVG2/styling.html#PresentationAttributes
PRESENTATION = {
    *("fill", "fill-opacity", "font-size", "opacity", "stroke", "stroke-dasharray"),
    *("stroke-dashoffset", "stroke-linecap", "stroke-linejoin", "stroke-opacity"),
    *("stroke-width", "text-anchor", "transform", "clip-path"),
}
GEOMETRY = {"id", "d", "x", "y", "width", "height", "href", "viewBox", "patternUnits"}


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return {name: str(svg) for name, svg in run_figures(make_evidence()).items()}


def test_the_full_evidence_has_every_figure(drawn: dict[str, str]) -> None:
    assert set(drawn) == FIGURES


def test_no_figure_has_a_style_or_an_attribute_that_is_not_known(drawn: dict[str, str]) -> None:
    for svg in drawn.values():
        root, *below = ET.fromstring(svg).iter()
        assert set(root.attrib) == {"class", "viewBox", "role", "aria-label"}
        assert {key for element in below for key in element.attrib} <= PRESENTATION | GEOMETRY


def test_lines_keep_their_colours_and_text_follows_the_page(drawn: dict[str, str]) -> None:
    for name in FIGURES - {"history"}:
        assert 'stroke="#2f7fc1"' in drawn[name], name
    for svg in drawn.values():
        assert {text.get("fill") for text in ET.fromstring(svg).iter("text")} == {"currentColor"}


def test_the_same_evidence_is_drawn_the_same(drawn: dict[str, str]) -> None:
    again = membership_figures.draw_canary_scores(
        make_canary_scores(), label=ET.fromstring(drawn["canaries"]).get("aria-label", "")
    )
    assert again == drawn["canaries"]


def test_a_picture_alone_names_its_namespace_and_a_font(drawn: dict[str, str]) -> None:
    root = ET.fromstring(standalone_svg(drawn["audit"]))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("font-family") == "sans-serif"


def test_twenty_styles_in_a_row_differ() -> None:
    assert len(set(islice(line_styles(), 20))) == 20


def test_no_attack_is_drawn_in_the_colour_of_the_claim() -> None:
    evidence = make_evidence()
    many = tuple(
        msgspec.structs.replace(attack, attack=f"{attack.attack} {i}", band=())
        for i in range(4)
        for attack in make_membership()
    )
    svg = membership_figures.draw_tradeoff(evidence.tradeoff, many, label="x")
    assert svg.count('stroke="#d55e00"') == 3  # the limit, its hatching, its place in the legend


def test_two_figures_side_by_side_have_axes_as_long_as_each_other() -> None:
    bounds = make_audit().bounds
    short, long = (
        privacy_figures.draw_audit_bounds(bounds, claimed, 1e-5, label="x", furthest=8.0)
        for claimed in (3.0, 8.0)
    )
    ticks = [[text.text for text in ET.fromstring(svg).iter("text")] for svg in (short, long)]
    assert ticks[0][:5] == ticks[1][:5]


@pytest.mark.parametrize(
    ("counts", "expected"), [((0, 4, 0), (1, 2)), ((2, 0, 2), (0, 1)), ((1, 1, 3), (2, 3))]
)
def test_the_middle_of_a_histogram_is_the_bin_that_holds_the_median(counts, expected) -> None:
    assert membership_figures.median_bin((0, 1, 2, 3), counts) == expected


def extreme() -> ReportEvidence:
    bound = msgspec.structs.replace(
        make_audit().bounds[0], epsilon_lower=0.0, detectable_epsilon=None
    )
    attack = msgspec.structs.replace(
        make_membership()[0],
        members=1,
        nonmembers=1,
        roc=((0.0, 0.0), (1.0, 1.0)),
        band=(),
        tpr_at_fpr=(),
    )
    return msgspec.structs.replace(
        make_evidence(),
        claim=msgspec.structs.replace(make_claim(), epsilon=Bound(0, 0)),
        curves=(EpsilonCurve("pld", (1,), (0.0,)), EpsilonCurve("rdp", (1, 2), (1.0, math.inf))),
        profile=(ProfilePoint(1e-5, Bound(0, 0)),),
        tradeoff=(TradeoffPoint(0.0, Bound(0, 0)), TradeoffPoint(1.0, Bound(1, 1))),
        audit=msgspec.structs.replace(make_audit(), bounds=(bound,), membership=(attack,)),
        attack=None,
        canaries=CanaryScoreHistogram("one", (0.0, 1.0), (1,), (0,)),
        history=make_evidence().history[:1],
    )


def test_extreme_evidence_can_be_drawn() -> None:
    assert set(run_figures(extreme())) == FIGURES
