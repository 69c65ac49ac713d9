"""Target records and queries of black-box audits, and worst-case initial weights. Needs torch.

Four ways to choose what the auditor includes and asks:

- ``blank``: a record of zeros with its least likely label (Nasr et al. 2021, arXiv:2101.04535).
- ``mislabelled``: a held-out record with its least likely label.
- ``crafted``: the blank record is included; the query is optimized on pilot models, so that
  their losses with and without the record differ most in standard deviations. This is the
  distance objective on the losses of final models that Yoon et al. (2024), arXiv:2412.01756,
  optimize; details differ.
- ``optimized``: the record is optimized by gradients through noiseless training with it. Boglioni
  et al. (2025), arXiv:2507.15836, take metagradients through whole training runs; here the sum of
  the other records' clipped gradients is held fixed at the initial weights.

DP holds for any record and any query, so every choice that does not read the audited models gives
a valid bound. Pilot models are trained for the choice alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from dpaudit.attacks.membership.reference_training import (
    ReferenceModelSettings,
    train_references,
)
from dpaudit.vocabulary.arrays import IntArray
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_positive

Features = NDArray[np.float32]
TensorsByName = dict[str, Tensor]

ASCENT_STEPS = 60
UNROLLED_STEPS = 8
MIN_DEVIATION = 1e-6  # of pilot losses, which may all be equal


@dataclass(frozen=True)
class TargetRecord:
    """The record that half of the models are trained with, and the query that all are asked.

    Attributes:
        features: Features of the record, shape of one record.
        label: Its class.
        query: Features that the final models are evaluated on; often the record itself.
    """

    features: Features
    label: int
    query: Features


def least_likely_label(model: nn.Module, features: Features) -> int:
    """Find the class to which a model gives the smallest logit on a record.

    Args:
        model: A classifier.
        features: One record.

    Returns:
        The class.
    """
    with torch.no_grad():
        logits: Tensor = model(torch.from_numpy(features)[None])[0]
    return int(logits.argmin())


def blank_target(model: nn.Module, shape: tuple[int, ...]) -> TargetRecord:
    """Return a record of zeros with its least likely label under the initial weights.

    Args:
        model: The model with its initial weights.
        shape: Shape of one record.

    Returns:
        The record, which is its own query.

    Example:
        >>> target = blank_target(nn.Linear(4, 3), (4,))
        >>> target.features.tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    zeros = np.zeros(shape, dtype=np.float32)
    return TargetRecord(zeros, least_likely_label(model, zeros), zeros)


def mislabelled_target(model: nn.Module, features: Features, label: int) -> TargetRecord:
    """Return a record with its least likely label, other than its own.

    Args:
        model: The model with its initial weights.
        features: A record that is not among the training records.
        label: Its own class.

    Returns:
        The record, which is its own query.

    Raises:
        InvalidArgument: If the model has one class only.

    Example:
        >>> target = mislabelled_target(nn.Linear(4, 3), np.ones(4, dtype=np.float32), label=1)
        >>> target.label != 1
        True
    """
    with torch.no_grad():
        logits: Tensor = model(torch.from_numpy(features)[None])[0]
    order = [one for one in logits.argsort().tolist() if one != label]
    if not order:
        raise InvalidArgument("model", "one class", "a model of at least two classes")
    return TargetRecord(features, int(order[0]), features)


def crafted_query(
    target: TargetRecord, with_record: Sequence[nn.Module], without_record: Sequence[nn.Module]
) -> TargetRecord:
    """Optimize the query that tells pilot models with and without the record apart.

    Adam raises the difference of the mean losses over their pooled standard deviation.

    Args:
        target: The record; its query is the start.
        with_record: Pilot models that were trained with it, at least 2.
        without_record: Pilot models that were trained without it, at least 2.

    Returns:
        The same record with the best query that was seen.

    Raises:
        InvalidArgument: If there are fewer than 2 models of a kind.

    References:
        Yoon, Jeung & No (2024), arXiv:2412.01756, for crafted queries.

    Example:
        >>> blank = TargetRecord(*(np.zeros(4, np.float32), 0, np.zeros(4, np.float32)))
        >>> models = [nn.Linear(4, 3) for _ in range(4)]
        >>> crafted_query(blank, models[:2], models[2:]).query.shape
        (4,)
    """
    require_count("pilot models", min(len(with_record), len(without_record)), least=2)
    label = torch.tensor([target.label])

    def separation(query: Tensor) -> Tensor:
        """Return the gap of the mean losses in pooled standard deviations."""
        found = [
            torch.stack(
                [nn.functional.cross_entropy(model(query[None]), label) for model in models]
            )
            for models in (without_record, with_record)
        ]
        spread = torch.stack([losses.var() for losses in found]).mean().sqrt()
        return (found[0].mean() - found[1].mean()) / (spread + MIN_DEVIATION)

    return TargetRecord(target.features, target.label, _ascended(target.query, separation))


