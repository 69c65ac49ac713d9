"""Faults of Opacus, executed through its own engine, optimizer, loader and accountants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faults import DELTA, NOISE_MULTIPLIER, Fault, Measured
from step_audits import (
    CLIP_NORM,
    Array,
    Neighbors,
    audit_step,
    bound_of,
    claim_of_one_step,
    claimed_epsilon,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpaudit.accountants import Adjacency, Gaussian, PoissonSampled, Repeated, pld
from dpaudit.attacks.conformance.opacus import OpacusTrainerFactory
from dpaudit.vocabulary.conformance import StepClaim

Record = tuple[Array, int]
FEATURES, CLASSES, RECORDS, RATE = 20, 10, 100, 0.2
LEARNING_RATE = 1.0
PLAN = (0.01, 1.0, 1000)  # sampling rate, noise multiplier, steps
NEWEST = ("opacus==1.6.0", "opt-einsum==3.4.0")
OLDEST = ("opacus==0.15.0", "opt-einsum==3.4.0")


def linear() -> nn.Module:
    """Return a small model with the same weights at every call."""
    torch.manual_seed(1)
    return nn.Linear(FEATURES, CLASSES)


def records(count: int) -> list[Record]:
    """Return ordinary records."""
    rng = np.random.default_rng(2)
    drawn = rng.standard_normal((count, FEATURES))
    return [(row.astype(np.float32), int(rng.integers(CLASSES))) for row in drawn]


def with_nan() -> list[Record]:
    """Return ordinary records, and a last one that has a NaN."""
    features = np.ones(FEATURES, np.float32)
    features[3] = np.nan
    return [*records(RECORDS - 1), (features, 1)]


def factory(size: int = RECORDS, **options: Any) -> OpacusTrainerFactory:
    """Return trainers of the engine for data sets of one size."""
    return OpacusTrainerFactory(
        model=options.pop("model", linear),
        loss=options.pop("loss", nn.CrossEntropyLoss()),
        learning_rate=LEARNING_RATE,
        noise_multiplier=NOISE_MULTIPLIER,
        clip_norm=CLIP_NORM,
        sampling_rate=options.pop("rate", RATE),
        dataset_size=size,
        options=options,
    )


def _sampled_step(made: OpacusTrainerFactory, count: int) -> Callable[[int], Array]:
    return lambda seed: made(records(count), seed).step()


def _full_step(
    make: Callable[[Sequence[Any], int], Any], data: Sequence[Any], include: Sequence[int]
) -> Callable[[int], Array]:
    return lambda seed: np.asarray(make(data, seed).step(include=include))


def divisor() -> Measured:
    """Compare steps on 100 and on 101 records: the engine divides by 20 and by 16."""
    made = factory()
    claim = made.claim(steps=1)
    neighbors = Neighbors(_sampled_step(made, RECORDS), _sampled_step(made, RECORDS + 1))
    return audit_step(made, claim, records(RECORDS), neighbors)


def nan_record(**options: Any) -> Measured:
    """Replace a record of full batches by one with a NaN; the divisor is that of all of them."""
    made, everyone = factory(rate=1.0, **options), range(RECORDS)
    neighbors = Neighbors(
        _full_step(made, records(RECORDS), everyone), _full_step(made, with_nan(), everyone)
    )
    return audit_step(made, _replaced(made), records(RECORDS), neighbors)


def _replaced(made: OpacusTrainerFactory) -> StepClaim:
    """Return the claim under which the number of records, and so the divisor, is public."""
    scale = -LEARNING_RATE / made.expected_batch_size
    return claim_of_one_step(scale, adjacency=Adjacency.REPLACE_ONE)


def shuffled() -> Measured:
    """Train without Poisson sampling, and let the accountant amplify as if there was."""
    made = factory(poisson_sampling=False)
    claim = made.claim(steps=round(1 / RATE))
    neighbors = Neighbors(_sampled_step(made, RECORDS), _sampled_step(made, RECORDS))
    return audit_step(made, claim, records(RECORDS), neighbors)


# Ghost clipping takes the norms by a formula that assumes zeros around the input; the sum of
# gradients is what autograd returns.

CHANNELS, LENGTH, PADDING = 2, 4, 3


class Convolution(nn.Module):
    """A convolution that pads its input by reflection, and no other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(
            CHANNELS, 3, 2 * PADDING + 1, padding=PADDING, padding_mode="reflect", bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).sum(dim=2)
        return out


def convolution() -> nn.Module:
    """Return the convolution with the same weights at every call."""
    torch.manual_seed(3)
    return Convolution()


def reflected_padding() -> Measured:
    """Replace a record of a reflecting convolution by a large one under ghost clipping."""
    rng = np.random.default_rng(4)
    data = [
        (rng.standard_normal((CHANNELS, LENGTH)).astype(np.float32), int(rng.integers(3)))
        for _ in range(RECORDS - 1)
    ]
    large = [(sign * 30 * np.ones((CHANNELS, LENGTH), np.float32), 1) for sign in (-1, 1)]
    made = factory(rate=1.0, model=convolution, grad_sample_mode="ghost")
    steps = [_full_step(made, [*data, one], [RECORDS - 1]) for one in large]
    return audit_step(made, _replaced(made), data, Neighbors(*steps), probes=large)


