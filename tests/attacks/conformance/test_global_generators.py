"""Global generators are seeded inside the context, and their states are restored after it."""

from __future__ import annotations

import contextlib
import random
import warnings

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


@pytest.mark.parametrize("blocks", [1, 2])
def test_normal_number_that_numpy_keeps_is_restored(blocks: int) -> None:
    """NumPy draws normal numbers by twos, and keeps the second for the next call."""
    np.random.seed(3)  # noqa: NPY002
    expected = np.random.standard_normal(4)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = np.random.standard_normal()  # noqa: NPY002
    with contextlib.ExitStack() as stack:
        for label in range(blocks):
            stack.enter_context(seed_global_generators(label))
            np.random.standard_normal(3)  # noqa: NPY002
    assert [first, *np.random.standard_normal(3)] == expected.tolist()  # noqa: NPY002


def test_inner_block_leaves_the_stream_of_the_outer_one() -> None:
    with seed_global_generators(1):
        expected = [drawn(), drawn()]
    with seed_global_generators(1):
        first = drawn()
        with seed_global_generators(2):
            inner = drawn()
        assert [first, drawn()] == expected
    with seed_global_generators(2):
        assert drawn() == inner


def test_open_blocks_do_not_share_a_generator() -> None:
    with seed_global_generators(1), seed_global_generators(2):
        first = np.random.get_bit_generator()
        with seed_global_generators(3):
            assert np.random.get_bit_generator() is not first
        assert np.random.get_bit_generator() is first


def test_state_in_a_block_has_the_form_of_any_state() -> None:
    outside = np.random.get_state()  # noqa: NPY002
    with warnings.catch_warnings(action="error"), seed_global_generators(1):
        state = np.random.get_state()  # noqa: NPY002
        first = np.random.random()  # noqa: NPY002
        np.random.set_state(state)  # noqa: NPY002
        assert np.random.random() == first  # noqa: NPY002
    assert type(state) is type(outside)
    assert state[0] == outside[0] == "MT19937"
