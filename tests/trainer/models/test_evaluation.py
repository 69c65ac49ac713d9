"""What a model says of records that it is very sure of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from dpaudit.attacks.membership import evaluate as evaluate_attack
from dpaudit.attacks.membership import loss_threshold, output_signals
from dpaudit.attacks.membership.output_attacks import confidence_scores
from dpaudit.trainer.data import RecordArrays
from dpaudit.trainer.models.factories import evaluate_model, logit_scaled


class Given(nn.Module):
    """Returns its input as logits."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def records_of(*rows: list[float], label: int = 0) -> RecordArrays:
    return RecordArrays(np.array(rows, dtype=np.float32), np.full(len(rows), label))


@pytest.mark.parametrize("gaps", [(17.5, 27.6, 40.0), (100.0, 300.0, 700.0)])
def test_losses_that_are_0_in_float32_differ(gaps: tuple[float, ...]) -> None:
    records = records_of(*([gap, 0.0, 0.0] for gap in gaps))
    in_float32 = nn.functional.cross_entropy(
        torch.from_numpy(records.features), torch.zeros(3, dtype=torch.long), reduction="none"
    )
    assert (in_float32[1:] == 0).all()
    found = evaluate_model(Given(), records)
    for loss, gap in zip(found.losses, gaps, strict=True):
        # -ln p = log1p(sum of exp(other - own)); two others at 0.
        assert loss == pytest.approx(math.log1p(2 * math.exp(-gap)), rel=1e-5)
    assert (np.diff(found.losses) < 0).all()


def test_confidences_differ_where_losses_are_0_in_float64() -> None:
    found = evaluate_model(Given(), records_of([800.0, 0.0], [900.0, 0.0], [-900.0, 0.0]))
    assert found.losses.tolist()[:2] == [0.0, 0.0]
    assert found.confidences.tolist() == [800.0, 900.0, -900.0]
    assert found.losses[2] == 900.0
    assert found.accuracy == pytest.approx(2 / 3)


def test_the_trainer_and_the_attacks_read_the_same_signal() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 30 * rng.standard_normal((50, 4)), rng.integers(0, 4, 50)
    found = logit_scaled(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    assert found == pytest.approx(output_signals.logit_scaled_confidence(logits, labels), abs=1e-12)


def test_attack_separates_clear_records() -> None:
    rng = np.random.default_rng(1)
    inside, outside = rng.uniform(30, 60, 300), rng.uniform(20, 50, 300)
    found = [
        evaluate_model(Given(), records_of(*([g, 0.0] for g in gaps))) for gaps in (inside, outside)
    ]
    scores = loss_threshold(found[0].losses, found[1].losses)
    assert len(np.unique(scores.members)) == 300
    assert evaluate_attack("loss", scores, confidence=0.95).auc > 0.7


@pytest.mark.parametrize("scale", [1.0, 50.0, 5000.0])
def test_the_loss_attack_ties_no_records_that_the_model_tells_apart(scale: float) -> None:
    confidences = scale * np.linspace(-1, 1, 101)
    assert len(np.unique(confidence_scores(confidences).values)) == 101


def test_float32_probabilities_below_a_millionth_of_a_millionth_differ() -> None:
    others = np.array([1e-20, 1e-30, 1e-36], dtype=np.float32)
    probabilities = np.stack([np.ones(3, np.float32), others], axis=1)
    logits = output_signals.logits_from_outputs(probabilities)
    sure = output_signals.logit_scaled_confidence(logits, np.zeros(3, dtype=np.int64))
    assert sure == pytest.approx(-np.log(others.astype(np.float64)), rel=1e-6)
