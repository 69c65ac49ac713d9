"""Each attack against the same thing written slowly, record by record, model by model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm
from sklearn.ensemble import HistGradientBoostingRegressor

from dpaudit.attacks.membership import (
    ReferenceConfidences,
    base_offline,
    base_online,
    calibrated_loss,
    evaluate,
    informia_offline,
    informia_online,
    label_only_scores,
    lira_offline,
    lira_online,
    predictive_law,
    published_law,
    random_halves,
    rmia_offline,
    rmia_online,
    tune_offline_scale,
)
from dpaudit.attacks.membership.confidence_laws import (
    ConfidenceLaw,
    ConfidenceSpread,
    LawRule,
    variance_prior,
)
from dpaudit.attacks.membership.learned_attacks import attack_classifier, quantile_regression
from dpaudit.attacks.membership.output_attacks import (
    correct_under_perturbation,
    gaussian_jitter,
    random_flips,
)
from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.arrays import FloatArray
from dpaudit.vocabulary.errors import InvalidArgument

Attack = Callable[[FloatArray, ReferenceConfidences], RecordScores]
AGAINST_REFERENCES: list[Attack] = [
    *(calibrated_loss, lira_online, lira_offline, rmia_online, rmia_offline),
    *(informia_online, informia_offline, base_online, base_offline),
]


def drawn(models: int, records: int, seed: int) -> tuple[FloatArray, ReferenceConfidences]:
    """A target and references in complete pairs, of records that differ in difficulty."""
    generator = np.random.default_rng(seed)
    member = generator.random((models, records)) < 0.5
    member[1::2] = ~member[: models // 2 * 2 : 2]
    difficulty = generator.standard_normal(records)
    spread = generator.standard_normal((models, records))
    return generator.standard_normal(records), ReferenceConfidences(
        difficulty + 2 * member + spread, member
    )


def means(values: FloatArray, member: Any, record: int) -> tuple[float, float]:
    inside = [row[record] for row, is_in in zip(values, member, strict=True) if is_in[record]]
    outside = [row[record] for row, is_in in zip(values, member, strict=True) if not is_in[record]]
    return float(np.mean(inside)), float(np.mean(outside))


def loss(phi: float) -> float:
    return -math.log(1 / (1 + math.exp(-phi)))


seeds = st.integers(0, 10**6)


@given(seeds, st.sampled_from([2, 4, 8]))
def test_calibrated_is_the_mean_loss_outside_less_the_targets(seed: int, models: int) -> None:
    target, references = drawn(models, 7, seed)
    found = calibrated_loss(target, references).values
    losses = np.vectorize(loss)(references.confidences)
    for record in range(7):
        outside = means(losses, references.member, record)[1]
        assert found[record] == pytest.approx(outside - loss(target[record]))


def slow_variance(references: ReferenceConfidences, record: int | None) -> tuple[float, float]:
    """Of a record's own, or of all about their own means."""
    sums, free = [0.0, 0.0], [0, 0]
    for j in range(references.member.shape[1]) if record is None else [record]:
        for side in (0, 1):
            which = references.member[:, j] == (side == 0)
            values = references.confidences[which, j]
            sums[side] += sum((value - values.mean()) ** 2 for value in values)
            free[side] += len(values) - 1
    return sums[0] / free[0], sums[1] / free[1]


@given(seeds, st.sampled_from([4, 64, 70]))
def test_lira_online_is_the_log_ratio_of_two_normal_densities(seed: int, models: int) -> None:
    """With one variance for all below 64 models, and one each from there on."""
    target, references = drawn(models, 5, seed)
    found = lira_online(target, references, law=published_law).values
    for record in range(5):
        inside, outside = means(references.confidences, references.member, record)
        variances = slow_variance(references, None if models < 64 else record)
        expected = norm.logpdf(target[record], inside, math.sqrt(variances[0])) - norm.logpdf(
            target[record], outside, math.sqrt(variances[1])
        )
        assert found[record] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seeds, st.sampled_from([4, 64]))
