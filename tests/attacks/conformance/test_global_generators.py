"""Global generators are seeded inside the context, and their states are restored after it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from dpaudit.attacks.conformance.trainer_protocol import seed_global_generators


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002


def test_same_labels_give_the_same_numbers_and_others_give_others() -> None:
    with seed_global_generators(1, 2):
        first = drawn()
    with seed_global_generators(1, 2):
        assert drawn() == first
    with seed_global_generators(2, 1):
        assert all(one != other for one, other in zip(drawn(), first, strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_generator_states_are_restored(fails: bool) -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    try:
        with seed_global_generators(5):
            drawn()
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    assert drawn() == expected
