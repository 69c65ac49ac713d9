"""States of the random generators that a forward pass may use: saving and restoring them.

A pass that draws random numbers is repeated on the same numbers, so that only its records, or
the way in which its gradients are taken, make a difference.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

HeldGenerator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
"""A generator that a model or a loss holds itself, besides the global ones."""

HELD_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class GeneratorStates:
    """Saved states of the random generators that a forward pass may use.

    Args:
        python: Whether to include Python's and NumPy's generators, which takes longer.
        held: Further generators, which the model or the loss holds.
    """

    def __init__(self, *, python: bool, held: Sequence[HeldGenerator] = ()) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = _cuda_states()
        self._python = random.getstate() if python else None
        self._numpy = np.random.get_state() if python else None  # noqa: NPY002
        self._held = [(_setter(each), _state(each), each) for each in held]

    def now(self) -> GeneratorStates:
        """Return the present states of the same generators, with Python's and NumPy's."""
        return GeneratorStates(python=True, held=[each for _, _, each in self._held])

    def advanced(self) -> bool:
        """Return whether any of the saved generators was used since."""
        if not torch.equal(self._torch, torch.get_rng_state()):
            return True
        if any(not torch.equal(a, b) for a, b in zip(self._cuda, _cuda_states(), strict=False)):
            return True
        return self.others_advanced()

    def others_advanced(self) -> bool:
        """Return whether any other saved generator than torch's global ones was used since."""
        if any(not _equal(state, _state(each)) for _, state, each in self._held):
            return True
        if self._python is None or self._numpy is None:
            return False
        same = _equal(self._numpy, np.random.get_state())  # noqa: NPY002
        return not same or self._python != random.getstate()

    def restore(self) -> None:
        """Restore the states, so that the same numbers are drawn again."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._python is not None and self._numpy is not None:
            random.setstate(self._python)
            np.random.set_state(self._numpy)  # noqa: NPY002
        for put, state, _ in self._held:
            put(state)


def _cuda_states() -> list[torch.Tensor]:
    """Return the states of the devices' generators, if any device is in use."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def _state(generator: HeldGenerator) -> object:
    """Return a copy of a generator's state."""
    match generator:
        case torch.Generator():
            return generator.get_state()
        case np.random.Generator():
            return copy.deepcopy(generator.bit_generator.state)
        case np.random.RandomState():
            return generator.get_state()
        case random.Random():
            return generator.getstate()


def _setter(generator: HeldGenerator) -> Callable[..., object]:
    """Return the function that sets a generator's state."""
    match generator:
        case torch.Generator():
            return generator.set_state
        case np.random.Generator():
            return lambda state: setattr(generator.bit_generator, "state", state)
        case np.random.RandomState():
            return generator.set_state
        case random.Random():
            return generator.setstate


def _equal(one: object, other: object) -> bool:
    """Return whether two states are equal."""
    match one, other:
        case torch.Tensor(), torch.Tensor():
            return torch.equal(one, other)
        case (dict(), dict()):
            return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
        case (tuple(), tuple()):
            return len(one) == len(other) and all(map(_equal, one, other))
        case _:
            return bool(np.array_equal(one, other))  # type: ignore[arg-type]