def test_lira_offline_is_the_normal_deviate_of_models_outside(seed: int, models: int) -> None:
    target, references = drawn(models, 5, seed)
    found = lira_offline(target, references, law=published_law).values
    for record in range(5):
        outside = means(references.confidences, references.member, record)[1]
        variance = slow_variance(references, None if models < 64 else record)[1]
        expected = norm.cdf(target[record], outside, math.sqrt(variance))
        assert norm.cdf(found[record]) == pytest.approx(expected)


def test_a_record_in_few_models_does_not_cost_the_others_their_variance() -> None:
    """64 models, each record in each by a fair coin: some records are in fewer than 32."""
    generator = np.random.default_rng(0)
    member = generator.random((64, 300)) < 0.5
    spread = np.exp(0.6 * generator.standard_normal(300))
    confidences = spread * generator.standard_normal((64, 300))
    references = ReferenceConfidences(confidences, member)
    assert member.sum(axis=0).min() < 32
    target = generator.standard_normal(300)
    found = lira_online(target, references, law=published_law).values
    for record in range(300):
        inside, outside = (confidences[member[:, record] == side, record] for side in (True, False))
        expected = norm.logpdf(target[record], inside.mean(), inside.std(ddof=1)) - norm.logpdf(
            target[record], outside.mean(), outside.std(ddof=1)
        )
        assert found[record] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_predictive_law_is_the_mixture_of_normal_laws() -> None:
    """Over the precision, whose posterior is integrated numerically."""
    generator = np.random.default_rng(0)
    truth = 2.0 * 6 / generator.chisquare(6, 400)
    squares = truth * generator.chisquare(7, 400)
    means = generator.standard_normal(400)
    spread = ConfidenceSpread(means, squares, np.full(400, 8), 16, 1.0)
    freedom, scale = variance_prior(spread)
    places = generator.normal(0, 3, 400)
    found = predictive_law(spread).log_density(places)
    grid = np.exp(np.linspace(-14, 9, 40_001))  # of the precision
    for record in range(5):
        prior = chi2.pdf(grid * freedom * scale, freedom)
        # A density of the squares, and the step of the precision in its logarithm.
        weight = prior * chi2.pdf(squares[record] * grid, 7) * np.square(grid)
        density = norm.pdf(places[record], means[record], np.sqrt((1 + 1 / 8) / grid))
        mean = np.trapezoid(weight * density, np.log(grid)) / np.trapezoid(weight, np.log(grid))
        assert found[record] == pytest.approx(math.log(mean), abs=1e-6)


@pytest.mark.parametrize(("freedom", "scale"), [(1.0, 0.5), (4.0, 2.0), (30.0, 1.0)])
def test_the_law_of_the_variances_is_recovered(freedom: float, scale: float) -> None:
    generator = np.random.default_rng(1)
    count = generator.integers(4, 20, 40_000)
    truth = scale * freedom / generator.chisquare(freedom, 40_000)
    squares = truth * generator.chisquare(count - 1)
    spread = ConfidenceSpread(np.zeros(40_000), squares, count, 32, 1.0)
    found = variance_prior(spread)
    assert found == pytest.approx((freedom, scale), rel=0.2)


@pytest.mark.parametrize("models", [8, 64])
@pytest.mark.parametrize("unequal", [0.0, 1.2])
def test_the_predictive_law_finds_what_the_better_of_both_rules_finds(
    models: int, unequal: float
) -> None:
    """Equal spreads favor one variance for all, unequal spreads one each."""
    generator = np.random.default_rng(2)
    inside, member = random_halves(models, 6000, seed=2), generator.random(6000) < 0.5
    hard, spread = generator.normal(3, 2, 6000), np.exp(unequal * generator.standard_normal(6000))
    confidences = hard + inside + spread * generator.standard_normal((models, 6000))
    target = hard + member + spread * generator.standard_normal(6000)
    references = ReferenceConfidences(confidences, inside)

    def hits(law: LawRule) -> float:
        scores = lira_online(target, references, law=law).split(member)
        return next(r.tpr for r in evaluate("", scores, confidence=0.9).tpr_at_fpr if r.fpr == 0.01)

    def normal(side: ConfidenceSpread, variances: FloatArray) -> ConfidenceLaw:
        return ConfidenceLaw(side.means, np.sqrt(variances), np.full(6000, np.inf))

    own = hits(lambda side: normal(side, np.maximum(side.squares / side.degrees, 1e-12)))
    shared = hits(lambda side: normal(side, np.full(6000, side.pooled)))
    assert hits(predictive_law) >= 0.9 * max(own, shared)


