"""dssgd-corrected: public selection, noise on the selected entries alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dpaudit.trainer.federated.dssgd import Upload
from dpaudit.trainer.federated.dssgd_corrected import (
    EXPLORED_SHARE,
    PublicScores,
    SelectedEntries,
    select_publicly,
)
from dpaudit.trainer.noise.gradient_noise import GradientSums, NoiseContext
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import InvalidArgument

SIZE, MULTIPLIER, NORM = 4000, 1.5, 0.5


def sums_of(vector: torch.Tensor) -> GradientSums:
    return {"weight": vector[:-10].clone().view(10, -1), "bias": vector[-10:].clone()}


def flat(sums: GradientSums) -> torch.Tensor:
    return torch.cat([part.flatten() for part in sums.values()])


def release(noise: SelectedEntries, vector: torch.Tensor, step: int = 0) -> torch.Tensor:
    context = NoiseContext(Keystream.seeded(4), step)
    return flat(noise.add_noise(sums_of(vector), context, MULTIPLIER, NORM))


# Selection.


@given(st.integers(1, 60), st.integers(0, 1000), st.data())
def test_a_selection_has_its_size_and_the_best_coordinates(
    size: int, turn: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    values = np.array(data.draw(st.lists(st.floats(0, 9), min_size=size, max_size=size)))
    scores = PublicScores(values, np.ones(size))
    found = select_publicly(scores, count, Keystream.seeded(0), turn)
    assert len(found) == len(set(found.tolist())) == count
    assert (np.diff(found) > 0).all()
    best = count - int(EXPLORED_SHARE * count)
    certain = np.flatnonzero((values[:, None] <= values[None, :]).sum(axis=1) <= best)
    assert set(certain) <= set(found)


def test_all_coordinates_are_explored_alike_at_the_start() -> None:
    counts = np.zeros(20)
    for turn in range(2000):
        counts[select_publicly(PublicScores.start(20), 5, Keystream.seeded(1), turn)] += 1
    # Within a turn, counts are negatively correlated, which makes the statistic smaller.
    assert stats.chisquare(counts).pvalue > 1e-6


def test_no_coordinate_is_given_up() -> None:
    scores = PublicScores(np.arange(40.0), np.ones(40))
    seen: set[int] = set()
    for turn in range(200):
        seen |= set(select_publicly(scores, 8, Keystream.seeded(2), turn).tolist())
    assert seen == set(range(40))  # a coordinate is missed with probability below 1e-5 / 40


def test_scores_are_means_of_squared_uploads() -> None:
    scores = PublicScores.start(3)
    for value in (2.0, 4.0):
        scores = scores.updated(Upload(np.array([1]), np.array([value], dtype=np.float32)), 0.5)
    assert scores.mean_squares[1] == pytest.approx((4 * 0.5 + 16) / 1.5)
    assert np.isinf(scores.mean_squares[[0, 2]]).all()


def test_impossible_counts_are_refused() -> None:
    for count in (0, 4):
        with pytest.raises(InvalidArgument, match="from 1 to 3"):
            select_publicly(PublicScores.start(3), count, Keystream.seeded(0), 0)


# Noise.


def check_noise(noise: SelectedEntries) -> None:
    """Selected coordinates have N(0, (z C)^2) noise; all others are zero whatever the sum is."""
    chosen = np.arange(0, SIZE, 2)
    noise.select(chosen)
    vector = torch.linspace(-1, 1, SIZE)
    noisy = release(noise, vector)
    drawn = (noisy - vector)[chosen].double().numpy() / (MULTIPLIER * NORM)
    assert stats.kstest(drawn, stats.norm.cdf).pvalue > 1e-6
    assert (noisy[1::2] == 0).all()


def check_public(noise: SelectedEntries) -> None:
    """Which coordinates are released does not depend on the sum."""
    noise.select(np.arange(0, SIZE, 2))
    supports = [
        torch.nonzero(release(noise, vector)).flatten().tolist()
        for vector in (torch.linspace(0, 1, SIZE), torch.linspace(1, 0, SIZE))
    ]
    assert supports[0] == supports[1]


def check_sensitivity(noise: SelectedEntries) -> None:
    """A record that moves the sum by C moves the released sum by at most C."""
    noise.select(np.arange(0, SIZE, 2))
    moved = torch.zeros(SIZE)
    moved[0] = NORM
    one, other = (release(noise, vector) for vector in (torch.zeros(SIZE), moved))
    assert float((one - other).double().norm()) <= NORM * (1 + 1e-5)


def check_fresh(noise: SelectedEntries) -> None:
    """Two steps never share noise, also with another selection."""
    noise.select(np.arange(0, SIZE, 2))
    one = release(noise, torch.zeros(SIZE), step=0)
    noise.select(np.arange(1, SIZE, 2))
    other = release(noise, torch.zeros(SIZE), step=1)
    assert abs(float(np.corrcoef(one[0::2].numpy(), other[1::2].numpy())[0, 1])) < 0.13


CHECKS = (check_noise, check_public, check_sensitivity, check_fresh)


@pytest.mark.parametrize("check", CHECKS)
def test_noise_of_the_selected_entries(check: Callable[[SelectedEntries], None]) -> None:
    check(SelectedEntries(SIZE))


class HalvedNoise(SelectedEntries):
    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        return super().add_noise(sums, context, noise_multiplier / 2, norm)


class SelectsByTheSum(SelectedEntries):
    """The published selection: the largest entries of the secret sum."""

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        self.select(torch.topk(flat(sums).abs(), SIZE // 2).indices.numpy())
        return super().add_noise(sums, context, noise_multiplier, norm)


class ReleasesTheOthersToo(SelectedEntries):
    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        noisy = flat(super().add_noise(sums, context, noise_multiplier, norm))
        others = np.setdiff1d(np.arange(SIZE), self.positions)
        noisy[others] = flat(sums)[others]
        return sums_of(noisy)


class RescalesBySelection(SelectedEntries):
    """Undoes the restriction's loss of norm, which raises the sensitivity."""

    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        scaled = {name: 2 * part for name, part in sums.items()}
        return super().add_noise(scaled, context, noise_multiplier, norm)