def _ascended(start: Features, objective: Callable[[Tensor], Tensor]) -> Features:
    """Return the best point of a gradient ascent with Adam; the start if nothing is better."""
    point = torch.from_numpy(start.copy()).requires_grad_(True)
    optimizer = torch.optim.Adam([point], lr=0.05)
    best, most = start, -np.inf
    for _ in range(ASCENT_STEPS):
        value = objective(point)
        reached = float(value.detach())
        if reached > most:
            best, most = point.detach().numpy().copy(), reached
        (uphill,) = torch.autograd.grad(value, [point], allow_unused=True)
        if uphill is None or not torch.isfinite(uphill).all():
            break
        point.grad = -uphill
        optimizer.step()
    return best


def optimized_target(
    model: nn.Module,
    start: TargetRecord,
    others: tuple[Features, IntArray],
    *,
    clip_norm: float,
    learning_rate: float,
) -> TargetRecord:
    """Optimize the record by gradients through noiseless training with it.

    Training is unrolled for a few steps. The record's clipped gradient is taken at the weights of
    each step, and the mean gradient of the other records at the initial weights. The objective is
    the fall of the record's loss because it took part, divided by the norm of its loss's gradient,
    to which the noise in that loss is proportional.

    Args:
        model: The model with its initial weights.
        start: The record to start from.
        others: Features and labels of records that take part in every step.
        clip_norm: Largest L2 norm of one record's gradient, above 0.
        learning_rate: Learning rate of a step on the sum of gradients, above 0.

    Returns:
        The record, which is its own query.

    Raises:
        InvalidArgument: If a number is not above 0.

    References:
        Boglioni et al. (2025), arXiv:2507.15836, for gradients through training.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> others = np.ones((5, 4), np.float32), np.zeros(5, np.int64)
        >>> found = optimized_target(
        ...     model, blank_target(model, (4,)), others, clip_norm=1.0, learning_rate=0.1
        ... )
        >>> found.query is found.features
        True
    """
    require_positive("clip_norm", clip_norm)
    require_positive("learning_rate", learning_rate)
    initial = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    label = torch.tensor([start.label])

    def loss(weights: TensorsByName, record: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, (weights, buffers), (record[None],))
        return nn.functional.cross_entropy(outputs, label)

    steady = _clipped_mean(model, others, clip_norm)

    def gain(record: Tensor) -> Tensor:
        """Return the signal of the record in its own loss, over the noise's size there."""
        outside = {name: value.clone().requires_grad_(True) for name, value in initial.items()}
        inside = dict(outside)
        for _ in range(UNROLLED_STEPS):
            own = torch.autograd.grad(
                loss(inside, record), list(inside.values()), create_graph=True
            )
            norm = torch.stack([part.square().sum() for part in own]).sum().add(1e-12).sqrt()
            factor = torch.clamp(clip_norm / norm, max=1.0)
            inside = {
                name: value - learning_rate * (steady[name] + factor * part)
                for (name, value), part in zip(inside.items(), own, strict=True)
            }
            outside = {
                name: value - learning_rate * steady[name] for name, value in outside.items()
            }
        before = loss(outside, record)
        slopes = torch.autograd.grad(before, list(outside.values()), create_graph=True)
        size = torch.stack([part.square().sum() for part in slopes]).sum().add(1e-12).sqrt()
        return (before - loss(inside, record)) / size

    found = _ascended(start.features, gain)
    return TargetRecord(found, start.label, found)


def _clipped_mean(
    model: nn.Module, others: tuple[Features, IntArray], clip_norm: float
) -> TensorsByName:
    """Return the mean clipped gradient of records at the model's weights, per parameter."""
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
    features, labels = torch.from_numpy(others[0]), torch.from_numpy(others[1])
    for record, label in zip(features, labels, strict=True):
        loss = nn.functional.cross_entropy(model(record[None]), label[None])
        own = torch.autograd.grad(loss, list(parameters.values()))
        norm = torch.stack([part.square().sum() for part in own]).sum().sqrt()
        factor = float(torch.clamp(clip_norm / norm.clamp(min=1e-12), max=1.0))
        for name, part in zip(parameters, own, strict=True):
            sums[name] += factor * part / len(labels)
    return sums


def pretrained_weights(
    make_model: Callable[[int], nn.Module],
    features: Features,
    labels: IntArray,
    *,
    epochs: int,
    seed: int,
) -> TensorsByName:
    """Train worst-case initial weights without noise, on records that are not audited.

    The gradients of ordinary records are then small, and that of the target stands out.

    Args:
        make_model: Makes a model from a seed.
        features: Half of the records, shape ``(records, ...)``.
        labels: Their classes, shape ``(records,)``.
        epochs: Number of epochs, at least 1.
        seed: Seed of the weights and of the order of the records.

    Returns:
        Parameters and buffers by name.

    References:
        Annamalai & De Cristofaro (2024), arXiv:2405.14106.

    Example:
        >>> features, labels = np.ones((6, 4), np.float32), np.zeros(6, np.int64)
        >>> found = pretrained_weights(
        ...     lambda _: nn.Linear(4, 2), features, labels, epochs=1, seed=0
        ... )
        >>> found["weight"].shape
        torch.Size([2, 4])
    """
    settings = ReferenceModelSettings(
        make_model, epochs=epochs, batch_size=64, learning_rate=0.003, seed=seed
    )
    stack = train_references(settings, features, labels, np.ones((1, len(labels)), dtype=np.bool_))
    return {name: value[0].clone() for name, value in (stack.parameters | stack.buffers).items()}