def slow_rmia(target: FloatArray, mean: list[float], gamma: float) -> list[float]:
    def ratio(record: int) -> float:
        return float(1 / (1 + math.exp(-target[record])) / mean[record])

    count = len(target)
    return [sum(ratio(x) / gamma >= ratio(z) for z in range(count)) / count for x in range(count)]


@given(seeds, st.sampled_from([2, 8]), st.floats(0.5, 3))
def test_rmia_online_is_the_share_of_records_that_are_dominated(
    seed: int, models: int, gamma: float
) -> None:
    target, references = drawn(models, 9, seed)
    p = 1 / (1 + np.exp(-references.confidences))
    mean = [sum(means(p, references.member, record)) / 2 for record in range(9)]
    found = rmia_online(target, references, gamma=gamma).values
    assert found == pytest.approx(slow_rmia(target, mean, gamma))


@given(seeds, st.floats(0, 1))
def test_rmia_offline_lifts_what_models_outside_say(seed: int, scale: float) -> None:
    target, references = drawn(4, 9, seed)
    p = 1 / (1 + np.exp(-references.confidences))
    outside = [means(p, references.member, record)[1] for record in range(9)]
    mean = [((1 + scale) * value + 1 - scale) / 2 for value in outside]
    found = rmia_offline(target, references, offline_scale=scale).values
    assert found == pytest.approx(slow_rmia(target, mean, 1.0))


def slow_mean(references: ReferenceConfidences, scale: float | None) -> list[float]:
    """Pr(x): of both sides, or of the models outside and a scale."""
    p = 1 / (1 + np.exp(-references.confidences))
    records = range(references.member.shape[1])
    sides = [means(p, references.member, record) for record in records]
    if scale is None:
        return [(inside + outside) / 2 for inside, outside in sides]
    return [((1 + scale) * outside + 1 - scale) / 2 for _, outside in sides]


@given(seeds, st.none() | st.floats(0, 1))
def test_informia_is_the_mean_log_likelihood_ratio(seed: int, scale: float | None) -> None:
    target, references = drawn(4, 9, seed)
    mean = slow_mean(references, scale)
    ratio = [math.log(1 / (1 + math.exp(-phi)) / m) for phi, m in zip(target, mean, strict=True)]
    expected = [sum(ratio[x] - ratio[z] for z in range(9)) / 9 for x in range(9)]
    attack = informia_online if scale is None else informia_offline
    found = attack(target, references, offline_scale=scale).values
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_informia_compares_with_the_population_alone() -> None:
    target, references = drawn(4, 50, 0)
    population = np.arange(50) < 10
    for attack in (informia_online, informia_offline):
        found = attack(target, references, population=population).values
        assert found[:10].mean() == pytest.approx(0, abs=1e-9)
        assert abs(found.mean()) > 1e-3
    with pytest.raises(InvalidArgument, match="population"):
        informia_offline(target, references, population=np.zeros(50, dtype=bool))