# Adaptive clipping divides the noisy count by the true size of the batch, and the next clip norm,
# which scales the noise, shows it.

ADAPTIVE_RUNS = 600
ADAPTIVE = {
    "clipping": "adaptive", "target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.2,
    "max_clipbound": 1e8, "min_clipbound": 1e-8, "unclipped_num_std": 10.0,
}  # fmt: skip


def adaptive_clipping() -> Measured:
    """Release the clip norm after a step on one record, and after a step on two."""

    def released(include: Sequence[int]) -> Callable[[int], Array]:
        def draw(seed: int) -> Array:
            trainer = factory(**ADAPTIVE)(records(RECORDS), seed)
            torch.manual_seed(seed)  # of the noise on the count
            trainer.step(include=include)
            return np.array([math.log(float(trainer._optimizer.max_grad_norm))])

        return draw

    bound = bound_of(Neighbors(released([0, 1]), released([0])), ADAPTIVE_RUNS)
    claimed = claimed_epsilon(claim_of_one_step(1.0))
    return Measured(claimed, DELTA, "not tested", lower=bound.epsilon, kind=bound.kind.value)


def criterion_function() -> Measured:
    """Give ghost clipping a function as the loss, whose reduction the engine cannot change."""
    made = factory(rate=1.0, grad_sample_mode="ghost", loss=nn.functional.cross_entropy)
    data = records(RECORDS)
    large = [(sign * 100 * data[0][0], data[0][1]) for sign in (-1, 1)]
    steps = [_full_step(made, [one, *data[1:]], range(RECORDS)) for one in large]
    return audit_step(made, _replaced(made), data, Neighbors(*steps))


# Accountants


def limit_theorem() -> Measured:
    """Ask the accountant of Gaussian differential privacy, a limit, for a bound."""
    from opacus.accountants import GaussianAccountant

    return _accounted(GaussianAccountant(), 1e-5)


def small_delta() -> Measured:
    """Ask the numerical accountant at a delta below the noise of its Fourier transform."""
    from opacus.accountants import PRVAccountant

    return _accounted(PRVAccountant(), 1e-13)


def _accounted(accountant: Any, delta: float) -> Measured:
    rate, noise, steps = PLAN
    accountant.history = [(noise, rate, steps)]
    truth = pld.profile(Repeated(PoissonSampled(Gaussian(noise), rate), steps))
    return against_truth(float(accountant.get_epsilon(delta)), truth.epsilon(delta=delta), delta)


def against_truth(claimed: float, truth: Any, delta: float) -> Measured:
    """Compare a claimed epsilon with the certified interval of the same plan."""
    verdict = "FAIL" if claimed < truth.lower else "PASS"
    return Measured(
        claimed, delta, verdict, lower=truth.lower, kind="certified interval",
        observed={"upper": truth.upper},
    )  # fmt: skip


# Opacus 0.15: the engine attaches to an optimizer, and the user brings the loader.


@dataclass
class OldTrainer:
    """One trainer of the engine of 0.15, on a loader of shuffled batches as its guides show."""

    data: Sequence[Record]
    seed: int
    poisson: bool = False

    def __post_init__(self) -> None:
        from opacus import PrivacyEngine

        self.model = linear()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = PrivacyEngine(
                self.model,
                batch_size=round(RATE * RECORDS),
                sample_size=RECORDS,
                noise_multiplier=NOISE_MULTIPLIER,
                max_grad_norm=CLIP_NORM,
            )
            engine.attach(optimizer)
        engine.random_number_generator.manual_seed(self.seed)
        self.optimizer, self.number, self.sampled = optimizer, 0, list[int]()
        self.rows = TensorDataset(
            torch.stack([torch.as_tensor(x) for x, _ in self.data]),
            torch.tensor([y for _, y in self.data]),
            torch.arange(len(self.data)),
        )
        self.batches: Any = None

    def step(self, include: Sequence[int] | None = None) -> Array:
        """Take one step on a shuffled batch, or on the given records."""
        x, y, self.indices = self._next() if include is None else self.rows[list(include)]
        self.sampled = self.indices.tolist()
        before = self._flat()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        return self._flat() - before

    def _next(self) -> Any:
        batch = None if self.batches is None else next(self.batches, None)
        if batch is None:
            self.number += 1
            coins = torch.Generator().manual_seed(self.seed + self.number)
            size = round(RATE * RECORDS)
            self.batches = iter(
                DataLoader(
                    self.rows,
                    size,
                    shuffle=True,
                    generator=coins,
                    drop_last=len(self.data) > size,
                )
            )
            batch = next(self.batches)
        return batch

    def _flat(self) -> Array:
        parts = [p.detach().flatten() for p in self.model.parameters()]
        return torch.cat(parts).numpy().astype(np.float64)


