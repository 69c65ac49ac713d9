"""Updates are refused if they do not fit, and clipped to at most the clip norm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dpaudit.trainer.federated.updates import check_update, clip_update, update_norm
from dpaudit.vocabulary.errors import InvalidArgument, InvalidUpdate

REFERENCE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float32)}
GOOD = {"b": np.ones(2, np.float32), "w": np.ones((2, 3), np.float32)}
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_a_fitting_update_is_returned_in_the_order_of_the_reference() -> None:
    assert list(check_update(GOOD, REFERENCE, participant=0)) == ["w", "b"]


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ({**GOOD, "b": np.array([1, np.nan], np.float32)}, "b holds NaN or infinity"),
        ({**GOOD, "w": np.full((2, 3), np.inf, np.float32)}, "w holds NaN or infinity"),
        ({**GOOD, "w": np.ones((3, 2), np.float32)}, r"w has shape \(3, 2\), not \(2, 3\)"),
        ({**GOOD, "w": np.ones(10**6, np.float32)}, r"w has shape \(1000000,\)"),
        ({**GOOD, "b": np.ones(2)}, "b has type float64, not float32"),
        ({**GOOD, "b": np.ones(2, object)}, "b has type object"),
        ({**GOOD, "b": [1.0, 1.0]}, "b is of type list, not an array"),
        ({"w": GOOD["w"]}, "it lacks b"),
        ({**GOOD, "extra": np.ones(2, np.float32)}, "'extra', which is no parameter"),
        ([1.0], "it is of type list, not a mapping"),
        (None, "it is of type NoneType"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(update: object, reason: str) -> None:
    with pytest.raises(InvalidUpdate, match=f"participant 7: .*{reason}") as refused:
        check_update(update, REFERENCE, participant=7)  # type: ignore[arg-type]
    assert refused.value.participant == 7


@settings(max_examples=300, deadline=None)
@given(
    arrays(np.float32, st.integers(1, 20), elements=FINITE),
    st.floats(1e-40, 1e30),
)
def test_the_norm_of_a_clipped_update_never_exceeds_the_bound(
    values: np.ndarray, clip_norm: float
) -> None:
    clipped, factor = clip_update({"w": values}, clip_norm)
    exact = sum(int(v * 2**149) ** 2 for v in clipped["w"].astype(float).tolist())
    assert exact <= int(clip_norm * 2.0**149) ** 2 + 2 * int(clip_norm * 2.0**149) + 1
    assert 0 < factor <= 1
    assert (np.abs(clipped["w"]) <= np.abs(values)).all()
    assert (np.signbit(clipped["w"]) == np.signbit(values)).all()


def test_an_update_within_the_bound_is_unchanged() -> None:
    update = {"w": np.array([3.0, -4.0], np.float32)}
    clipped, factor = clip_update(update, 5.001)
    assert factor == 1.0
    assert clipped["w"] is update["w"]


def test_clipping_keeps_the_direction() -> None:
    values = np.linspace(-1, 2, 1000, dtype=np.float32)
    clipped, factor = clip_update({"a": values[:300], "b": values[300:]}, 0.125)
    joined = np.concatenate([clipped["a"], clipped["b"]]).astype(float)
    np.testing.assert_allclose(joined, factor * values.astype(float), rtol=2e-7)
    assert 0.125 * (1 - 1e-6) < update_norm(clipped) <= 0.125


def test_the_norm_of_large_values_does_not_overflow() -> None:
    assert update_norm({"w": np.full(4, 3e38, np.float32)}) == pytest.approx(6e38)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_not_positive_is_refused(clip_norm: float) -> None:
    with pytest.raises(InvalidArgument):
        clip_update(GOOD, clip_norm)
