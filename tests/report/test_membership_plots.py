"""Pictures of attacks are drawn for whatever was measured, and never for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpaudit.report.membership_figures import write_roc_plot, write_score_histograms
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import InvalidArgument

FLAT = MembershipResult("flat", 10, 10, 0.5, 0.5, (), ((0.0, 0.0), (1.0, 1.0)))
BENT = MembershipResult(
    "bent", 10, 20, 0.7, 0.6, (), ((0.0, 0.2), (0.05, 0.5), (1.0, 1.0)), band=((0.05, 0.0, 0.9),)
)


@pytest.mark.parametrize("attacks", [[FLAT], [BENT], [FLAT, BENT, FLAT, BENT]])
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_rates_of_0_and_missing_bands_are_drawn(
    tmp_path: Path, attacks: list[MembershipResult], suffix: str
) -> None:
    path = tmp_path / f"roc{suffix}"
    write_roc_plot(attacks, path)
    assert path.stat().st_size > 1000


def test_scores_are_drawn_constant_ones_too(tmp_path: Path) -> None:
    path = tmp_path / "scores.png"
    scores = np.random.default_rng(0).standard_normal(50)
    write_score_histograms({"same": (np.ones(3), np.ones(4)), "far": (1e9 * scores, scores)}, path)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("name", ["roc.txt", "roc", "nowhere/roc.png"])
def test_a_place_that_holds_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match="plot"):
        write_roc_plot([BENT], tmp_path / name)
