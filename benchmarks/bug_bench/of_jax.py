"""Faults of optax and objax: private gradients of JAX programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from faults import NOISE_MULTIPLIER, Fault, Measured
from step_audits import CLIP_NORM, Array, Neighbors, audit_step, claim_of_one_step

from dpaudit.accountants import Adjacency

FEATURES, RECORDS, MICROBATCH = 24, 24, 4
OPTAX = (
    "optax==0.2.8", "jax==0.10.2", "jaxlib==0.10.2", "ml-dtypes==0.5.4", "opt-einsum==3.4.0",
    "absl-py==2.3.1", "chex==0.1.91", "toolz==1.1.0",
)  # fmt: skip
OBJAX = (
    "objax==1.8.0", "jax==0.4.30", "jaxlib==0.4.30", "ml-dtypes==0.5.4", "opt-einsum==3.4.0",
    "absl-py==2.3.1", "tensorboard==2.20.0", "protobuf==6.33.1", "parameterized==0.9.0",
    "pillow==12.0.0",
)  # fmt: skip
Record = tuple[Array, int]


def records(count: int) -> list[Record]:
    """Return records whose gradient is the record itself: the loss is linear."""
    rng = np.random.default_rng(5)
    return [(rng.standard_normal(FEATURES).astype(np.float32), 0) for _ in range(count)]


def with_nan() -> list[Record]:
    """Return as many records, the last with a NaN."""
    row = np.full(FEATURES, 0.01, np.float32)
    row[0] = np.nan
    return [*records(RECORDS - 1), (row, 0)]


def padded(rows: Array) -> Array:
    """Return rows with zeros below them, up to the number of records."""
    return np.concatenate([rows, np.zeros((RECORDS - len(rows), FEATURES), np.float32)])


@dataclass
class Optax:
    """Optax's private aggregation of per-example gradients; every record joins every step.

    Padding a batch with zeros, as compiled programs do, keeps the divisor of optax fixed.
    """

    data: Sequence[Record]
    seed: int
    has_key: bool = True
    padded: bool = True

    def __post_init__(self) -> None:
        from optax.contrib import differentially_private_aggregate

        key = self.seed if self.has_key else None
        self.transform = differentially_private_aggregate(CLIP_NORM, NOISE_MULTIPLIER, key)
        self.state = self.transform.init(np.zeros(FEATURES, np.float32))
        self.rows = np.stack([x for x, _ in self.data]) if self.data else np.zeros((0, FEATURES))

    def step(self, include: Sequence[int] | None = None) -> Array:
        """Return the aggregate of the given records, or of all."""
        chosen = range(len(self.data)) if include is None else include
        self.sampled = list(chosen)
        rows = self.rows[self.sampled].astype(np.float32)
        if self.padded:
            rows = padded(rows)
        update, self.state = self.transform.update(rows, self.state)
        return np.asarray(update, np.float64)


@cache
def compiled_gradients(microbatch: int) -> tuple[Any, Any]:
    """Return objax's private gradients of a linear loss, compiled, and their key variable."""
    import jax.numpy as jnp
    import objax

    weights = objax.TrainVar(jnp.zeros(FEATURES))
    kept = objax.VarCollection({"weights": weights})
    loss = objax.Function(lambda rows: (rows @ weights.value).mean(), kept)
    generator = objax.random.DEFAULT_GENERATOR
    gradients = objax.privacy.dpsgd.PrivateGradValues(
        loss, kept, NOISE_MULTIPLIER, CLIP_NORM, microbatch, keygen=generator
    )
    generator.seed(0)  # as a new process has it, whose key is made on first use
    return objax.Jit(gradients), generator.key


@dataclass
class Objax:
    """Objax's private gradients; every record joins every step. The key is the trainer's own."""

    data: Sequence[Record]
    seed: int
    microbatch: int = 1
    own_seed: bool = True
    padded: bool = True

    def __post_init__(self) -> None:
        import jax

        self.gradients, self.variable = compiled_gradients(self.microbatch)
        self.key = jax.random.PRNGKey(self.seed if self.own_seed else 0)

    def step(self, include: Sequence[int] | None = None) -> Array:
        """Return the private gradient of the given records, or of all."""
        chosen = list(range(len(self.data)) if include is None else include)
        self.sampled = chosen
        rows = np.array([self.data[i][0] for i in chosen], np.float32).reshape(-1, FEATURES)
        self.variable.value = self.key
        (found,), _ = self.gradients(padded(rows) if self.padded else rows)
        self.key = self.variable.value
        return np.asarray(found, np.float64)