@given(seeds, st.floats(0, 1))
def test_base_is_the_log_ratio_of_likelihoods(seed: int, scale: float) -> None:
    target, references = drawn(6, 7, seed)
    online = base_online(target, references)
    offline = base_offline(target, references, threshold_scale=scale)
    for record in range(7):
        losses = [loss(phi) for phi in references.confidences[:, record]]
        outside = [
            value
            for value, bit in zip(losses, references.member[:, record], strict=True)
            if not bit
        ]
        for found, some, s in ((online, losses, 1.0), (offline, outside, scale)):
            mean = sum(math.exp(-value) for value in some) / len(some)
            expected = -loss(target[record]) - s * math.log(mean)
            assert found.values[record] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_scale_of_base_is_the_best_one_on_the_references() -> None:
    """With references that did not train on a record, hard records need a smaller threshold."""
    rng = np.random.default_rng(3)
    member = np.array([rng.permutation(60) < 30 for _ in range(7)])
    hardness = rng.normal(0, 3, 60)
    confidences = hardness + 2.0 * member + 0.3 * rng.standard_normal((7, 60))
    references = ReferenceConfidences(confidences[1:], member[1:])
    found = base_offline(confidences[0], references).values
    grid = [step / 10 for step in range(11)]
    means = np.zeros(len(grid))
    for place in range(6):
        kept = np.arange(6) != place
        rest = ReferenceConfidences(references.confidences[kept], references.member[kept])
        for number, scale in enumerate(grid):
            scores = base_offline(references.confidences[place], rest, threshold_scale=scale).values
            bits = references.member[place]
            above = scores[bits][:, None] - scores[~bits]
            means[number] += ((above > 0) + 0.5 * (above == 0)).mean()
    best = grid[int(np.argmax(means.round(9)))]
    assert found == pytest.approx(
        base_offline(confidences[0], references, threshold_scale=best).values
    )
    assert 0 < best < 1


def test_a_scale_of_base_out_of_range_is_refused() -> None:
    target, references = drawn(4, 9, 0)
    with pytest.raises(InvalidArgument, match="threshold_scale"):
        base_offline(target, references, threshold_scale=1.5)
    one = base_offline(target, references.first(1)).values
    assert (one == base_offline(target, references.first(1), threshold_scale=0.33).values).all()


def test_a_target_that_is_surely_wrong_has_a_finite_score() -> None:
    target, references = drawn(4, 9, 0)
    target[0] = -2000.0
    for attack in (informia_online, informia_offline, base_online, base_offline):
        found = attack(target, references).values
        assert found[0] == found.min()
        assert found[0] < -1000


def slow_tuning(references: ReferenceConfidences) -> list[float]:
    """The mean AUC of each a, with pairs counted one by one."""
    rows = []
    for place in range(min(len(references), 8)):
        member = references.member[place]
        kept = [
            other
            for other in range(len(references))
            if other != place and not (references.member[other] == ~member).all()
        ]
        rest = ReferenceConfidences(references.confidences[kept], references.member[kept])
        row: list[float] = []
        for step in range(11):
            scores = informia_offline(
                references.confidences[place], rest, offline_scale=step / 10
            ).values.round(9)
            pairs = np.sign(scores[member][:, None] - scores[~member])
            row.append(float((pairs + 1).mean() / 2))
        rows.append(row)
    return [float(value) for value in np.mean(rows, axis=0)]


@pytest.mark.parametrize("models", [4, 7, 12])
@pytest.mark.parametrize("effect", [0.3, 3.0])
def test_the_offline_scale_is_the_best_for_references_in_the_targets_place(
    models: int, effect: float
) -> None:
    generator = np.random.default_rng(models)
    member = random_halves(models, 60, seed=models)
    confidences = 2 * generator.standard_normal(60) + effect * member
    confidences += generator.standard_normal((models, 60))
    references = ReferenceConfidences(confidences, member)
    expected = slow_tuning(references)
    chosen = round(tune_offline_scale(references) * 10)
    assert expected[chosen] == pytest.approx(max(expected), abs=1e-9)


@pytest.mark.parametrize("effect", [0.5, 2.0, 5.0])
def test_a_tuned_scale_is_near_the_best_fixed_one(effect: float) -> None:
    generator = np.random.default_rng(0)
    inside, member = generator.random((16, 3000)) < 0.5, generator.random(3000) < 0.5
    hard = generator.normal(0, 3, 3000)
    confidences = hard + effect * inside + 0.7 * generator.standard_normal((16, 3000))
    target = hard + effect * member + 0.7 * generator.standard_normal(3000)
    references = ReferenceConfidences(confidences, inside)

    def auc(scale: float | None) -> float:
        scores = rmia_offline(target, references, offline_scale=scale)
        return evaluate("rmia", scores.split(member), confidence=0.95).auc

    assert auc(None) >= max(auc(step / 10) for step in range(11)) - 0.015


