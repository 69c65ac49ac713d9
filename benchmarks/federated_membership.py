"""Membership inference on a federation: one upload, the sum of uploads, and the final model.

Participants train with DP-SGD on digits. Each has 80 candidate records, and a fair coin includes
each of them. The same candidates are scored from three views:

- upload: the server sees each participant's uploads (no secure aggregation);
- sum: the server sees the sum of all uploads alone (secure aggregation);
- final model: a reader of the released model sees its losses.

    python benchmarks/federated_membership.py
    python benchmarks/federated_membership.py --rounds 5 --json results.json

Each view shows AUC, the true-positive rate at 1% false positives, and a lower bound of epsilon:
the certified one-run bound, since the coins are fair and independent. The upper bound is that of
the accountant for one record. Seconds are of one thread.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side.tables import table, titled
from torch import Tensor, nn

import dpaudit
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.attacks.membership import (
    RecordScores,
    evaluate,
    gradient_alignment_scores,
    gradient_regression_scores,
    loss_difference_scores,
    loss_scores,
)
from dpaudit.attacks.one_run import audit_scores
from dpaudit.trainer.federated.conformance_clients import ParticipantClientFactory
from dpaudit.trainer.federated.federation_run import prepare_federation
from dpaudit.trainer.models.factories import trained_part
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.settings import DataSettings, ModelSettings

Array = NDArray[np.float64]
Bits = NDArray[np.bool_]

PARTICIPANTS, CANDIDATES = 10, 80
LOCAL_STEPS, RATE, BATCH = 4, 0.25, 10.0
CLIP_NORM, LEARNING_RATE, DELTA = 0.5, 0.5, 1e-5
NOISES = (0.01, 0.5, 1.0, 2.0)
CONFIDENCE = 0.95
MODEL_ERROR = 0.05  # standard deviation per coordinate of what moving weights change
LARGEST_CLAIM = 100.0  # a larger one cannot be audited: guesses are registered for epsilon 8


def config(noise_multiplier: float, rounds: int) -> FederatedConfig:
    """Return the settings of one federation."""
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings("fedavg", PARTICIPANTS, rounds),
        FederatedPrivacy(delta=DELTA, noise_multiplier=noise_multiplier, clip_norm=CLIP_NORM),
        LocalTraining(LOCAL_STEPS, RATE, expected_batch_size=BATCH),
        model=ModelSettings("mlp", learning_rate=LEARNING_RATE),
    )


class Candidates:
    """Losses and clipped gradients of all candidates under a global model.

    Args:
        model: The model, whose parameters are replaced.
        features: Inputs, shape ``(candidates, ...)``.
        labels: Labels, shape ``(candidates,)``.
    """

    def __init__(self, model: nn.Module, features: Tensor, labels: Tensor) -> None:
        self._model, self._features, self._labels = model, features, labels

    def losses(self, weights: Array) -> Array:
        """Return the loss of each candidate, shape ``(candidates,)``."""
        self._set(weights)
        with torch.no_grad():
            losses = nn.functional.cross_entropy(
                self._model(self._features), self._labels, reduction="none"
            )
        return losses.numpy().astype(np.float64)

    def gradients(self, weights: Array) -> NDArray[np.float32]:
        """Return the clipped gradient of each candidate, shape ``(candidates, d)``."""
        self._set(weights)
        parameters = {name: p.detach() for name, p in self._model.named_parameters()}

        def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            output = torch.func.functional_call(self._model, parameters, (x[None],))
            return nn.functional.cross_entropy(output, y[None])

        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        found = each(parameters, self._features, self._labels)
        flat = torch.cat([part.flatten(1) for part in found.values()], dim=1)
        factor = (CLIP_NORM / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        return (flat * factor).numpy()

    def _set(self, weights: Array) -> None:
        start = 0
        with torch.no_grad():
            for parameter in self._model.parameters():
                size = parameter.numel()
                part = torch.as_tensor(weights[start : start + size], dtype=torch.float32)
                parameter.copy_(part.view(parameter.shape))
                start += size


def candidate_records(split: Any, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and labels of all candidates, in the order of participants."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(split.train))[: PARTICIPANTS * CANDIDATES]
    return split.train.features[chosen], split.train.labels[chosen]


def measure(noise_multiplier: float, rounds: int, seed: int) -> dict[str, Any]:
    """Train one federation and attack it from every view."""
    begin = time.process_time()
    prepared = prepare_federation(config(noise_multiplier, rounds))
    features, labels = candidate_records(prepared.split, seed)
    included = np.random.default_rng([seed, 1]).random(len(labels)) < 0.5
    owner = np.arange(len(labels)) // CANDIDATES
    factory = ParticipantClientFactory(prepared)
    clients = []
    for number in range(PARTICIPANTS):
        own = np.flatnonzero(included & (owner == number))
        records = list(zip(features[own], labels[own], strict=True))
        clients.append(factory(records, seed, number))
    candidates = Candidates(
        trained_part(prepared.model), torch.from_numpy(features), torch.from_numpy(labels)
    )
    model = clients[0].global_model.copy()
    uploads: list[Array] = []
    gradients: list[NDArray[np.float32]] = []
    before, after_upload, after_sum = [], [], []
    for _ in range(rounds):
        gradients.append(candidates.gradients(model))
        sent = np.array([client.local_update(model) for client in clients])
        uploads.append(sent)
        before.append(candidates.losses(model))
        moved = np.array([candidates.losses(model + own) for own in sent])
        after_upload.append(moved[owner, np.arange(len(owner))])
        model = model + sent.mean(axis=0)
        after_sum.append(candidates.losses(model))
    deviation = noise_multiplier * CLIP_NORM * np.sqrt(LOCAL_STEPS)
    views = {
        "upload, gradient": by_upload(
            uploads, gradients, owner, deviation, gradient_alignment_scores
        ),
        "upload, regression": by_upload(uploads, gradients, owner, deviation, regress),
        "upload, loss": loss_difference_scores(np.array(before), np.array(after_upload)),
        "sum, gradient": gradient_alignment_scores(
            [as_sum(sent.sum(axis=0)) for sent in uploads],
            gradients,
            [deviation * np.sqrt(PARTICIPANTS)] * rounds,
        ),
        "sum, regression": regress(
            [as_sum(sent.sum(axis=0)) for sent in uploads],
            gradients,
            [deviation * np.sqrt(PARTICIPANTS)] * rounds,
        ),
        "sum, loss": loss_difference_scores(np.array(before), np.array(after_sum)),
        "final model, loss": loss_scores(candidates.losses(model)),
    }
    claimed = epsilon(noise_multiplier, rounds)
    return {
        "noise_multiplier": noise_multiplier,
        "epsilon": claimed,
        "views": {name: evaluated(name, one, included, claimed) for name, one in views.items()},
        "seconds": time.process_time() - begin,
    }


def regress(sums: Any, gradients: Any, deviations: list[float]) -> RecordScores:
    """Regress the sums on all candidates; the moving weights add to the noise."""
    errors = [float(np.hypot(one, MODEL_ERROR)) for one in deviations]
    return gradient_regression_scores(sums, gradients, errors, joins=RATE * LOCAL_STEPS)


def as_sum(upload: Array) -> Array:
    """Return the sum of the noisy sums that an upload of SGD is made of."""
    return -upload * BATCH / LEARNING_RATE


def by_upload(
    uploads: list[Array],
    gradients: list[NDArray[np.float32]],
    owner: NDArray[np.int64],
    deviation: float,
    attack: Callable[..., RecordScores],
) -> RecordScores:
    """Score each candidate by the uploads of its participant."""
    values = np.zeros(len(owner))
    for number in range(PARTICIPANTS):
        own = owner == number
        scores = attack(
            [as_sum(sent[number]) for sent in uploads],
            (candidates[own] for candidates in gradients),
            [deviation] * len(uploads),
        )
        values[own] = scores.values
    return RecordScores(values)


def epsilon(noise_multiplier: float, rounds: int) -> float:
    """Return the upper bound of one record's epsilon."""
    mechanism = training_mechanism(
        sampling=Sampling.POISSON,
        sampling_rate=RATE,
        noise_multiplier=noise_multiplier,
        steps=rounds * LOCAL_STEPS,
    )
    return dpaudit.epsilon(mechanism, delta=DELTA).upper


