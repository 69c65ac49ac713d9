"""Arrays in replies: whatever a client sends, it is one error that names it, or a float32 array."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dpaudit.trainer.federated.flower.records import read_update
from dpaudit.vocabulary.errors import InvalidUpdate

WEIGHTS = {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones((), np.float32)}


@dataclass(frozen=True)
class Sent:
    data: bytes
    stype: str = "numpy.ndarray"
    dtype: str = "float32"
    shape: tuple[int, ...] = (3, 2)


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    return buffer.getvalue()


def header(description: str) -> bytes:
    text = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


GOOD = {"w": Sent(npy(WEIGHTS["w"] + 1)), "b": Sent(npy(WEIGHTS["b"]))}


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_update_is_what_the_model_moved_by(order: str) -> None:
    trained = np.asarray(WEIGHTS["w"] + 1, order=order)  # type: ignore[call-overload]
    found = read_update({**GOOD, "w": Sent(npy(trained))}, WEIGHTS, participant=2)
    assert list(found) == ["w", "b"]
    assert found["w"] == pytest.approx(np.ones((3, 2)))
    assert found["b"] == 0
    assert {part.dtype for part in found.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (Sent(b""), "broken header"),
        (Sent(b"text"), "broken header"),
        (Sent(npy(WEIGHTS["w"])[:40]), "broken header"),
        (Sent(npy(WEIGHTS["w"])[:-1]), "cut"),
        (Sent(npy(WEIGHTS["w"]) + b"\0"), "cut"),
        (Sent(npy(WEIGHTS["w"]) + bytes(2000)), "oversized"),
        (Sent(bytes(10_000_000)), "oversized"),
        (Sent(npy(np.zeros((300, 200), np.float32))), "oversized"),
        (Sent(npy(np.zeros((2, 3), np.float32))), "shape"),
        (Sent(npy(np.zeros(6, np.float32))), "shape"),
        (Sent(npy(np.zeros((3, 2)))), "float64"),
        (Sent(npy(np.zeros((3, 2), ">f4"))), "type"),
        (Sent(npy(np.zeros((3, 2), np.int32))), "int32"),
        (Sent(npy(np.full((3, 2), None))), "broken header"),
        (Sent(npy(np.full((3, 2), math.nan, np.float32))), "NaN"),
        (Sent(npy(np.full((3, 2), -math.inf, np.float32))), "infinity"),
        (Sent(npy(WEIGHTS["w"]), stype="pickle"), "format"),
        # A header may declare any size: nothing is allocated for it.
        (Sent(header("{'descr':'<f4','fortran_order':False,'shape':(10**15,)}")), "broken header"),
        (
            Sent(header(f"{{'descr':'<f4','fortran_order':False,'shape':({10**15},)}}")),
            "shape",
        ),
        (Sent(header("{'descr':'<f4','fortran_order':False,'shape':(-3,2)}")), "broken header"),
        (Sent(header("__import__('os').abort()")), "broken header"),
    ],
)
def test_a_bad_array_is_refused_by_name(sent: Sent, named: str) -> None:
    with pytest.raises(InvalidUpdate, match=named) as caught:
        read_update({**GOOD, "w": sent}, WEIGHTS, participant=2)
    assert str(caught.value).startswith("participant 2: ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ({}, "lacks w"),
        ({"w": GOOD["w"]}, "lacks b"),
        ({**GOOD, "x" * 10_000: GOOD["b"]}, "no parameter"),
    ],
)
def test_missing_and_unknown_names_are_refused(reply: dict[str, Sent], named: str) -> None:
    with pytest.raises(InvalidUpdate, match=named) as caught:
        read_update(reply, WEIGHTS, participant=0)
    assert len(str(caught.value)) < 200


def test_a_difference_beyond_float32_is_left_to_the_check_of_updates() -> None:
    largest = np.float32(3e38)
    weights = {"b": -np.full((), largest)}
    found = read_update({"b": Sent(npy(np.full((), largest)))}, weights, participant=0)
    assert math.isinf(found["b"])