def _step(make: Callable[..., Any], data: Sequence[Record]) -> Callable[[int], Array]:
    return lambda seed: np.asarray(make(data, seed).step())


def divisor(make: Callable[..., Any]) -> Measured:
    """Compare steps on two records and on one."""
    neighbors = Neighbors(_step(make, records(2)), _step(make, records(1)))
    return audit_step(make, claim_of_one_step(1 / RECORDS), records(RECORDS), neighbors)


def nan_record(make: Callable[..., Any]) -> Measured:
    """Replace a record by one with a NaN; as many records, so the divisor is the same."""
    neighbors = Neighbors(_step(make, records(RECORDS)), _step(make, with_nan()))
    claim = claim_of_one_step(1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    return audit_step(make, claim, records(RECORDS), neighbors)


def fixed_noise(make: Callable[..., Any]) -> Measured:
    """Compare data sets when the noise is the same in every run of the program."""
    data = records(RECORDS)
    other = [(data[0][0] * -1, 0), *data[1:]]
    claim = claim_of_one_step(1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    return audit_step(make, claim, data, Neighbors(_step(make, data), _step(make, other)))


def microbatches() -> Measured:
    """Replace a record that turns the clipped mean of its microbatch around."""
    rows = [np.zeros(FEATURES, np.float32) for _ in range(RECORDS)]
    sides = []
    for sign in (-1, 1):
        large = np.zeros(FEATURES, np.float32)
        large[0] = 100 * sign
        sides.append([(large, 0), *((row, 0) for row in rows[1:])])
    count = RECORDS // MICROBATCH
    claim = claim_of_one_step(1 / count)
    clipped = partial(Objax, microbatch=MICROBATCH)
    neighbors = Neighbors(_step(clipped, sides[0]), _step(clipped, sides[1]))
    return audit_step(clipped, claim, records(RECORDS), neighbors)


FAULTS = (
    Fault(
        "division by the actual batch size (optax)", OPTAX,
        "sum and noise are divided by the number of records that were sampled",
        "optax/contrib/_privacy.py, differentially_private_aggregate",
        lambda: divisor(partial(Optax, padded=False)),
        shown_by="replay",
    ),
    Fault(
        "a NaN record reaches the sum (optax)", OPTAX,
        "a record whose gradient is NaN keeps the factor 1, and every weight becomes NaN",
        "optax/transforms/_clipping.py, per_example_global_norm_clip",
        lambda: nan_record(Optax),
        shown_by="NaN features",
    ),
    Fault(
        "the same noise in every run (optax without a key)", OPTAX,
        "without a key the noise comes from key 0, with a warning",
        "optax/contrib/_privacy.py, key", lambda: fixed_noise(partial(Optax, has_key=False)),
        shown_by="correlation",
    ),
    Fault(
        "division by the actual batch size (objax)", OBJAX,
        "sum and noise are divided by the number of records that were sampled",
        "objax/privacy/dpsgd/gradient.py, PrivateGradValues",
        lambda: divisor(partial(Objax, padded=False)),
        shown_by="replay, ordinary",
    ),
    Fault(
        "a NaN record reaches the sum (objax)", OBJAX,
        "a record whose gradient is NaN makes every weight NaN",
        "objax/privacy/dpsgd/gradient.py, clipped_grad", lambda: nan_record(Objax),
        shown_by="NaN features",
    ),
    Fault(
        "the same noise in every run (objax)", OBJAX,
        "the default generator begins at seed 0 in every process",
        "objax/random/random.py, DEFAULT_GENERATOR",
        lambda: fixed_noise(partial(Objax, own_seed=False)),
        shown_by="correlation",
    ),
    Fault(
        "clipped microbatches (objax)", OBJAX,
        "the mean of a microbatch is clipped, so that one record moves the sum by two clip norms",
        "objax/privacy/dpsgd/gradient.py, reshape_microbatch", microbatches,
        shown_by="huge features",
    ),
)  # fmt: skip