@pytest.mark.parametrize("member", [True, False])
def test_without_a_reference_to_tune_on_the_scale_is_the_papers(member: bool) -> None:
    """One model; or models that trained on all, or on none, of the records."""
    _, references = drawn(4, 9, 0)
    assert tune_offline_scale(references.first(1)) == 0.3
    same = replace(references, member=np.full((4, 9), member))
    assert tune_offline_scale(same) == 0.3


def test_the_target_does_not_move_the_tuned_constants() -> None:
    """A record's score depends on the other records through the population alone."""
    target, references = drawn(6, 30, 0)
    other = target.copy()
    other[1:] += 5.0
    for attack in (lira_online, lira_offline, base_offline):
        assert attack(target, references).values[0] == attack(other, references).values[0]


def test_rmia_compares_with_the_population_alone() -> None:
    target, references = drawn(4, 50, 0)
    population = np.arange(50) < 10
    found = rmia_online(target, references, population=population).values
    assert np.allclose(found * 10, np.round(found * 10))
    with pytest.raises(InvalidArgument, match="population"):
        rmia_online(target, references, population=np.zeros(50, dtype=bool))


@pytest.mark.parametrize("attack", AGAINST_REFERENCES)
@pytest.mark.parametrize("models", [1, 2, 3, 16])
def test_one_reference_is_enough_for_a_finite_score(attack: Attack, models: int) -> None:
    target, references = drawn(models, 40, 1)
    assert np.isfinite(attack(target, references).values).all()


@pytest.mark.parametrize("attack", AGAINST_REFERENCES)
def test_a_more_confident_target_never_lowers_a_records_own_score(attack: Attack) -> None:
    """On one record, within reach of what models with the record say."""
    target, references = drawn(16, 40, 2)
    inside = means(references.confidences, references.member, 0)[0]
    rising = []
    for confidence in np.linspace(-4, inside, 9):
        target[0] = confidence
        rising.append(attack(target, references).values[0])
    if attack is lira_online:  # a likelihood ratio of two normals bends far below both
        rising = rising[-3:]
    assert (np.diff(rising) >= 0).all()


@pytest.mark.parametrize("attack", AGAINST_REFERENCES)
def test_a_target_of_other_records_is_refused(attack: Attack) -> None:
    target, references = drawn(4, 10, 0)
    with pytest.raises(InvalidArgument, match="confidences"):
        attack(target[:9], references)


@pytest.mark.parametrize("attack", [calibrated_loss, lira_online, lira_offline, rmia_offline])
def test_references_that_know_every_record_are_refused(attack: Attack) -> None:
    target, references = drawn(4, 10, 0)
    with pytest.raises(InvalidArgument, match="references"):
        attack(target, replace(references, member=np.ones((4, 10), dtype=bool)))


def test_lira_online_wants_models_that_trained_on_records() -> None:
    target, references = drawn(4, 10, 0)
    outside = replace(references, member=np.zeros((4, 10), dtype=bool))
    with pytest.raises(InvalidArgument, match="use an offline attack"):
        lira_online(target, outside)
    assert np.isfinite(lira_offline(target, outside).values).all()


@pytest.mark.parametrize(
    ("confidences", "member"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3), dtype=bool)),
        (np.zeros(3), np.zeros(3, dtype=bool)),
        (np.zeros((2, 3)), np.zeros((3, 2), dtype=bool)),
        (np.zeros((2, 3)), np.zeros((2, 3))),
        (np.full((2, 3), math.nan), np.zeros((2, 3), dtype=bool)),
    ],
)
def test_references_of_no_shape_are_refused(confidences: Any, member: Any) -> None:
    with pytest.raises(InvalidArgument):
        ReferenceConfidences(confidences, member)


def test_modules_of_version_0_1_are_found() -> None:
    from dpaudit.attacks.membership.lira import lira_online as lira
    from dpaudit.attacks.membership.references import References
    from dpaudit.attacks.membership.rmia import rmia_offline as rmia

    assert (lira, References, rmia) == (lira_online, ReferenceConfidences, rmia_offline)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_gamma_that_compares_nothing_is_refused(bad: float) -> None:
    with pytest.raises(InvalidArgument, match="gamma"):
        rmia_online(*drawn(4, 10, 0), gamma=bad)
    if not 0 <= bad <= 1:
        with pytest.raises(InvalidArgument, match="offline_scale"):
            rmia_offline(*drawn(4, 10, 0), offline_scale=bad)


