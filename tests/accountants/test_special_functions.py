"""Normal tails and factorials, against 40 digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mpmath import mp

from dpaudit.accountants.numerics import erfcx, log_gamma, log_ndtr, logsumexp, ndtr

POINTS = [
    *np.linspace(-38, 38, 401),
    *(sign * 10.0**power for sign in (-1, 1) for power in range(-300, 150, 30)),
    -0.9999999,
    -1.0000001,
    -26 * math.sqrt(2) - 1e-9,
    -26 * math.sqrt(2) + 1e-9,
]
UNITS = 2.0**-52


@pytest.fixture(autouse=True)
def _many_digits():
    with mp.workdps(40):
        yield


@pytest.mark.parametrize("x", [x for x in POINTS if x > -26])
def test_scaled_tails_are_right_to_a_few_units(x):
    x = float(x)
    truth = mp.exp(mp.mpf(x) ** 2) * mp.erfc(x) if x < 1e6 else 1 / (x * mp.sqrt(mp.pi))
    assert abs(erfcx(x) / truth - 1) <= 8 * UNITS


@pytest.mark.parametrize("x", [x for x in POINTS if abs(x) < 1e6])
def test_normal_tails_are_right_to_a_few_units(x):
    x = float(x)
    far, tail = (mp.erfc(sign * mp.mpf(x) / mp.sqrt(2)) / 2 for sign in (1, -1))
    log_tail = mp.log1p(-far) if x > 0 else mp.log(tail)
    # The argument of erfc is rounded once, which moves what is far out by x^2 times that.
    moved = (4 + (x * x if x > 0 else 0)) * UNITS
    assert abs(float(log_ndtr(x)) - log_tail) <= moved * abs(log_tail) + 1e-307
    assert abs(mp.mpf(float(ndtr(x))) - tail) <= (4 + x * x) * UNITS * tail + 1e-307


@pytest.mark.parametrize("x", [1e-300, 1e-5, 0.5, 1.0, 1.5, 2.0, 3.0, 17.0, 256.0, 1e5, 1e12])
def test_factorials_are_right_to_a_few_units(x):
    truth = mp.loggamma(x)
    assert abs(float(log_gamma(x)) - truth) <= 4 * UNITS * max(1.0, abs(truth))


def test_arrays_keep_their_shape():
    values = np.arange(1.0, 7.0).reshape(2, 3)
    for function in (ndtr, log_ndtr, log_gamma):
        assert function(values).shape == (2, 3)
        assert function(values)[1, 2] == function(6.0)


def test_sums_of_exponentials_keep_infinities():
    values = np.array([[0.0, math.log(3.0)], [-math.inf, -math.inf], [5.0, math.inf]])
    assert logsumexp(values, axis=1) == pytest.approx([math.log(4.0), -math.inf, math.inf])
    assert float(logsumexp(np.array([1e4, 1e4]))) == pytest.approx(1e4 + math.log(2.0))
