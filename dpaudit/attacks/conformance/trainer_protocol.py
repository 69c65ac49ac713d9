"""The trainer protocol: what a trainer must offer for the tests, and how its attributes are read.

``make_trainer(records, seed)`` returns an object with a method ``step()``. A step returns the
change of all parameters as a flat array of shape ``(d,)``, or the noisy sum itself under an
``update_scale`` of 1. The tests require that:

- the same records and the same seed give the same run;
- the noise depends only on the seed and the step number;
- whether record i is included depends only on the seed, the step number and i.

Optional attributes of the trainer allow further tests:

- ``step(include=indices)``: take the step on these records instead of sampled ones. A trainer
  needs it if it cannot meet the last requirement.
- ``sampled``: the indices of the records of the last step. Without it the sampler cannot be
  tested.
- ``rank_updates``: shape ``(ranks, d)``. Either each rank's share of the last update (its clipped
  sum plus its noise, times the step's factor), or the whole update as each rank computed it. Rows
  in other units leave the ranks' noise INCONCLUSIVE.
- ``groups``: slices of coordinates by parameter name.
- ``constants``: numbers by name that the mechanism treats as public, such as the expected batch
  size and the sampling rate. They must be equal on neighboring data sets.
- ``input_directions``: feature vectors along which the search for long gradients also scales.
- ``resumed()``: the trainer as it continues after a crash now, restored from a checkpoint of this
  moment. Its next step is a new one, and must not reuse the noise of an earlier step.
- ``passes_seed``: True if ``make_trainer`` certainly passes the seed on. Equal noise under two
  seeds is then a fault of the trainer; otherwise it may be one of ``make_trainer``.

``make_trainer`` may have an attribute ``dataset_size``: the number of records of the claim's data
set. A trainer that derives its step from the number of its records needs it. Such a trainer is
made with this many records, or with one fewer, and must accept ``step(include=indices)``.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.conformance import StepClaim
from dpaudit.vocabulary.errors import InvalidArgument, require_count

Array = NDArray[np.float64]
Record = tuple[Any, Any]


class Trainer(Protocol):
    """The one method that every tested trainer must have.

    Optional attributes are not part of this type. The module's docstring lists them; the tests
    read them with ``getattr``.

    Example:
        >>> import numpy as np
        >>> from dpaudit.attacks.conformance import Trainer
        >>> class NoiseOnly:
        ...     def __init__(self, records, seed):
        ...         self.rng = np.random.default_rng(seed)
        ...     def step(self):
        ...         return self.rng.standard_normal(3)
        >>> trainer: Trainer = NoiseOnly(records=[], seed=0)
        >>> trainer.step().shape
        (3,)
    """

    def step(self) -> Any:
        """Take one step, in place.

        Returns:
            The change of all parameters, flat, shape ``(d,)``; or the noisy sum, if the claim's
            ``update_scale`` is 1.
        """


MakeTrainer = Callable[[Sequence[Record], int], Any]
"""A function of records and a seed that returns a ``Trainer``."""

# How the optional attributes are read. Missing ones have a default, never an error.


def supports_include(trainer: Trainer) -> bool:
    """Return whether the trainer's ``step`` has a parameter ``include``."""
    try:
        return "include" in inspect.signature(trainer.step).parameters
    except (TypeError, ValueError):  # a callable without an introspectable signature
        return False


def required_dataset_size(make_trainer: MakeTrainer) -> int | None:
    """Return the number of records that a trainer must be made with.

    A ``dataset_size`` that is not an integer of at least two raises ``InvalidArgument``.

    Args:
        make_trainer: Makes the trainer; its optional attribute ``dataset_size`` is read.

    Returns:
        The number of records; None if the trainer accepts any number.
    """
    size = getattr(make_trainer, "dataset_size", None)
    if size is None:
        return None
    require_count("dataset_size", size, least=2)
    return int(size)


def for_records(make_trainer: MakeTrainer, records: Sequence[Record]) -> MakeTrainer:
    """Return the factory for a data set of as many records, if it can be set to any size.

    Args:
        make_trainer: Makes the trainer; ``conformance.wrap`` gives it a method ``for_records``.
        records: The records of the audit.

    Returns:
        The factory to use.
    """
    sized = getattr(make_trainer, "for_records", None)
    return make_trainer if sized is None else cast(MakeTrainer, sized(len(records)))


def assumptions_of(make_trainer: MakeTrainer, records: Sequence[Record]) -> tuple[str, ...]:
    """Return what is assumed about the trainers of a factory, as sentences.

    Args:
        make_trainer: Makes the trainer; ``conformance.wrap`` gives it ``assumptions_for``.
        records: Records to make a trainer with.

    Returns:
        The sentences; empty if the factory has none.
    """
    state = getattr(make_trainer, "assumptions_for", None)
    return () if state is None else tuple(state(records))


def repeat_to_dataset_size(make_trainer: MakeTrainer, records: Sequence[Record]) -> list[Record]:
    """Repeat the records in order until there are as many as the claim's data set has.

    Args:
        make_trainer: Makes the trainer; its ``dataset_size`` is read.
        records: The records to repeat, at least one.

    Returns:
        ``dataset_size`` records; the given records if the trainer accepts any number.
    """
    size = required_dataset_size(make_trainer)
    return list(records) if size is None else list(islice(cycle(records), size))


def public_constants_of(trainer: Trainer) -> dict[str, float]:
    """Return the public constants by name; empty if the trainer lists none."""
    return {
        name: float(value) for name, value in (getattr(trainer, "constants", None) or {}).items()
    }


