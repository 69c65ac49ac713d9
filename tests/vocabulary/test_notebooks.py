"""Tables and figures of results in notebooks: complete, escaped, and without matplotlib a hint."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from ledgers import header

from dpaudit.accountants import answers, gdp, naive, pld, rdp, risk, zcdp
from dpaudit.vocabulary.claim import (
    Claim,
    NoiseAnswer,
    QueryNoise,
    RiskNoiseAnswer,
    SplitAnswer,
)
from dpaudit.vocabulary.errors import MissingExtra
from dpaudit.vocabulary.ledger import PrivacyLedger, Randomness, ReleaseEntry, Sampling
from dpaudit.vocabulary.mechanism import Composed, Gaussian, Laplace, PoissonSampled, Repeated
from dpaudit.vocabulary.mechanism_words import mechanism_in_words
from dpaudit.vocabulary.notebooks import MOST_LABELS, MOST_ROWS, bound_in_words, table_html
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

ADD = Adjacency.ADD_OR_REMOVE_ONE
HOSTILE = '<script>alert(1)</script>"&'


class Texts(HTMLParser):
    """The elements and texts of a table."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def claim(**changes: Any) -> Claim:
    fields: dict[str, Any] = {
        "epsilon": Bound(2.9, 3.0),
        "delta": 1e-5,
        "accountant": "pld",
        "adjacency": ADD,
        "sampling": Sampling.POISSON,
        "randomness": Randomness.SECURE,
        "releases": 1000,
        "ledger_head": "0" * 64,
        "dpaudit_version": "0",
    }
    return Claim(**{**fields, **changes})


LEDGER = PrivacyLedger(
    header(),
    tuple(
        ReleaseEntry(HOSTILE, mechanism, step=step)
        for step, mechanism in enumerate((*[Gaussian(2.0)] * 3, Laplace(1.0)))
    ),
    "0" * 64,
)

RESULTS = {
    "pld": (pld.profile(Repeated(Gaussian(10.0), 100)), "4.378"),
    "gdp": (gdp.profile(Gaussian(1.0)), "4.378"),
    "rdp": (rdp.profile(Gaussian(1.0)), "a Gaussian (noise multiplier 1)"),
    "zcdp": (zcdp.profile(Laplace(1.0)), "Laplace"),
    "naive": (naive.profile(Laplace(1.0)), "add-or-remove-one"),
    "curve": (risk.tradeoff(gdp.profile(Gaussian(1.0)), [0.01, 0.1]), "0.09237"),
    "epsilon": (answers.compute_epsilon("naive", Gaussian(1.0), 1e-5, ADD, None), "basic"),
    "delta": (answers.compute_delta(1.0, Gaussian(1.0), ADD), "0.127"),
    "risk": (answers.compute_risk(Gaussian(1.0), ADD, (0.1,)), "advantage"),
    "noise": (
        NoiseAnswer(1.5, 2.0, 1e-5, Bound(1.9, 2.0), "pld", ADD, Gaussian(1.5), "0"),
        "noise multiplier",
    ),
    "split": (
        SplitAnswer(
            {"sum": QueryNoise("laplace", 4.5, 1.0, 1.0, 1)},
            2.0,
            1e-5,
            Bound(1.9, 2.0),
            "pld",
            ADD,
            Laplace(4.5),
            "0",
        ),
        "laplace noise of 4.5",
    ),
    "risk noise": (
        RiskNoiseAnswer(1.5, "tpr", 0.1, 0.01, Bound(0.09, 0.1), "pld", ADD, Gaussian(1.5), "0"),
        "tpr",
    ),
    "claim": (claim(), "2.9 to 3"),
    "ledger": (LEDGER, "3 times"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_table_with_its_numbers(name: str) -> None:
    result, expected = RESULTS[name]
    html = result._repr_html_()
    assert expected in html
    assert "noise_multiplier=" not in html
    assert set(Texts(html).tags) <= {
        "table",
        "caption",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
    }


def test_names_in_a_result_are_text_and_no_markup() -> None:
    html = claim(unaccounted=(HOSTILE,), accountant=HOSTILE)._repr_html_()
    assert "<script" not in html
    assert HOSTILE in Texts(html).texts
    assert f"3 times {HOSTILE}" in Texts(LEDGER._repr_html_()).texts
    assert "script" not in Texts(table_html(HOSTILE, [(HOSTILE, HOSTILE)], (HOSTILE,))).tags


def test_bounds_are_rounded_outward_and_long_tables_are_cut() -> None:
    assert bound_in_words(Bound(1.23456, 1.23456)) == "1.234 to 1.235"
    assert bound_in_words(Bound(0.0, 1e-30)) == "0 to 1e-30"
    html = table_html("rows", [(i, i) for i in range(MOST_ROWS + 7)])
    assert "7 more rows" in html
    assert Texts(html).tags.count("td") == MOST_ROWS + 1


@pytest.mark.parametrize("name", [one for one in RESULTS if hasattr(RESULTS[one][0], "plot")])
def test_figures_are_drawn_on_given_axes(name: str) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert RESULTS[name][0].plot(axes) is axes
    assert axes.get_xlabel()
    assert axes.lines or axes.patches
    figure.canvas.draw()


def test_the_legend_of_a_ledger_fits_into_the_figure_and_has_no_notation() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    sampled = [PoissonSampled(Gaussian(1.1 + i / 7), 0.0123456) for i in range(20)]
    long = Composed(tuple(Gaussian(1.0 + i / 7) for i in range(40)))
    releases = (ReleaseEntry("sum", one, step=i) for i, one in enumerate([long, *sampled]))
    PrivacyLedger(header(), tuple(releases), "0" * 64).plot(axes)
    figure.canvas.draw()
    legend, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert frame.x0 <= legend.x0 < legend.x1 <= frame.x1
    assert frame.y0 <= legend.y0 < legend.y1 <= frame.y1
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[1].replace("\n", " ") == mechanism_in_words(sampled[0])
    assert labels[-1] == f"{21 - MOST_LABELS} more kinds"
    assert len(labels) == MOST_LABELS + 1


def test_a_figure_without_axes_makes_its_own() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    axes = RESULTS["gdp"][0].plot(deltas=(1e-6, 1e-5))
    (line,) = [one for one in axes.lines if one.get_label() == "upper bound"]
    bounds = [gdp.profile(Gaussian(1.0)).epsilon(delta=delta).upper for delta in (1e-6, 1e-5)]
    assert list(line.get_ydata()) == bounds
    pyplot.close(axes.figure)


def test_a_dollar_sign_in_a_name_is_no_formula() -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure()
    answer = answers.compute_epsilon("naive", Gaussian(1.0), 1e-5, ADD, None)
    strange = type(answer)(
        **{
            name: getattr(answer, name)
            for name in answer.__struct_fields__
            if name != "participants"
        },
        participants={r"$\frac{$": Bound(1.0, 2.0)},
    )
    strange.plot(figure.subplots())
    figure.canvas.draw()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"dpaudit\[report\]"):
        RESULTS["gdp"][0].plot()
