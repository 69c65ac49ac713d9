"""Global generators give the same numbers inside, and go on outside as if nothing had been."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dpaudit.attacks.conformance.global_generators import seeded


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002


def test_same_labels_give_the_same_numbers_and_others_give_others() -> None:
    with seeded(1, 2):
        first = drawn()
    with seeded(1, 2):
        assert drawn() == first
    with seeded(2, 1):
        assert all(one != other for one, other in zip(drawn(), first, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_generators_go_on_where_they_were(fails: bool) -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    try:
        with seeded(5):
            drawn()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert drawn() == expected
