"""Whole audits: optional attributes, required behavior, and the verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import ExitCode, InvalidArgument
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.reference_trainer import (
    CLAIM,
    CLIP,
    LITTLE,
    NOISE,
    STEPS,
    WIDTH,
    Array,
    Plain,
    Record,
    records,
    scaled,
)


def audited(
    make: conformance.MakeTrainer, claim: StepClaim = CLAIM, seed: int = 0
) -> ConformanceResult:
    return conformance.check(make, claim, records=records(), effort=LITTLE, seed=seed)


def outcomes(result: ConformanceResult, check: str) -> set[Outcome]:
    return {finding.outcome for finding in result.findings if finding.check == check}


def test_conforming_trainer_passes() -> None:
    result = audited(Plain)
    assert result.verdict is Outcome.PASS, result.findings
    assert result.exit_code is ExitCode.PASS


class TwiceTheRate(Plain):
    def draw(self) -> list[int]:
        coins = np.random.default_rng([self.seed, self.number, 1]).random(len(self.known))
        return np.flatnonzero(coins < 2 * CLAIM.sampling_rate).tolist()


@pytest.mark.parametrize(("make", "verdict"), [(Plain, "PASS"), (TwiceTheRate, "FAIL")])
def test_claim_of_one_step_is_tested_without_pairs_of_steps(
    make: conformance.MakeTrainer, verdict: str
) -> None:
    result = audited(make, msgspec.structs.replace(CLAIM, steps=1))
    assert result.verdict.value == verdict
    names = {finding.name for finding in result.findings if finding.check == "sampler"}
    assert names == {"rate", "records", "batch sizes", "pairs", "runs"}
    failed = {one.check for one in result.findings if one.outcome is Outcome.FAIL}
    assert failed == ({"sampler"} if verdict == "FAIL" else set())


def test_result_survives_a_json_round_trip() -> None:
    result = audited(Plain)
    again = msgspec.json.decode(msgspec.json.encode(result), type=ConformanceResult)
    assert again == result


def test_verdict_that_contradicts_its_findings_is_refused() -> None:
    result = audited(Plain)
    with pytest.raises(InvalidArgument, match="verdict"):
        msgspec.structs.replace(result, verdict=Outcome.FAIL)


class ForgetsItsSeed(Plain):
    def noise(self) -> Array:
        return NOISE * CLIP * np.random.default_rng().normal(size=WIDTH + 1)


class OneGenerator(Plain):
    """Noise and sampling share a generator: one more record changes all noise."""

    def draw(self) -> list[int]:
        self.rng = np.random.default_rng([self.seed, self.number])
        return np.flatnonzero(self.rng.random(len(self.known)) < CLAIM.sampling_rate).tolist()

    def noise(self) -> Array:
        return NOISE * CLIP * self.rng.normal(size=WIDTH + 1)


class Permutes(Plain):
    """Sampling by the position in a random order: one more record changes who is included."""

    def draw(self) -> list[int]:
        rng = np.random.default_rng([self.seed, self.number, 1])
        order = rng.permutation(len(self.known))
        return order[rng.random(len(self.known)) < CLAIM.sampling_rate].tolist()


@pytest.mark.parametrize("kind", [ForgetsItsSeed, OneGenerator, Permutes])
@pytest.mark.parametrize("tells", [True, False])
def test_what_cannot_be_replayed_is_inconclusive_and_never_violated(
    kind: type[Plain], tells: bool
) -> None:
    class Trainer(kind):  # type: ignore[valid-type,misc]
        def step(self) -> Array:
            update = super().step()
            if not tells:
                self.sampled = None
            return update

    result = audited(Trainer)
    assert outcomes(result, "replay") == {Outcome.INCONCLUSIVE}
    assert result.verdict is Outcome.INCONCLUSIVE, result.violations
    assert result.exit_code is ExitCode.INCONCLUSIVE


class Names(OneGenerator):
    """Accepts ``include``, with a separate generator for the noise."""

    def step(self, include: Sequence[int] | None = None) -> Array:  # type: ignore[override]
        self.include = include
        return super().step()

    def draw(self) -> list[int]:
        return super().draw() if self.include is None else list(self.include)

    def noise(self) -> Array:
        return Plain.noise(self)


def test_include_makes_any_sampler_replayable() -> None:
    assert audited(Names).verdict is Outcome.PASS


def test_include_detects_missing_clipping() -> None:
    class Unclipped(Names):
        def clipped(self, gradient: Array) -> Array:
            return gradient

    assert Outcome.FAIL in outcomes(audited(Unclipped), "replay")


class NeedsARecord(Plain):
    def __init__(self, known: Sequence[Record], seed: int) -> None:
        super().__init__(known, seed)
        self.width = len(known[0][0])


def test_trainer_that_needs_a_record_is_tested_on_steps_without_it() -> None:
    assert audited(NeedsARecord).verdict is Outcome.PASS


def test_without_sampled_the_sampler_is_inconclusive_and_the_scale_is_tested() -> None:
    class Silent(NeedsARecord):
        def step(self) -> Array:
            update = super().step()
            self.sampled = None
            return update

    result = audited(Silent)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert Outcome.PASS in outcomes(result, "noise")

    class Quieter(Silent):
        def noise(self) -> Array:
            return super().noise() / 2

    assert audited(Quieter).verdict is Outcome.FAIL


def test_trainer_that_raises_for_a_record_is_inconclusive() -> None:
    class Refuses(Plain):
        def gradient(self, x: Array, y: float) -> Array:
            if not np.isfinite(x).all():
                raise ValueError("NaN in the features")
            return super().gradient(x, y)

    result = audited(Refuses)
    (finding,) = [f for f in result.findings if f.outcome is Outcome.INCONCLUSIVE]
    assert finding.name == "NaN features"
    assert "NaN in the features" in finding.why


def test_revealed_empty_batch_fails() -> None:
    class Divides(NeedsARecord):
        def step(self) -> Array:
            with np.errstate(all="ignore"):
                return super().step() / np.float64(len(self.sampled)) * 6

    result = audited(Divides)
    assert result.verdict is Outcome.FAIL
    assert any("not finite" in finding.why for finding in result.violations)


def test_replaced_records_may_move_the_sum_by_twice_the_clip_norm() -> None:
    claim = msgspec.structs.replace(CLAIM, adjacency=Adjacency.REPLACE_ONE)
    result = audited(Plain, claim)
    assert result.verdict is Outcome.PASS, result.findings
    norms = [finding.norm for finding in result.findings if finding.norm is not None]
    assert max(norms) > 1


def test_full_batches_pass_under_their_claim() -> None:
    class Full(Plain):
        def draw(self) -> list[int]:
            return list(range(len(self.known)))

    claim = msgspec.structs.replace(CLAIM, sampling_rate=1.0, sampling=Sampling.FULL_BATCH)
    assert audited(Full, claim).verdict is Outcome.PASS
    assert Outcome.FAIL in outcomes(audited(Plain, claim), "sampler")


def test_fixed_size_batches_pass_only_under_their_claim() -> None:
    class Fixed(Plain):
        def draw(self) -> list[int]:
            rng = np.random.default_rng([self.seed, self.number, 1])
            size = round(CLAIM.sampling_rate * len(self.known))
            return rng.choice(len(self.known), size, replace=False).tolist()

    fixed = msgspec.structs.replace(CLAIM, sampling=Sampling.FIXED_SIZE)
    assert outcomes(audited(Fixed, fixed), "sampler") == {Outcome.PASS}
    assert Outcome.FAIL in outcomes(audited(Fixed), "sampler")
    assert Outcome.FAIL in outcomes(audited(Plain, fixed), "sampler")


def test_noise_reused_after_a_crash_is_detected() -> None:
    class Resumable(Plain):
        def resumed(self) -> Plain:
            other = type(self)(self.known, self.seed)
            other.number = self.number
            return other

    class StartsOver(Plain):
        def resumed(self) -> Plain:
            return type(self)(self.known, self.seed)

    assert audited(Resumable).verdict is Outcome.PASS
    result = audited(StartsOver)
    assert [finding.name for finding in result.violations] == ["resume"]


def test_noise_repeated_half_a_run_later_is_detected() -> None:
    class Repeats(Plain):
        def noise(self) -> Array:
            rng = np.random.default_rng([self.seed, self.number % (STEPS // 2), 2])
            return NOISE * CLIP * rng.normal(size=WIDTH + 1)

    result = audited(Repeats)
    assert any(f"steps {STEPS // 2} apart" in finding.why for finding in result.violations)


class Shares(Plain):
    """Two ranks, each with half of the records and noise of half the variance."""

    def keys(self) -> tuple[int, int]:
        return 2, 3

    def step(self) -> Array:
        self.sampled = self.draw()
        rows = []
        for rank, key in enumerate(self.keys()):
            rng = np.random.default_rng([self.seed, self.number, key])
            row = NOISE * CLIP / np.sqrt(2) * rng.normal(size=WIDTH + 1)
            for i in self.sampled[rank::2]:
                row = row + self.clipped(self.gradient(*self.known[i]))
            rows.append(CLAIM.update_scale * row)
        self.rank_updates = np.array(rows)
        update = self.rank_updates.sum(axis=0)
        self.weights, self.number = self.weights + update, self.number + 1
        return np.asarray(update)


def test_noise_shares_pass_and_a_common_seed_is_detected() -> None:
    class OneSeed(Shares):
        def keys(self) -> tuple[int, int]:
            return 2, 2

    assert audited(Shares).verdict is Outcome.PASS
    assert any("rank 0 and rank 1" in f.why for f in audited(OneSeed).violations)


def test_probe_that_no_step_includes_is_inconclusive() -> None:
    class Hardly(Plain):
        def draw(self) -> list[int]:
            return []

    claim = msgspec.structs.replace(CLAIM, sampling_rate=1e-9)
    result = audited(Hardly, claim)
    assert outcomes(result, "replay") == {Outcome.INCONCLUSIVE}


def test_given_probes_replace_the_derived_ones() -> None:
    own = (1e6 * np.ones(WIDTH), 1.0)
    result = conformance.check(Plain, CLAIM, records=records(), probes=[own], effort=LITTLE)
    names = [finding.name for finding in result.findings if finding.check == "replay"]
    assert names == [
        "ordinary",
        "given, number 0",
        "opposed records",
        "clipping of later steps",
        "clipping",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": float("nan")},
        {"clip_norm": 0.0},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"update_scale": 0.0},
        {"update_scale": float("nan")},
    ],
)
def test_invalid_claim_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(changes))):
        msgspec.structs.replace(CLAIM, **changes)


def test_step_that_returns_no_flat_array_is_refused() -> None:
    class Table(Plain):
        def step(self) -> Array:
            return super().step().reshape(1, -1)

    with pytest.raises(InvalidArgument, match="flat"):
        audited(Table)


def test_too_few_records_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="records"):
        conformance.check(Plain, CLAIM, records=records()[:1])


def test_low_noise_is_reported_with_its_factor() -> None:
    result = audited(scaled(0.8))
    (finding,) = [f for f in result.violations if f.name == "scale"]
    assert finding.why.startswith("the noise as a whole has 0.")
