"""Conversions by name: each is above the accountant of a mechanism that has the guarantee."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from scipy import stats

from dpaudit.accountants import conversions, gdp, pld, rdp, zcdp
from dpaudit.vocabulary.errors import ImpossibleConversion, InvalidArgument
from dpaudit.vocabulary.mechanism import ZCDP, ApproximateDP, Gaussian, PureDP

DELTAS = (1e-12, 1e-6, 1e-2, 0.3)


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 3.0, 30.0])
def test_pure_guarantees_cost_what_the_accountants_say_of_the_worst_mechanism(epsilon) -> None:
    for delta in DELTAS:
        found = conversions.pure_to_approximate(epsilon=epsilon, delta=delta)
        exact = pld.profile(PureDP(epsilon)).epsilon(delta=delta)
        assert exact.lower <= found <= exact.upper * (1 + 1e-9) + 1e-12
    rho = conversions.pure_to_zcdp(epsilon=epsilon)
    assert epsilon * math.tanh(epsilon / 2) <= rho * (1 + 1e-12)
    assert rho <= epsilon * epsilon / 2 * (1 + 1e-12)
    p, q = 1 / (1 + math.exp(-epsilon)), 1 / (1 + math.exp(epsilon))
    for order in (1.5, 2.0, 20.0):
        found = conversions.pure_to_renyi(epsilon=epsilon, order=order)
        exact = math.log(p**order * q ** (1 - order) + q**order * p ** (1 - order)) / (order - 1)
        assert exact * (1 - 1e-9) <= found <= max(exact, epsilon) * (1 + 1e-9) + 1e-12
    assert conversions.pure_to_renyi(epsilon=epsilon, order=math.inf) == epsilon


@pytest.mark.parametrize("epsilon", [1e-3, 0.5, 3.0, 30.0, 500.0])
def test_mu_of_pure_dp_is_at_the_corner(epsilon) -> None:
    mu = conversions.pure_to_gaussian(epsilon=epsilon)
    log_corner = -epsilon - math.log1p(math.exp(-epsilon))
    assert stats.norm.logcdf(-mu / 2) <= log_corner + 1e-12
    assert stats.norm.logcdf(-mu / 2 * (1 - 1e-9)) > log_corner - 1e-9
    for other in (0.0, epsilon / 3, epsilon / 2):
        top = gdp.delta_of_mu(other, mu=mu).upper
        assert (
            pld.profile(PureDP(epsilon)).delta(epsilon=other).lower <= top if epsilon < 100 else 1
        )


def test_approximate_guarantees_move_along_the_worst_curve() -> None:
    for epsilon, delta, new in ((1.0, 1e-6, 1e-3), (0.2, 0.01, 0.05), (3.0, 1e-9, 1e-8)):
        found = conversions.approximate_to_approximate(epsilon=epsilon, delta=delta, new_delta=new)
        exact = pld.profile(ApproximateDP(epsilon, delta)).epsilon(delta=new)
        assert exact.lower <= found * (1 + 1e-12)
        assert found <= exact.upper * (1 + 1e-9) + 1e-12
    same = conversions.approximate_to_approximate(epsilon=1.0, delta=1e-6, new_delta=1e-6)
    assert 1.0 <= same <= 1.0 + 1e-12
    assert conversions.approximate_to_approximate(epsilon=0.1, delta=0.1, new_delta=0.5) == 0
    with pytest.raises(ImpossibleConversion, match="reveal everything"):
        conversions.approximate_to_approximate(epsilon=1.0, delta=1e-6, new_delta=1e-7)


def test_concentrated_gaussian_and_renyi_guarantees_agree_with_their_accountants() -> None:
    for size in (0.01, 0.5, 5.0):
        mu = math.sqrt(2 * size)
        assert conversions.gaussian_to_zcdp(mu=mu) == pytest.approx(size)
        for order in (1.1, 2.0, 32.0):
            by_mu = conversions.gaussian_to_renyi(mu=mu, order=order)
            assert by_mu == pytest.approx(conversions.zcdp_to_renyi(rho=size, order=order))
            assert by_mu >= order * size * (1 - 1e-15)
        for delta in DELTAS:
            exact = gdp.profile(Gaussian(1 / mu)).epsilon(delta=delta)
            found = conversions.gaussian_to_approximate(mu=mu, delta=delta)
            assert exact.lower <= found <= exact.upper * (1 + 1e-9)
            general = conversions.zcdp_to_approximate(rho=size, delta=delta)
            assert general == zcdp.profile(ZCDP(size)).epsilon(delta=delta).upper >= exact.lower
            of_orders = [
                conversions.renyi_to_approximate(divergence=a * size, order=a, delta=delta)
                for a in (1.5, 2.0, 4.0, 8.0, 16.0, 32.0)
            ]
            assert min(of_orders) >= exact.lower
            assert min(of_orders) >= rdp.profile(ZCDP(size)).epsilon(delta=delta).upper * (1 - 1e-3)


@pytest.mark.parametrize("small", [1e-160, 1e-162, 1e-170, 5e-324])
def test_what_underflows_is_rounded_up(small: float) -> None:
    half = Fraction(small) ** 2 / 2
    # rho of a small epsilon in pure DP is about half of its square.
    for rho in (
        conversions.gaussian_to_zcdp(mu=small),
        conversions.pure_to_zcdp(epsilon=small),
        conversions.gaussian_to_renyi(mu=small, order=2.0) / 2,
    ):
        assert rho > 0
        assert Fraction(rho) >= half * Fraction(1 - 1e-12)
    assert Fraction(conversions.zcdp_to_renyi(rho=small, order=1.3)) >= Fraction(small) * Fraction(
        1.3
    )


def test_every_pair_of_notions_is_converted_or_refused_by_name() -> None:
    numbers = {
        "epsilon": 1.0, "delta": 1e-6, "new_delta": 1e-5, "rho": 0.5, "mu": 1.0,
        "divergence": 1.0, "order": 4.0, "new_order": 2.0,
    }  # fmt: skip
    for source, result in itertools.product(conversions.NOTIONS, repeat=2):
        function = getattr(conversions, f"{source}_to_{result}", None)
        if function is None:
            with pytest.raises(ImpossibleConversion, match=source):
                conversions.convert(source, result)
            continue
        given = {name: numbers[name] for name in function.__annotations__ if name in numbers}
        assert conversions.convert(source, result, **given) == function(**given) > 0


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="did you mean gaussian"):
        conversions.convert("gausian", "zcdp", mu=1.0)
    with pytest.raises(InvalidArgument, match="rho, delta"):
        conversions.convert("zcdp", "approximate", epsilon=1.0)
    for call in (
        lambda: conversions.pure_to_approximate(epsilon=-1.0, delta=0.1),
        lambda: conversions.pure_to_approximate(epsilon=1.0, delta=math.nan),
        lambda: conversions.pure_to_approximate(epsilon="1", delta=0.1),
        lambda: conversions.pure_to_gaussian(epsilon=True),
        lambda: conversions.pure_to_gaussian(epsilon="1"),
        lambda: conversions.pure_to_gaussian(epsilon=800.0),
        lambda: conversions.pure_to_renyi(epsilon=1.0, order=1.0),
        lambda: conversions.zcdp_to_renyi(rho=0.0, order=2.0),
        lambda: conversions.renyi_to_approximate(divergence=-0.1, order=2.0, delta=0.1),
        lambda: conversions.gaussian_to_approximate(mu=math.inf, delta=0.1),
    ):
        with pytest.raises(InvalidArgument):
            call()
    for impossible in (
        lambda: conversions.zcdp_to_renyi(rho=0.5, order=math.inf),
        lambda: conversions.gaussian_to_renyi(mu=1.0, order=math.inf),
        lambda: conversions.renyi_to_renyi(divergence=1.0, order=2.0, new_order=3.0),
    ):
        with pytest.raises(ImpossibleConversion):
            impossible()
