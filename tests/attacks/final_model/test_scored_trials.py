"""Bounds from outputs of models with and without a target record."""

import numpy as np
import pytest
from msgspec.structs import replace

from dpaudit.attacks.final_model import (
    OutputView,
    TrialOutputs,
    attainable_epsilon,
    audit_trials,
    planned_audits,
    published_estimate,
)
from dpaudit.attacks.one_run.recomputation import has_equal_scores, recompute_bound
from dpaudit.vocabulary.audit import AuditReport, BoundKind
from dpaudit.vocabulary.errors import InvalidArgument


def outputs(gap: float, pairs: int = 60, seed: int = 0) -> TrialOutputs:
    rng = np.random.default_rng(seed)
    with_record = rng.normal([gap, 0.0, 0.0], 1.0, (pairs, 3))
    return TrialOutputs(with_record, rng.normal(0.0, 1.0, (pairs, 3)), label=0)


@pytest.mark.parametrize("stops_early", [False, True])
def test_every_bound_follows_from_its_own_statistics(stops_early) -> None:
    results = audit_trials(outputs(4.0), delta=1e-5, confidence=0.95, stops_early=stops_early)
    for result in results:
        again = recompute_bound(result, lambda: None)
        assert again is not None
        assert again.epsilon == pytest.approx(result.epsilon_lower, abs=1e-12)
        assert again.kind is result.kind
    AuditReport(ledger_head="", confidence=0.95, bounds=results, membership=())
    assert sum(audit.share for audit in planned_audits(stops_early=stops_early)) == 1


@pytest.mark.parametrize("stops_early", [False, True])
@pytest.mark.parametrize("pairs", [4, 60])
def test_attainable_epsilon_is_the_greatest_of_the_certified_bounds(pairs, stops_early) -> None:
    found = audit_trials(outputs(2.0, pairs), delta=1e-5, confidence=0.95, stops_early=stops_early)
    greatest = [one.greatest_epsilon for one in found if one.kind is BoundKind.CERTIFIED]
    most = attainable_epsilon(pairs, delta=1e-5, confidence=0.95, stops_early=stops_early)
    assert most == pytest.approx(max(greatest), abs=1e-12)


def test_altered_statistics_are_refused() -> None:
    result = audit_trials(outputs(4.0), delta=1e-5, confidence=0.95)[0]
    with pytest.raises(InvalidArgument, match="trials"):
        recompute_bound(replace(result, trials=50), lambda: None)


def test_labels_alone_read_nothing_but_the_predicted_class() -> None:
    drawn = outputs(3.0)
    sharper = TrialOutputs(5 * drawn.with_record, 5 * drawn.without_record, drawn.label)
    for one, other in zip(
        drawn.scores(OutputView.LABELS), sharper.scores(OutputView.LABELS), strict=True
    ):
        assert set(one) <= {0.0, 1.0}
        assert (one == other).all()
    assert (drawn.scores(OutputView.LOGITS)[0] != sharper.scores(OutputView.LOGITS)[0]).all()


def test_a_further_assumption_makes_every_bound_conditional() -> None:
    results = audit_trials(outputs(3.0), delta=1e-5, confidence=0.95, assumed="a premise")
    assert {result.kind for result in results} == {BoundKind.CONDITIONAL}
    assert all("a premise" in result.assumes for result in results)


def test_the_published_estimate_is_above_every_bound_of_the_same_family() -> None:
    estimate = published_estimate(outputs(3.0), delta=1e-5)
    gaussian = audit_trials(outputs(3.0), delta=1e-5, confidence=0.95)[2]
    assert estimate.kind is BoundKind.ESTIMATE
    assert estimate.epsilon > gaussian.epsilon_lower > 0


def test_outputs_must_be_paired_finite_logits_of_the_label() -> None:
    good = np.zeros((4, 3))
    for with_record, label in ((np.zeros((3, 3)), 0), (np.full((4, 3), np.nan), 0), (good, 3)):
        with pytest.raises(InvalidArgument):
            TrialOutputs(with_record, good, label)


@pytest.mark.parametrize("stops_early", [False, True])
@pytest.mark.parametrize("view", OutputView)
@pytest.mark.parametrize("gap", [0.0, 9.0])
def test_models_that_ignore_their_seed_are_no_evidence(gap, view, stops_early) -> None:
    without = np.tile([0.0, 1.0], (40, 1))
    copies = TrialOutputs(without + np.array([gap, 0.0]), without, label=0)
    for result in audit_trials(
        copies, delta=1e-5, confidence=0.95, view=view, stops_early=stops_early
    ):
        assert result.epsilon_lower == 0
        assert "audit another target record" in (result.inconclusive or "")
        assert has_equal_scores(result)
        assert recompute_bound(result, lambda: None).epsilon == 0


def test_equal_labels_of_different_models_are_no_evidence() -> None:
    rng = np.random.default_rng(0)
    certain = TrialOutputs(*rng.normal([90.0, 0.0], 1.0, (2, 40, 2)), label=0)
    labels = audit_trials(certain, delta=1e-5, confidence=0.95, view=OutputView.LABELS)
    assert all("read the logits" in (one.inconclusive or "") for one in labels)
    for one in audit_trials(outputs(4.0), delta=1e-5, confidence=0.95):
        assert one.inconclusive is None
        assert not has_equal_scores(one)