def noisy_sum(update: Any, claim: StepClaim) -> Array:
    """Convert the return value of a step to its noisy sum.

    Args:
        update: What ``step()`` returned: ``update_scale`` times the noisy sum, shape ``(d,)``.
        claim: The claim, whose ``update_scale`` is divided out.

    Returns:
        The noisy sum in units of the gradients, float64, shape ``(d,)``.

    Raises:
        InvalidArgument: If the return value is not a flat array of at least one number.
    """
    flat = np.asarray(update, dtype=np.float64)
    if flat.ndim != 1 or flat.size == 0:
        raise InvalidArgument(
            "the shape of step()'s return value", flat.shape, "(d,), that of a flat array"
        )
    return flat / claim.scale


def sampled_indices(trainer: Trainer) -> NDArray[np.int64] | None:
    """Return the indices of the last step's records, sorted; None without ``sampled``."""
    sampled = getattr(trainer, "sampled", None)
    return None if sampled is None else np.sort(np.asarray(sampled, dtype=np.int64).ravel())


def passes_seed(trainer: Trainer) -> bool:
    """Return whether the trainer certainly gets the seed that ``make_trainer`` was given."""
    return getattr(trainer, "passes_seed", False) is True


def parameter_groups(trainer: Trainer, dimension: int) -> dict[str, slice]:
    """Return the coordinates of each parameter group, by name.

    Args:
        trainer: The trainer, whose optional attribute ``groups`` is read.
        dimension: Number of coordinates of an update.

    Returns:
        A slice for each group; one group ``all`` if the trainer lists none.

    Raises:
        InvalidArgument: If a slice is empty or exceeds the update.
    """
    named: Mapping[str, slice] = getattr(trainer, "groups", None) or {"all": slice(0, dimension)}
    for name, where in named.items():
        if not 0 <= (where.start or 0) < (where.stop or dimension) <= dimension:
            raise InvalidArgument(f"groups[{name!r}]", where, f"a slice of {dimension} coordinates")
    return dict(named)


def derive_seeds(seed: int, purpose: int, count: int) -> list[int]:
    """Derive seeds for trainers from the seed of the audit.

    Args:
        seed: Seed of the audit.
        purpose: A number for each use, so that no two uses share their random numbers.
        count: How many seeds to derive.

    Returns:
        ``count`` seeds in [0, 2**32).
    """
    states = np.random.SeedSequence([seed, purpose]).generate_state(count)
    return [int(state) for state in states]


# Global generators: a replay must also fix the random numbers of a model that draws from the
# global generators of Python, NumPy or torch, and must leave the caller's generators unchanged.

SEED_LIMIT = 2**32


_BLOCK_GENERATORS: list[np.random.MT19937] = []
"""Bit generators that blocks have given to NumPy's global functions."""

_FREE: list[np.random.MT19937] = []
"""Those that no block uses. To make one takes 190 us; each block seeds its own."""


@contextmanager
def seed_global_generators(*labels: int) -> Iterator[None]:
    """Seed the global generators inside a ``with`` block and restore their states after it.

    torch is seeded only if it has been imported. A trainer that draws from torch has imported it.

    Args:
        *labels: Integers that determine the seed; different labels give different streams.

    Yields:
        Nothing.
    """
    kept = random.getstate(), _torch_states()
    with _own_numpy_generator():
        reseed_global_generators(*labels)
        try:
            yield
        finally:
            random.setstate(kept[0])
            _restore_torch(kept[1])


@contextmanager
def _own_numpy_generator() -> Iterator[None]:
    """Give NumPy's global functions another bit generator inside a ``with`` block.

    An exchange takes 2 us; reading and writing the 624 words of a state, 90 us. It forgets a
    normal number that NumPy keeps for the next call. The caller's is kept by the outermost block.
    """
    outer = np.random.mtrand.get_bit_generator()
    nested = any(outer is one for one in _BLOCK_GENERATORS)
    kept = None if nested else np.random.get_state()  # noqa: NPY002
    inner = _FREE.pop() if _FREE else _new_block_generator()
    np.random.mtrand.set_bit_generator(inner)
    try:
        yield
    finally:
        np.random.mtrand.set_bit_generator(outer)
        _FREE.append(inner)
        if kept is not None:
            np.random.set_state(kept)  # noqa: NPY002


def _new_block_generator() -> np.random.MT19937:
    """Make a bit generator. No subclass: NumPy compares the name of its class."""
    made = np.random.MT19937(0)
    _BLOCK_GENERATORS.append(made)
    return made


def reseed_global_generators(*labels: int) -> None:
    """Seed the global generators. Only inside a block whose end restores their states.

    Args:
        *labels: Integers that determine the seed.
    """
    seed = int(np.random.SeedSequence(list(labels)).generate_state(1)[0]) % SEED_LIMIT
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    _seed_torch(seed)


def draw_seeds(count: int) -> list[int]:
    """Draw seeds from NumPy's global generator, which an audit seeds before each step.

    Args:
        count: How many seeds to draw.

    Returns:
        The seeds, in [0, 2**32).
    """
    return [int(seed) for seed in np.random.randint(0, SEED_LIMIT, count, np.uint64)]  # noqa: NPY002


def _imported_torch() -> Any:
    return sys.modules.get("torch")


def _torch_states() -> tuple[Any, Any] | None:
    torch = _imported_torch()
    if torch is None:
        return None
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), devices


def _seed_torch(seed: int) -> None:
    torch = _imported_torch()
    if torch is None:
        return
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _restore_torch(states: tuple[Any, Any] | None) -> None:
    if states is None:  # torch was not imported before: there is no state to restore
        return
    torch = _imported_torch()
    torch.set_rng_state(states[0])
    if torch.cuda.is_initialized() and states[1]:
        torch.cuda.set_rng_state_all(states[1])