def evaluated(name: str, scores: RecordScores, included: Bits, claimed: float) -> dict[str, Any]:
    """Return AUC, true-positive rate and lower bound of one view."""
    found = evaluate(name, scores.split(included.astype(int)), confidence=CONFIDENCE)
    rate = next(one for one in found.tpr_at_fpr if one.fpr == 0.01)
    bound = audit_scores(
        scores.values,
        included,
        delta=DELTA,
        confidence=CONFIDENCE,
        claimed_epsilon=claimed if claimed < LARGEST_CLAIM else 8.0,
        fair_coins=BoundKind.CERTIFIED,
    )
    return {
        "auc": found.auc,
        "auc_interval": [found.auc_interval.lower, found.auc_interval.upper],
        "tpr_at_1%_fpr": rate.tpr,
        "tpr_interval": [rate.interval.lower, rate.interval.upper],
        "epsilon_lower": bound.epsilon_lower,
        "kind": bound.kind.value,
        "detectable_epsilon": bound.detectable_epsilon,
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print one row per noise and view."""
    rows = [
        [
            f"{result['noise_multiplier']:g}",
            f"{result['epsilon']:.3g}",
            name,
            f"{view['auc']:.3f}",
            f"{100 * view['tpr_at_1%_fpr']:.1f}",
            f"{view['epsilon_lower']:.2f}",
        ]
        for result in results
        for name, view in result["views"].items()
    ]
    heads = ["noise", "epsilon, upper bound", "view", "AUC", "TPR at 1% FPR, %",
             "epsilon, lower bound"]  # fmt: skip
    print(titled("Membership inference on a federation of 10 participants", table(heads, rows)))


def main() -> None:
    """Measure every noise multiplier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(noise, options.rounds, options.seed) for noise in NOISES]
    show(results)
    if options.json is not None:
        stored = {
            "date": datetime.date.today().isoformat(),
            "version": dpaudit.__version__,
            "participants": PARTICIPANTS,
            "candidates": CANDIDATES,
            "rounds": options.rounds,
            "local_steps": LOCAL_STEPS,
            "sampling_rate": RATE,
            "clip_norm": CLIP_NORM,
            "delta": DELTA,
            "confidence": CONFIDENCE,
            "seed": options.seed,
            "results": results,
        }
        options.json.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