class RepeatsNoise(SelectedEntries):
    def add_noise(
        self, sums: GradientSums, context: NoiseContext, noise_multiplier: float, norm: float
    ) -> GradientSums:
        first = NoiseContext(context.stream, 0)
        return super().add_noise(sums, first, noise_multiplier, norm)


@pytest.mark.parametrize(
    ("planted", "check"),
    [
        (HalvedNoise, check_noise),
        (SelectsByTheSum, check_public),
        (ReleasesTheOthersToo, check_noise),
        (RescalesBySelection, check_sensitivity),
        (RepeatsNoise, check_fresh),
    ],
)
def test_a_planted_bug_fails_its_check(
    planted: type[SelectedEntries], check: Callable[[SelectedEntries], None]
) -> None:
    with pytest.raises(AssertionError):
        check(planted(SIZE))


@pytest.mark.parametrize(
    "positions", [np.array([], dtype=np.int64), np.array([3]), np.array([-1]), np.array([1, 1])]
)
def test_invalid_selections_are_refused(positions: NDArray[np.int64]) -> None:
    with pytest.raises(InvalidArgument, match="distinct coordinates"):
        SelectedEntries(3).select(positions)


def test_noise_without_a_selection_or_of_another_model_is_refused() -> None:
    context = NoiseContext(Keystream.seeded(0), 0)
    with pytest.raises(InvalidArgument, match="before the first step"):
        SelectedEntries(3).add_noise({"w": torch.zeros(3)}, context, 1.0, 1.0)
    with pytest.raises(InvalidArgument, match="3 coordinates"):
        SelectedEntries(3).add_noise({"w": torch.zeros(4)}, context, 1.0, 1.0)