def old_shuffled() -> Measured:
    """Train with the default of 0.15, whose accountant assumes Poisson sampling."""
    scale = -LEARNING_RATE / round(RATE * RECORDS)
    claim = claim_of_one_step(scale, sampling_rate=RATE, adjacency=Adjacency.REPLACE_ONE)

    def draw(seed: int) -> Array:
        return OldTrainer(records(RECORDS), seed).step()

    return audit_step(OldTrainer, claim, records(RECORDS), Neighbors(draw, draw))


def old_divisor() -> Measured:
    """Give the engine of 0.15 one record more than the batch: it divides by the batch's size."""
    claim = claim_of_one_step(-LEARNING_RATE / round(RATE * RECORDS))
    data = records(RECORDS)
    neighbors = Neighbors(_full_step(OldTrainer, data, [0]), _full_step(OldTrainer, data, [0, 1]))
    return audit_step(OldTrainer, claim, data, neighbors)


def old_nan() -> Measured:
    """Replace a record of the engine of 0.15 by one with a NaN, at the same divisor."""
    claim = claim_of_one_step(-LEARNING_RATE / RECORDS, adjacency=Adjacency.REPLACE_ONE)
    ordinary, everyone = records(RECORDS), range(RECORDS)
    neighbors = Neighbors(
        _full_step(OldTrainer, ordinary, everyone), _full_step(OldTrainer, with_nan(), everyone)
    )
    return audit_step(OldTrainer, claim, ordinary, neighbors)


FAULTS = (
    Fault(
        "divisor from the data set's size", NEWEST,
        "the sum is divided by the rate times the number of records, rounded down",
        "https://github.com/pytorch/opacus/issues/571", divisor,
        shown_by="public constants",
    ),
    Fault(
        "a NaN record reaches the sum (hooks)", NEWEST,
        "a record whose gradient is NaN makes every weight NaN",
        "opacus/optimizers/optimizer.py, clip_and_accumulate", nan_record,
        shown_by="NaN features",
    ),
    Fault(
        "a NaN record reaches the sum (ghost clipping)", NEWEST,
        "as with hooks; the clip factor of a NaN norm is NaN",
        "opacus/grad_sample/grad_sample_module_fast_gradient_clipping.py",
        lambda: nan_record(grad_sample_mode="ghost"),
        shown_by="NaN features",
    ),
    Fault(
        "a NaN record reaches the sum (functorch)", NEWEST,
        "as with hooks, in the mode that differentiates record by record",
        "opacus/optimizers/optimizer.py, clip_and_accumulate",
        lambda: nan_record(grad_sample_mode="functorch"),
        shown_by="NaN features",
    ),
    Fault(
        "shuffled batches accounted as Poisson", NEWEST,
        "poisson_sampling=False trains on shuffled batches; the accountant still amplifies",
        "opacus/privacy_engine.py, make_private(poisson_sampling=)", shuffled,
        shown_by="sampler",
    ),
    Fault(
        "adaptive clipping divides by the true batch size", NEWEST,
        "the noisy count of unclipped records is divided by the number of sampled records; the "
        "next clip norm shows whether a batch was empty",
        "opacus/optimizers/adaclipoptimizer.py, update_max_grad_norm", adaptive_clipping,
    ),
    Fault(
        "norms of padded convolutions (ghost clipping)", NEWEST,
        "padding_mode is ignored: norms assume zeros, the gradient sees reflected input",
        "opacus/grad_sample/conv.py", reflected_padding,
        shown_by="replay, given",
    ),
    Fault(
        "a function as the loss (ghost clipping)", NEWEST,
        "the engine sets .reduction on the function, which has no effect: the batch's mean loss "
        "is multiplied by the clip factors, and no gradient is clipped",
        "opacus/utils/fast_gradient_clipping_utils.py", criterion_function,
        shown_by="large features",
    ),
    Fault(
        "a limit theorem as a bound (GDP accountant)", NEWEST,
        "the central limit theorem's epsilon is reported as a guarantee",
        "opacus/accountants/gdp.py", limit_theorem,
    ),
    Fault(
        "numerical accountant at a small delta", NEWEST,
        "at delta 1e-13 the error of the Fourier transform is larger than delta",
        "opacus/accountants/prv.py", small_delta,
    ),
    Fault(
        "shuffled batches accounted as Poisson (0.15)", OLDEST,
        "the engine's default (poisson=False) trains on shuffled batches and amplifies",
        "opacus/privacy_engine.py, poisson", old_shuffled,
        shown_by="sampler",
    ),
    Fault(
        "division by the actual batch size (0.15)", OLDEST,
        "sum and noise are divided by the number of records of the batch",
        "opacus/privacy_engine.py, step", old_divisor,
        shown_by="replay, ordinary",
    ),
    Fault(
        "a NaN record reaches the sum (0.15)", OLDEST,
        "a record whose gradient is NaN makes every weight NaN",
        "opacus/utils/clipping.py", old_nan,
        shown_by="NaN features",
    ),
)  # fmt: skip
