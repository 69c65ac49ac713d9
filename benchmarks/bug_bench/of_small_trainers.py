"""Faults of pyvacy, deepee and dp-transformers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faults import DELTA, NOISE_MULTIPLIER, Fault, Measured
from of_opacus import CLASSES, FEATURES, against_truth, linear, records, with_nan
from step_audits import CLIP_NORM, Array, Neighbors, audit_step, claim_of_one_step
from torch import nn

from dpaudit.accountants import Adjacency, Gaussian, Repeated, SampledWithoutReplacement, pld

Record = tuple[Array, int]
RECORDS, RATE = 20, 0.2
PYVACY, DEEPEE = ("pyvacy==0.0.32",), ("deepee==0.1.9",)
DP_TRANSFORMERS = (
    "dp-transformers==1.0.0", "opacus==1.2.0", "opt-einsum==3.4.0", "prv-accountant==0.1.1.post1",
)  # fmt: skip


def _tensors(data: Sequence[Record]) -> tuple[torch.Tensor, torch.Tensor]:
    features = np.array([x for x, _ in data], np.float32).reshape(-1, FEATURES)
    return torch.from_numpy(features), torch.tensor([y for _, y in data], dtype=torch.int64)


def _flat(model: nn.Module) -> Array:
    parts = [p.detach().flatten() for p in model.parameters()]
    return torch.cat(parts).numpy().astype(np.float64)


# pyvacy: an optimizer whose step clips and adds noise.


@dataclass
class Pyvacy:
    """Pyvacy's DPSGD on batches of all records, at learning rate 1."""

    data: Sequence[Record]
    seed: int
    separate: bool = False

    def __post_init__(self) -> None:
        from pyvacy.optim import DPSGD

        self.model = linear()
        parameters: Any = list(self.model.parameters())
        if self.separate:
            parameters = [{"params": [one]} for one in parameters]
        self.optimizer = DPSGD(CLIP_NORM, NOISE_MULTIPLIER, RECORDS, params=parameters, lr=1.0)
        self.generator = torch.Generator().manual_seed(self.seed)

    def step(self, include: Sequence[int] | None = None) -> Array:
        """Take one step on the given records, or on all."""
        chosen = list(range(len(self.data)) if include is None else include)
        self.sampled = chosen
        before = _flat(self.model)
        self.optimizer.zero_grad()
        features, labels = _tensors([self.data[i] for i in chosen])
        losses = nn.functional.cross_entropy(self.model(features), labels, reduction="sum")
        (losses / RECORDS).backward()
        torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
        self.optimizer.step()
        return _flat(self.model) - before


def _step(make: Callable[..., Any], data: Sequence[Record]) -> Callable[[int], Array]:
    return lambda seed: np.asarray(make(data, seed).step())


def _opposed(scale: float) -> list[list[Record]]:
    """Return two data sets that differ in one record, which points the other way."""
    row = np.full(FEATURES, scale, np.float32)
    rest = [(np.zeros(FEATURES, np.float32), 0) for _ in range(RECORDS - 1)]
    return [[(sign * row, 1), *rest] for sign in (-1, 1)]


