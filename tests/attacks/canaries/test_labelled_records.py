"""Canaries that are records: what makes them strange, and that they are different."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dpaudit.attacks import canaries
from dpaudit.attacks.canaries import LabelledRecords
from dpaudit.attacks.canaries.torch_canaries import adversarial_records
from dpaudit.vocabulary.errors import InvalidArgument

CLASSES = 5
Make = Callable[[LabelledRecords, int, np.random.Generator], LabelledRecords]
KINDS: list[Make] = [canaries.mislabelled, canaries.blank, canaries.out_of_distribution]


def records(count: int = 40, features: int = 60) -> LabelledRecords:
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((count, features)).astype(np.float32)
    return LabelledRecords(drawn, rng.integers(0, CLASSES, count))


@pytest.mark.parametrize("make", KINDS)
def test_no_two_are_the_same_and_labels_are_classes(make: Make) -> None:
    made = make(records(), CLASSES, np.random.default_rng(1))
    assert made.features.shape == records().features.shape
    assert made.features.dtype == np.float32
    assert len(np.unique(made.features, axis=0)) == len(made)
    assert set(made.labels.tolist()) <= set(range(CLASSES))


def test_mislabelled_records_never_have_their_own_label() -> None:
    made = canaries.mislabelled(records(500), CLASSES, np.random.default_rng(2))
    assert (made.labels != records(500).labels).all()
    assert np.array_equal(made.features, records(500).features)


def test_blank_records_are_empty_but_for_one_feature_each() -> None:
    made = canaries.blank(records(), CLASSES, np.random.default_rng(3))
    empty = records().features.min(axis=0)
    assert ((made.features != empty).sum(axis=1) == 1).all()


def test_more_blank_records_than_features_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most 3"):
        canaries.blank(records(4, 3), CLASSES, np.random.default_rng(3))


def test_what_is_out_of_distribution_stays_in_range() -> None:
    made = canaries.out_of_distribution(records(), CLASSES, np.random.default_rng(4))
    assert (made.features >= records().features.min(axis=0)).all()
    assert (made.features <= records().features.max(axis=0)).all()


def test_crafted_records_are_harder_for_the_model_and_near_where_they_began() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(60, 20), torch.nn.Tanh(), torch.nn.Linear(20, 5))
    begin = records()
    made = adversarial_records(begin, model, radius=0.4, steps=10)

    @torch.no_grad()
    def loss(of: LabelledRecords) -> float:
        logits = model(torch.from_numpy(of.features))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(of.labels)))

    assert loss(made) > 1.2 * loss(begin)
    assert np.abs(made.features - begin.features).max() <= 0.4 * begin.features.std() * (1 + 1e-5)
    assert np.array_equal(made.labels, begin.labels)


def test_a_trainer_gets_the_included_ones_and_nothing_of_the_others() -> None:
    tossed = canaries.assign_canaries(records(300), np.random.default_rng(5))
    assert len(tossed.trained) == len(tossed.trained_ids) == int(tossed.included.sum())
    assert np.array_equal(tossed.trained.features, records(300).features[tossed.included])
    assert 100 < tossed.included.sum() < 200  # seven standard deviations: fair


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_records_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="finite"):
        LabelledRecords(np.array([[bad]], np.float32), np.array([0]))
    with pytest.raises(InvalidArgument, match="one label for each"):
        LabelledRecords(np.zeros((2, 1), np.float32), np.array([0]))
