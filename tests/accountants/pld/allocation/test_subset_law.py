"""Random allocation to several steps: both bounds against sums over grids, and the parts."""

from __future__ import annotations

import itertools
import json
import math

import msgspec
import numpy as np
import pytest

from dpaudit.accountants import gdp, naive, pld, rdp
from dpaudit.accountants.pld.allocation import subset_law
from dpaudit.accountants.releases import allocation_blocks, count_releases
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Gaussian, Mechanism, RandomAllocation, Repeated


def several(noise: float, steps: int, selected: int, times: int = 1) -> Mechanism:
    return Repeated(RandomAllocation(Gaussian(noise), steps, selected), times)


def grid_masses(noise: float, steps: int, selected: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the masses of one pass on a grid of all steps' outputs, under P and under Q."""
    x = np.linspace(-7 * noise, 1 + 7 * noise, {3: 101, 4: 37}[steps])
    base = np.exp(-(x**2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) * (x[1] - x[0])
    ratio = np.exp((2 * x - 1) / (2 * noise**2))
    axes = [ratio.reshape([-1 if i == j else 1 for j in range(steps)]) for i in range(steps)]
    subsets = list(itertools.combinations(axes, selected))
    mean = sum(math.prod(parts[1:], start=parts[0]) for parts in subsets) / len(subsets)
    q = np.ones(())
    for _ in range(steps):
        q = np.multiply.outer(q, base)
    return q * mean, q


@pytest.mark.parametrize(("steps", "selected", "noise"), [(3, 2, 1.0), (4, 2, 2.0), (4, 3, 1.5)])
def test_a_sum_over_a_grid_lies_inside(steps: int, selected: int, noise: float) -> None:
    profile = pld.profile(several(noise, steps, selected))
    p, q = grid_masses(noise, steps, selected)
    for epsilon in (0.5, 1.5):
        truth = max(
            float(np.maximum(first - math.exp(epsilon) * second, 0).sum())
            for first, second in ((p, q), (q, p))
        )
        found = profile.delta(epsilon=epsilon)
        assert found.lower <= truth * (1 + 2e-3)
        assert truth * (1 - 2e-3) <= found.upper
        assert found.lower >= 0.7 * found.upper


def test_two_of_ten_steps_are_bounded_within_fifteen_percent() -> None:
    found = pld.profile(several(1.0, 10, 2)).epsilon(delta=1e-5)
    # A Monte Carlo run gives about 3.56; passes over two blocks of five give 3.8018.
    assert 3.4 < found.lower < 3.56 < found.upper < 3.803
    assert found.upper - found.lower <= 0.15 * found.upper


@pytest.mark.parametrize(("steps", "selected"), [(11, 3), (50, 6), (1000, 30)])
def test_other_accountants_agree(steps: int, selected: int) -> None:
    mechanism = several(2.0, steps, selected)
    found = pld.profile(mechanism).epsilon(delta=1e-6)
    assert 0.8 * found.upper <= found.lower
    for accountant in (naive, rdp):
        assert found.upper <= accountant.profile(mechanism).epsilon(delta=1e-6).upper * (1 + 1e-6)


def test_a_lower_bound_that_becomes_a_gaussian_at_its_delta_is_taken() -> None:
    """The sum of all outputs bounds this delta better than the law, which is tried first."""
    found = pld.profile(several(2.0, 10, 4)).delta(epsilon=0.1)
    of_sum = gdp.delta_of_mu(0.1, mu=0.5 * 4 / math.sqrt(10)).lower
    assert 0.98 * of_sum <= found.lower <= found.upper <= 2 * of_sum


def test_more_selected_steps_cost_more() -> None:
    found = [pld.profile(several(2.0, 12, k)).epsilon(delta=1e-5) for k in (1, 2, 11, 12)]
    for fewer, more in itertools.pairwise(found):
        assert fewer.lower < more.upper
        assert fewer.lower < more.lower


def test_all_steps_selected_are_gaussians_without_sampling() -> None:
    assert dict(count_releases(several(2.0, 5, 5, 3))) == {Gaussian(2.0): 15}


def test_blocks_cover_all_steps() -> None:
    for steps, selected in ((10, 2), (11, 3), (7, 5), (5, 4)):
        blocks = allocation_blocks(RandomAllocation(Gaussian(1.0), steps, selected))
        sizes = [getattr(block, "steps", 1) for block, times in blocks for _ in range(times)]
        assert sum(sizes) == steps
        assert len(sizes) == selected
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("selected", [0, 11, 1.5])
def test_impossible_selections_are_refused(selected: float) -> None:
    with pytest.raises(InvalidArgument, match="selected"):
        RandomAllocation(Gaussian(1.0), 10, selected)  # type: ignore[arg-type]


def test_json_of_one_selected_step_is_as_before() -> None:
    one = json.loads(msgspec.json.encode(RandomAllocation(Gaussian(1.0), 10)))
    assert set(one) == {"kind", "mechanism", "steps"}
    two = RandomAllocation(Gaussian(1.0), 10, 2)
    assert msgspec.json.decode(msgspec.json.encode(two), type=RandomAllocation) == two


def law_has_mean_one() -> bool:
    law = subset_law._subset_law(0.8, 9, 3, 1e-15)
    total, mean = law.q_masses.sum(), law.p_masses.sum()
    return bool(1 - 1e-9 < total <= 1 + 1e-9 and 1 - 1e-6 < mean <= 1 + 1e-9)


def test_the_lower_law_keeps_mass_and_mean() -> None:
    subset_law._subset_law.cache_clear()
    assert law_has_mean_one()


@pytest.mark.parametrize("wrong", ["a mean of other masses", "a factor of a wrong degree"])
def test_planted_errors_are_noticed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subset_law._join

    def join(left, right, tail):
        found = real(left, right, tail)
        means = found.means.copy()
        if wrong.startswith("a mean"):
            means[2:] *= 1.001
        else:
            means[3] = means[2]
        return subset_law.SymmetricLaw(
            found.steps, means, found.q_masses, found.mass_error, found.move_error
        )

    monkeypatch.setattr(subset_law, "_join", join)
    subset_law._subset_law.cache_clear()
    assert not law_has_mean_one()
    subset_law._subset_law.cache_clear()


def test_means_that_overflow_are_left_out() -> None:
    law = subset_law._subset_law(24.0, 16, 3, 1e-15)
    assert np.isfinite(law.losses).all()
    assert law.q_masses.sum() <= 1 + 1e-9
    found = pld.profile(several(1 / 24, 16, 3)).epsilon(delta=1e-5)
    assert 0 < found.lower <= found.upper < math.inf