def batch_clipping() -> Measured:
    """Replace a record that is long enough to decide the direction of the whole gradient."""
    claim = claim_of_one_step(-1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    neighbors = Neighbors(*(_step(Pyvacy, data) for data in _opposed(1000.0)))
    return audit_step(Pyvacy, claim, records(RECORDS), neighbors)


def of_groups(data: Sequence[Record], seed: int) -> Pyvacy:
    """Make the optimizer with a group for each parameter."""
    return Pyvacy(data, seed, separate=True)


def parameter_groups() -> Measured:
    """Use two groups: the norm's root is taken once in each."""
    claim = claim_of_one_step(-1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    neighbors = Neighbors(*(_step(of_groups, data) for data in _opposed(1000.0)))
    return audit_step(of_groups, claim, records(RECORDS), neighbors)


# deepee: a model for each record of a batch.


def _one_by_one(models: Sequence[nn.Module], inputs: Any) -> list[torch.Tensor]:
    return [model(one) for model, one in zip(models, inputs, strict=True)]


@dataclass
class Deepee:
    """Deepee's wrapper on batches of all records, at learning rate 1."""

    data: Sequence[Record]
    seed: int
    own_seed: int | None = None

    def __post_init__(self) -> None:
        from deepee import PrivacyWrapper

        logging.disable(logging.CRITICAL)
        torch.nn.parallel.parallel_apply = _one_by_one  # torch's needs an accelerator
        self.wrapper = PrivacyWrapper(
            linear(), len(self.data), CLIP_NORM, NOISE_MULTIPLIER, seed=self.own_seed
        )
        self.generator = torch.Generator().manual_seed(self.seed)

    def step(self) -> Array:
        """Take one step on all records."""
        self.sampled = list(range(len(self.data)))
        model = self.wrapper.wrapped_model
        before = _flat(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        features, labels = _tensors(self.data)
        scores = self.wrapper(features).reshape(len(self.data), CLASSES)
        nn.functional.cross_entropy(scores, labels, reduction="sum").backward()
        self.wrapper.clip_and_accumulate()
        torch.manual_seed(int(torch.randint(2**62, (), generator=self.generator)))
        self.wrapper.noise_gradient()
        optimizer.step()
        self.wrapper.prepare_next_batch()
        return _flat(model) - before


def deepee_nan() -> Measured:
    """Replace a record by one with a NaN."""
    claim = claim_of_one_step(-1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    data = [*records(RECORDS - 1), with_nan()[-1]]
    neighbors = Neighbors(_step(Deepee, records(RECORDS)), _step(Deepee, data))
    return audit_step(Deepee, claim, records(RECORDS), neighbors)


def with_seed(data: Sequence[Record], seed: int) -> Deepee:
    """Make the wrapper with a seed of its own, which is derived from the audit's."""
    return Deepee(data, seed, own_seed=seed + 1)


def reseeded() -> Measured:
    """Give the wrapper a seed: it is set again before the noise of every parameter."""
    claim = claim_of_one_step(-1 / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    claim = replaced_steps(claim, 8)
    neighbors = Neighbors(*(_step(with_seed, data) for data in _opposed(1.0)))
    return audit_step(with_seed, claim, records(RECORDS), neighbors)


def replaced_steps(claim: Any, steps: int) -> Any:
    """Return a claim of more steps."""
    import msgspec

    return msgspec.structs.replace(claim, steps=steps)


def deepee_accounting() -> Measured:
    """Ask deepee's accounting, a limit theorem, for a bound."""
    from deepee.privacy_accounting import compute_eps_uniform

    size, batch, noise, epochs = 10_000, 100, 1.0, 10
    claimed = float(compute_eps_uniform(epochs, noise, size, batch, DELTA))
    release = SampledWithoutReplacement(Gaussian(noise), batch, size)
    steps = Repeated(release, epochs * size // batch)
    truth = pld.profile(steps, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=DELTA)
    return against_truth(claimed, truth, DELTA)


# dp-transformers: its trainer's sampler, on a step that is right otherwise.


@dataclass
class Authors:
    """The sampler of the trainer, over a correct noisy sum of clipped vectors."""

    data: Sequence[Record]
    seed: int

    def __post_init__(self) -> None:
        from dp_transformers.sampler import ShuffledAuthorSampler

        mapping = [[i] for i in range(len(self.data))]
        size = max(1, round(RATE * len(self.data)))
        self.sampler = ShuffledAuthorSampler(mapping, size, 1)
        self.rng = np.random.default_rng(self.seed)
        self.batches: Any = None

    def step(self, include: Sequence[int] | None = None) -> Array:
        """Return the noisy sum of the given records, or of the sampler's batch."""
        noise = NOISE_MULTIPLIER * CLIP_NORM * self.rng.standard_normal(FEATURES)
        self.sampled = self._next() if include is None else list(include)
        rows = np.stack([self.data[i][0] for i in self.sampled] or [np.zeros(FEATURES)])
        rows = rows[np.isfinite(rows).all(axis=1)].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray((rows / np.maximum(norms / CLIP_NORM, 1.0)).sum(axis=0) + noise)

    def _next(self) -> list[int]:
        batch = None if self.batches is None else next(self.batches, None)
        if batch is None:
            torch.manual_seed(int(self.rng.integers(2**62)))
            self.batches = iter(self.sampler)
            batch = next(self.batches)
        return list(batch)


def shuffled_authors() -> Measured:
    """Draw batches as the trainer does, whose accountants amplify by Poisson sampling."""
    claim = replaced_steps(claim_of_one_step(1.0, sampling_rate=RATE), round(1 / RATE))
    data = records(RECORDS)
    neighbors = Neighbors(_step(Authors, data), _step(Authors, data))
    return audit_step(Authors, claim, data, neighbors)


FAULTS = (
    Fault(
        "the batch's gradient is clipped, not each record's (pyvacy)", PYVACY,
        "step() clips the mean gradient of the batch",
        "pyvacy/optim/dp_optimizer.py, step", batch_clipping,
        shown_by="large features",
    ),
    Fault(
        "the norm's root is taken in every group (pyvacy)", PYVACY,
        "with several parameter groups the squares of later groups are added to a root",
        "pyvacy/optim/dp_optimizer.py, total_norm", parameter_groups,
        shown_by="large features",
    ),
    Fault(
        "the same noise for every parameter and step (deepee)", DEEPEE,
        "with seed= the generator is seeded anew before the noise of each parameter",
        "deepee/wrapper.py, noise_gradient", reseeded,
        shown_by="correlation",
        why_not="the wrapper takes no step without records, so the noise alone is not seen",
    ),
    Fault(
        "a NaN record reaches the sum (deepee)", DEEPEE,
        "a record whose gradient is NaN makes every weight NaN",
        "deepee/wrapper.py, clip_and_accumulate", deepee_nan,
        shown_by="NaN features",
    ),
    Fault(
        "a limit theorem as a bound (deepee)", DEEPEE,
        "the central limit theorem's epsilon is reported as a guarantee",
        "deepee/privacy_accounting.py, compute_eps_uniform", deepee_accounting,
    ),
    Fault(
        "shuffled batches accounted as Poisson (dp-transformers)", DP_TRANSFORMERS,
        "the trainer's sampler shuffles authors; both of its accountants amplify",
        "dp_transformers/sampler.py, ShuffledAuthorSampler", shuffled_authors,
        shown_by="sampler",    ),
)  # fmt: skip