class Threshold:
    """A model of one feature: class 1 above one half."""

    def predict(self, features: Any) -> Any:
        return np.stack([0.5 - features[:, 0], features[:, 0] - 0.5], axis=1)


def test_label_only_counts_the_copies_that_keep_their_label() -> None:
    features = np.array([[0.6], [3.0], [0.4]], dtype=np.float32)
    labels = np.array([1, 1, 1])
    perturb = gaussian_jitter(1.0)
    generator = np.random.default_rng(0)
    copies = correct_under_perturbation(
        Threshold(), features, labels, perturb=perturb, copies=50, generator=generator
    )
    assert copies[0].tolist() == [True, True, False]
    again = np.random.default_rng(0)
    slow = [features, *(perturb(features, again) for _ in range(49))]
    shares = [np.mean([copy[j, 0] > 0.5 for copy in slow]) for j in range(3)]
    assert label_only_scores(copies).values == pytest.approx(shares)


def test_binary_features_flip_at_their_rate() -> None:
    features = (np.random.default_rng(0).random((200, 100)) < 0.3).astype(np.float32)
    seen = random_flips(0.1)(features, np.random.default_rng(1))
    assert set(np.unique(seen)) == {0, 1}
    assert np.mean(seen != features) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20000))


def test_label_only_takes_booleans_of_copies_and_records() -> None:
    with pytest.raises(InvalidArgument, match="correct_labels"):
        label_only_scores(np.ones((3, 4)))  # type: ignore[arg-type]


def test_quantile_regression_is_the_height_above_the_predicted_quantile() -> None:
    generator = np.random.default_rng(0)
    outside, inside = generator.random((2, 400, 2)).astype(np.float32)
    confidences = 5 * outside[:, 0] + generator.standard_normal(400)
    found = quantile_regression(
        inside,
        np.zeros(400),
        nonmember_features=outside,
        nonmember_confidences=confidences,
        seed=0,
        fpr=0.1,
    )
    model = HistGradientBoostingRegressor(loss="quantile", quantile=0.9, random_state=0)
    assert found.values == pytest.approx(-model.fit(outside, confidences).predict(inside))
    assert np.corrcoef(found.values, inside[:, 0])[0, 1] < -0.8


def test_quantile_regression_wants_a_confidence_for_each_record() -> None:
    features = np.ones((5, 2), dtype=np.float32)
    with pytest.raises(InvalidArgument, match="features"):
        quantile_regression(
            features,
            np.zeros(4),
            nonmember_features=features,
            nonmember_confidences=np.ones(5),
            seed=0,
        )


def test_the_classifier_learns_what_shadow_models_say_of_their_own_records() -> None:
    """Members are known by the one feature that moves, whichever way: a threshold cannot."""
    generator = np.random.default_rng(0)
    member = generator.random((4, 500)) < 0.5
    noise = generator.standard_normal((5, 500, 2))
    truth = generator.random(500) < 0.5
    sign = np.where(generator.random((5, 500)) < 0.5, -3, 3)
    noise[..., 0] += sign * np.concatenate([member, truth[None]])
    outputs = noise.astype(np.float32)
    found = attack_classifier(outputs[4], outputs[:4], member, seed=0).values
    assert np.mean(found[truth][:, None] > found[~truth]) > 0.9


@pytest.mark.parametrize("member", [np.ones((2, 5), dtype=bool), np.zeros((2, 5), dtype=bool)])
def test_a_classifier_without_two_classes_is_refused(member: Any) -> None:
    outputs = np.zeros((2, 5, 3), dtype=np.float32)
    with pytest.raises(InvalidArgument, match="reference_member"):
        attack_classifier(outputs[0], outputs, member, seed=0)


def test_a_classifier_of_other_records_is_refused() -> None:
    outputs = np.zeros((2, 5, 3), dtype=np.float32)
    with pytest.raises(InvalidArgument, match="reference_outputs"):
        attack_classifier(outputs[0, :4], outputs, np.ones((2, 5), dtype=bool), seed=0)
