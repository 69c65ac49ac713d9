"""What a trainer may leave out, what it must not, and what is said of it then."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from dpaudit.attacks import conformance
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import ExitCode, InvalidArgument
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.verdict import Outcome
from tests.attacks.conformance.plain import (
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


def test_an_honest_trainer_holds() -> None:
    result = audited(Plain)
    assert result.verdict is Outcome.HOLDS, result.findings
    assert result.exit_code is ExitCode.HOLDS


def test_a_result_comes_back_from_json_as_it_was() -> None:
    result = audited(Plain)
    again = msgspec.json.decode(msgspec.json.encode(result), type=ConformanceResult)
    assert again == result


def test_a_verdict_that_its_findings_do_not_say_is_refused() -> None:
    result = audited(Plain)
    with pytest.raises(InvalidArgument, match="verdict"):
        msgspec.structs.replace(result, verdict=Outcome.VIOLATED)


class ForgetsItsSeed(Plain):
    def noise(self) -> Array:
        return NOISE * CLIP * np.random.default_rng().normal(size=WIDTH + 1)


class OneGenerator(Plain):
    """Noise and coins from one generator: a record more, and all noise is another one."""

    def draw(self) -> list[int]:
        self.rng = np.random.default_rng([self.seed, self.number])
        return np.flatnonzero(self.rng.random(len(self.known)) < CLAIM.sampling_rate).tolist()

    def noise(self) -> Array:
        return NOISE * CLIP * self.rng.normal(size=WIDTH + 1)


class Permutes(Plain):
    """Coins by the place in a random order: a record more, and other ones join."""

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
    """Takes the records that it is told to, with noise of a generator of its own."""

    def step(self, include: Sequence[int] | None = None) -> Array:  # type: ignore[override]
        self.include = include
        return super().step()

    def draw(self) -> list[int]:
        return super().draw() if self.include is None else list(self.include)

    def noise(self) -> Array:
        return Plain.noise(self)


def test_include_makes_a_trainer_replayable_that_draws_as_it_likes() -> None:
    assert audited(Names).verdict is Outcome.HOLDS


def test_include_shows_what_is_not_clipped() -> None:
    class Unclipped(Names):
        def clipped(self, gradient: Array) -> Array:
            return gradient

    assert Outcome.VIOLATED in outcomes(audited(Unclipped), "replay")


class NeedsARecord(Plain):
    def __init__(self, known: Sequence[Record], seed: int) -> None:
        super().__init__(known, seed)
        self.width = len(known[0][0])


def test_a_trainer_that_needs_a_record_is_heard_at_the_steps_without_it() -> None:
    assert audited(NeedsARecord).verdict is Outcome.HOLDS


def test_without_sampled_the_sampler_is_inconclusive_and_the_scale_is_tested_all_the_same() -> None:
    class Silent(NeedsARecord):
        def step(self) -> Array:
            update = super().step()
            self.sampled = None
            return update

    result = audited(Silent)
    assert result.verdict is Outcome.INCONCLUSIVE
    assert Outcome.HOLDS in outcomes(result, "noise")

    class Quieter(Silent):
        def noise(self) -> Array:
            return super().noise() / 2

    assert audited(Quieter).verdict is Outcome.VIOLATED


def test_a_trainer_that_stops_at_a_record_is_inconclusive() -> None:
    class Refuses(Plain):
        def gradient(self, x: Array, y: float) -> Array:
            if not np.isfinite(x).all():
                raise ValueError("NaN in the features")
            return super().gradient(x, y)

    result = audited(Refuses)
    (finding,) = [f for f in result.findings if f.outcome is Outcome.INCONCLUSIVE]
    assert finding.name == "NaN features"
    assert "NaN in the features" in finding.why


def test_a_batch_that_is_nobodys_must_not_show() -> None:
    class Divides(NeedsARecord):
        def step(self) -> Array:
            with np.errstate(all="ignore"):
                return super().step() / np.float64(len(self.sampled)) * 6

    result = audited(Divides)
    assert result.verdict is Outcome.VIOLATED
    assert any("not finite" in finding.why for finding in result.violations)


def test_replaced_records_may_move_the_sum_by_twice_the_clip_norm() -> None:
    claim = msgspec.structs.replace(CLAIM, adjacency=Adjacency.REPLACE_ONE)
    result = audited(Plain, claim)
    assert result.verdict is Outcome.HOLDS, result.findings
    norms = [finding.norm for finding in result.findings if finding.norm is not None]
    assert max(norms) > 1


def test_full_batches_hold_as_full_batches() -> None:
    class Full(Plain):
        def draw(self) -> list[int]:
            return list(range(len(self.known)))

    claim = msgspec.structs.replace(CLAIM, sampling_rate=1.0, sampling=Sampling.FULL_BATCH)
    assert audited(Full, claim).verdict is Outcome.HOLDS
    assert Outcome.VIOLATED in outcomes(audited(Plain, claim), "sampler")


def test_batches_of_a_fixed_size_hold_under_that_claim_alone() -> None:
    class Fixed(Plain):
        def draw(self) -> list[int]:
            rng = np.random.default_rng([self.seed, self.number, 1])
            size = round(CLAIM.sampling_rate * len(self.known))
            return rng.choice(len(self.known), size, replace=False).tolist()

    fixed = msgspec.structs.replace(CLAIM, sampling=Sampling.FIXED_SIZE)
    assert outcomes(audited(Fixed, fixed), "sampler") == {Outcome.HOLDS}
    assert Outcome.VIOLATED in outcomes(audited(Fixed), "sampler")
    assert Outcome.VIOLATED in outcomes(audited(Plain, fixed), "sampler")


def test_a_crash_after_which_noise_starts_over_is_seen() -> None:
    class Resumable(Plain):
        def resumed(self) -> Plain:
            other = type(self)(self.known, self.seed)
            other.number = self.number
            return other

    class StartsOver(Plain):
        def resumed(self) -> Plain:
            return type(self)(self.known, self.seed)

    assert audited(Resumable).verdict is Outcome.HOLDS
    result = audited(StartsOver)
    assert [finding.name for finding in result.violations] == ["resume"]


def test_noise_that_comes_again_half_a_run_later_is_seen() -> None:
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


def test_ranks_that_share_the_noise_hold_and_a_common_seed_is_seen() -> None:
    class OneSeed(Shares):
        def keys(self) -> tuple[int, int]:
            return 2, 2

    assert audited(Shares).verdict is Outcome.HOLDS
    assert any("rank 0 and rank 1" in f.why for f in audited(OneSeed).violations)


def test_a_probe_that_never_joins_is_inconclusive() -> None:
    class Hardly(Plain):
        def draw(self) -> list[int]:
            return []

    claim = msgspec.structs.replace(CLAIM, sampling_rate=1e-9)
    result = audited(Hardly, claim)
    assert outcomes(result, "replay") == {Outcome.INCONCLUSIVE}


def test_given_probes_are_replayed_in_place_of_ours() -> None:
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
def test_a_claim_that_is_none_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(changes))):
        msgspec.structs.replace(CLAIM, **changes)


def test_a_step_that_returns_no_row_is_refused() -> None:
    class Table(Plain):
        def step(self) -> Array:
            return super().step().reshape(1, -1)

    with pytest.raises(InvalidArgument, match="flat"):
        audited(Table)


def test_too_few_records_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="records"):
        conformance.check(Plain, CLAIM, records=records()[:1])


def test_noise_is_said_to_be_low_where_it_is() -> None:
    result = audited(scaled(0.8))
    (finding,) = [f for f in result.violations if f.name == "scale"]
    assert finding.why.startswith("the noise as a whole has 0.")
