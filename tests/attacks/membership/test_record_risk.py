"""Risks of records: the counts are those of attacks model by model, and intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from dpaudit.attacks.bounds import clopper_pearson_interval
from dpaudit.attacks.membership import lira_offline, random_halves
from dpaudit.attacks.membership.record_risk import record_risks
from dpaudit.attacks.membership.reference_models import ReferenceConfidences
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument


def world(models: int, records: int, effect: FloatArray, seed: int) -> ReferenceConfidences:
    generator = np.random.default_rng(seed)
    member = random_halves(models, records, seed=seed)
    hard = generator.normal(0, 2, records)
    noise = generator.standard_normal((models, records))
    return ReferenceConfidences(hard + effect * member + noise, member)


def test_detections_are_counted_model_by_model() -> None:
    references = world(12, 60, np.full(60, 2.0), 0)
    risks = record_risks(references, confidence=0.9, fpr=0.1, attack=lira_offline)
    calibrating = references.first(6)
    hits, trials, false = np.zeros(60, int), np.zeros(60, int), np.zeros(60, int)
    for row in range(6, 12):
        scores = lira_offline(references.confidences[row], calibrating).values
        member = references.member[row]
        for record in range(60):
            beyond = (scores[~member] >= scores[record]).sum() <= 3 - (not member[record])
            trials[record] += member[record]
            hits[record] += beyond and member[record]
            false[record] += (scores[~member] >= scores[record]).sum() <= 3 and not member[record]
    # A member above all but at most three of thirty non-members is above the fourth largest.
    assert risks.trials.tolist() == trials.tolist()
    assert risks.false_trials.tolist() == (6 - trials).tolist()
    assert risks.detections.sum() >= hits.sum() > 0
    assert risks.false_detections.tolist() == false.tolist()
    for record in range(60):
        bound = clopper_pearson_interval(
            successes=int(risks.detections[record]), trials=int(trials[record]), confidence=0.9
        )
        assert (risks.lower[record], risks.upper[record]) == (bound.lower, bound.upper)


def test_records_that_leak_are_ranked_first() -> None:
    effect = np.where(np.arange(400) < 20, 8.0, 0.0)
    risks = record_risks(world(40, 400, effect, 1), confidence=0.95)
    assert risks.lower[:20].min() > risks.lower[20:].max()
    assert risks.detections[:20].sum() == risks.trials[:20].sum()


def test_a_record_that_no_attacked_model_trained_on_has_no_bound() -> None:
    member = np.ones((8, 10), dtype=bool)
    member[:, :5] = np.arange(8)[:, None] % 2 == 0
    member[4:, 0] = False
    references = ReferenceConfidences(np.random.default_rng(0).random((8, 10)), member)
    risks = record_risks(references, confidence=0.9)
    assert (risks.trials[0], risks.lower[0], risks.upper[0]) == (0, 0.0, 1.0)


def test_unusable_references_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 4"):
        record_risks(world(3, 20, np.ones(20), 0), confidence=0.9)
    whole = ReferenceConfidences(np.zeros((4, 5)), np.ones((4, 5), dtype=bool))
    with pytest.raises(InvalidArgument, match="trained on all"):
        record_risks(whole, confidence=0.9)
    for bad in (0.0, 1.0, float("nan")):
        with pytest.raises(InvalidArgument):
            record_risks(world(4, 20, np.ones(20), 0), confidence=bad)
        with pytest.raises(InvalidArgument):
            record_risks(world(4, 20, np.ones(20), 0), confidence=0.9, fpr=bad)


@pytest.mark.slow
def test_each_interval_contains_the_detection_rate_as_often_as_it_says() -> None:
    """For scores that are confidences: a record's detection rate is then a normal tail."""

    def plain(confidences: FloatArray, _: ReferenceConfidences) -> RecordScores:
        return RecordScores(confidences)

    misses, trials = 0, 0
    effect = np.linspace(0, 3, 1000)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        member = random_halves(24, 1000, seed=seed)
        confidences = effect * member + generator.standard_normal((24, 1000))
        risks = record_risks(
            ReferenceConfidences(confidences, member), confidence=0.9, fpr=0.1, attack=plain
        )
        # The threshold varies little between models: 500 non-members fix it.
        rate = norm.sf(norm.isf(0.1) - effect)
        misses += int(((rate < risks.lower - 1e-3) | (rate > risks.upper + 1e-3)).sum())
        trials += 1000
    assert misses / trials < 0.1
