"""The embedded engine: ledgers, budgets, failures, checkpoints and claims of federations."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_model
from torch import Tensor

from dpaudit.accountants import pld
from dpaudit.runs.directory import RunDirectory, remove_run
from dpaudit.runs.file_io import read_json, sha256
from dpaudit.trainer.federated import federation_run
from dpaudit.trainer.federated.federation import Federation, participant_stream
from dpaudit.trainer.federated.federation_run import (
    prepare_federation,
    prepare_federation_resume,
    resume_federation,
    train_federation,
)
from dpaudit.trainer.federated.ledgers import NO_NOISE, RECORDED_AHEAD
from dpaudit.trainer.federated.local_training import PlainTrainer, PrivateTrainer, Weights
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.federation import (
    COPIES_OF_RECORDS,
    DP_FEDAVG,
    FEDAVG,
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
)
from dpaudit.vocabulary.ledger import ResumeEntry
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Release, Repeated
from dpaudit.vocabulary.settings import (
    LEARNING_RATE_SCHEDULES,
    DataSettings,
    ModelSettings,
    SpeedSettings,
)

STEPS, ROUNDS, CLIENTS, DELTA = 3, 3, 4, 1e-5
LOCAL_STEP: Release = PoissonSampled(Gaussian(1.0), 0.1)
STRATEGIES = (FEDAVG, DP_FEDAVG)
BOTH = pytest.mark.parametrize("strategy", STRATEGIES)


def config(strategy: str, **privacy: object) -> FederatedConfig:
    settings = FederatedPrivacy(delta=DELTA, noise_multiplier=1.0, clip_norm=0.5, seed=7)
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings(strategy, participants=CLIENTS, rounds=ROUNDS),
        replace(settings, **privacy),
        LocalTraining(local_steps=STEPS, sampling_rate=0.1),
        model=ModelSettings("linear", learning_rate=0.5),
        speed=SpeedSettings(checkpoint_every=1, device="cpu"),
    )


def ignore(result: RoundResult, federation: Federation) -> None:
    pass


def train(
    settings: FederatedConfig, out: Path, on_round: Callable[..., None] = ignore
) -> tuple[RunDirectory, list[RoundResult]]:
    results: list[RoundResult] = []

    def keep(result: RoundResult, federation: Federation) -> None:
        results.append(result)
        on_round(result, federation)

    return train_federation(prepare_federation(settings), out, keep), results


def break_training(
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    participant: int,
    break_it: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    *,
    rounds: tuple[int, ...] = (1,),
    steps: int = STEPS,
) -> None:
    """Let one participant take some steps in some rounds, and then do something else."""
    kind = PrivateTrainer if strategy == FEDAVG else PlainTrainer
    whole = kind.train

    def broken(self: PrivateTrainer | PlainTrainer, weights: Weights, number: int) -> object:
        own = (
            self.private.header.federation.participant  # type: ignore[union-attr]
            if isinstance(self, PrivateTrainer)
            else self._participant.number
        )
        if own != participant or number not in rounds:
            return whole(self, weights, number)  # type: ignore[arg-type]
        kept, self._local_steps = self._local_steps, steps
        try:
            return break_it(whole(self, weights, number))  # type: ignore[arg-type]
        finally:
            self._local_steps = kept

    monkeypatch.setattr(kind, "train", broken)


def die(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    raise RuntimeError("killed")


# Runs that end.


@BOTH
def test_a_run_is_sealed_and_claims_what_its_ledgers_record(strategy: str, tmp_path: Path) -> None:
    run, results = train(config(strategy), tmp_path / "run")
    ledger = run.read_finished()
    assert [one.joined for one in results] == [tuple(range(CLIENTS))] * ROUNDS
    assert [one.number for one in ledger.rounds] == list(range(ROUNDS))
    assert len(ledger.participants) == CLIENTS
    release, count = (LOCAL_STEP, ROUNDS * STEPS) if strategy == FEDAVG else (Gaussian(1.0), ROUNDS)
    for number, own in enumerate(ledger.participants.values()):
        assert [one.mechanism for one in own.releases] == [release] * count
        assert own.header.federation is not None
        assert own.header.federation.participant == number
        assert own.seal is not None
    assert len(ledger.releases) == (0 if strategy == FEDAVG else ROUNDS)
    claim = read_json(run.claim, Claim)
    expected = pld.profile(Repeated(release, count)).epsilon(delta=DELTA)
    assert claim.epsilon.upper == pytest.approx(expected.upper, rel=1e-6)
    assert claim.unit is ledger.header.unit
    assert claim.federation == ledger.header.federation
    assert not run.checkpoints.exists()


@BOTH
def test_a_seed_determines_the_model(strategy: str, tmp_path: Path) -> None:
    runs = [prepare_federation(config(strategy, seed=seed)) for seed in (7, 7, 8)]
    for number, prepared in enumerate(runs):
        train_federation(prepared, tmp_path / str(number), ignore)
    one, same, other = (torch.cat([p.flatten() for p in r.model.parameters()]) for r in runs)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_no_two_keystreams_of_a_federation_draw_the_same() -> None:
    for server in (Keystream.seeded(1), Keystream.secure()):
        streams = [server, *(participant_stream(server, number) for number in range(5))]
        assert len({one.key for one in streams}) == 6
        draws = {bytes(one.bits(Purpose.GRADIENT_NOISE, 0, 16)) for one in streams}
        assert len(draws) == 6
        assert {one.randomness for one in streams} == {server.randomness}


def test_secure_runs_differ(tmp_path: Path) -> None:
    prepared = [prepare_federation(config(FEDAVG, seed=None)) for _ in range(2)]
    for number, one in enumerate(prepared):
        one.model.load_state_dict(prepared[0].model.state_dict())
        train_federation(one, tmp_path / str(number), ignore)
    weights = [torch.cat([p.flatten() for p in one.model.parameters()]) for one in prepared]
    assert not torch.equal(*weights)


def test_adaptive_clipping_costs_what_constant_clipping_costs(tmp_path: Path) -> None:
    settings = config(DP_FEDAVG, adaptive_clipping=True, quantile_noise=2.0)
    run, _ = train(settings, tmp_path / "run")
    expected = pld.profile(Repeated(Gaussian(1.0), ROUNDS)).epsilon(delta=DELTA)
    found = read_json(run.claim, Claim).epsilon
    assert found.upper == pytest.approx(expected.upper, rel=1e-6)


@BOTH
def test_without_noise_there_is_a_model_and_no_claim(strategy: str, tmp_path: Path) -> None:
    run, _ = train(config(strategy, noise_multiplier=0.0), tmp_path / "run")
    ledger = run.read_ledger()
    assert run.model.exists()
    assert not run.claim.exists()
    assert NO_NOISE in ledger.unaccounted
    assert not ledger.releases
    assert not ledger.participants
    assert ledger.ended is not None
    assert ledger.seal is None


def test_copies_of_a_record_are_listed_as_not_covered(tmp_path: Path) -> None:
    settings = config(FEDAVG)
    federation = replace(
        settings.federation, partition="independent", records_per_participant=100, rounds=1
    )
    run, _ = train(replace(settings, federation=federation), tmp_path / "run")
    assert COPIES_OF_RECORDS in read_json(run.claim, Claim).unaccounted


def test_an_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(config(DP_FEDAVG), tmp_path / "run")
    with pytest.raises(RunExists):
        train(config(DP_FEDAVG), tmp_path / "run")


@BOTH
def test_averaged_weights_are_refused(strategy: str) -> None:
    settings = config(strategy)
    with pytest.raises(InvalidArgument):
        prepare_federation(replace(settings, model=replace(settings.model, average_decay=0.9)))


def cosine(settings: FederatedConfig) -> FederatedConfig:
    return replace(settings, model=replace(settings.model, learning_rate_schedule="cosine"))


@BOTH
def test_cosine_decay_covers_the_local_steps_of_all_rounds(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    whole = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any, **options: Any) -> object:
        rates.extend(group["lr"] for group in self.param_groups)
        return whole(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(cosine(config(strategy)), tmp_path / "run")
    expected = [
        0.25 * (1 + math.cos(math.pi * (number * STEPS + one) / (ROUNDS * STEPS)))
        for number in range(ROUNDS)
        for _ in range(CLIENTS)
        for one in range(STEPS)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_a_schedule_changes_no_claim(tmp_path: Path) -> None:
    settings = config(FEDAVG)
    runs = [train(one, tmp_path / str(k))[0] for k, one in enumerate((settings, cosine(settings)))]
    assert runs[0].model.read_bytes() != runs[1].model.read_bytes()
    first, second = (read_json(run.claim, Claim).epsilon for run in runs)
    assert first == second


# Failures and refusals.


@BOTH
def test_a_participant_that_fails_costs_itself_alone(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_training(monkeypatch, strategy, 2, die, steps=1)
    run, results = train(config(strategy), tmp_path / "run")
    assert results[1].joined == (0, 1, 3)
    assert results[1].failed == {2: "RuntimeError: killed"}
    assert results[2].joined == (0, 1, 2, 3)
    ledger = run.read_finished()
    assert ledger.rounds[1].rejected == {"002": "its local training failed"}
    counts = [len(one.releases) for one in ledger.participants.values()]
    if strategy == FEDAVG:  # one step less two that were not taken
        assert counts == [9, 9, 7, 9]
    else:  # a round costs every participant
        assert counts == [ROUNDS] * CLIENTS


@BOTH
def test_a_broken_update_is_left_out_by_name_and_the_round_ends(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(iter(weights))
        return {**weights, name: weights[name] * math.nan}

    break_training(monkeypatch, strategy, 1, poison)
    run, results = train(config(strategy), tmp_path / "run")
    assert results[1].joined == (0, 2, 3)
    assert "NaN" in results[1].rejected[1]
    assert "NaN" in run.read_finished().rounds[1].rejected["001"]
    assert results[2].joined == (0, 1, 2, 3)


@BOTH
def test_a_failure_of_all_participants_is_raised(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("no model fits")

    kind = PrivateTrainer if strategy == FEDAVG else PlainTrainer
    monkeypatch.setattr(kind, "train", broken)
    with pytest.raises(RuntimeError, match="no model fits"):
        train(config(strategy), tmp_path / "run")


# Budgets.


def test_a_participant_without_budget_leaves_and_the_round_continues(tmp_path: Path) -> None:
    one_round = pld.profile(Repeated(LOCAL_STEP, STEPS)).epsilon(delta=DELTA).upper
    settings = config(FEDAVG, max_epsilon=one_round * 1.001, participation_rate=0.5)
    federation = replace(settings.federation, rounds=20)
    run, results = train(replace(settings, federation=federation), tmp_path / "run")
    assert sorted(number for one in results for number in one.joined) == [0, 1, 2, 3]
    assert any(one.left and one.joined for one in results)  # one left, another one trained
    assert results[-1].ended
    assert results[-1].left == (0, 1, 2, 3)
    ledger = run.read_finished()
    assert all(len(one.releases) == STEPS for one in ledger.participants.values())
    assert read_json(run.claim, Claim).epsilon.upper <= one_round * 1.001


def test_a_participant_level_run_ends_before_its_budget_is_exceeded(tmp_path: Path) -> None:
    two_rounds = pld.profile(Repeated(Gaussian(1.0), 2)).epsilon(delta=DELTA).upper
    run, results = train(config(DP_FEDAVG, max_epsilon=two_rounds * 1.001), tmp_path / "run")
    assert [one.ended for one in results] == [False, False, True]
    assert len(run.read_finished().releases) == 2


# Interrupted runs.


def interrupt_in(number: int) -> Callable[[RoundResult, Federation], None]:
    def interrupt(result: RoundResult, federation: Federation) -> None:
        if result.number == number:
            raise KeyboardInterrupt

    return interrupt


@BOTH
@pytest.mark.parametrize("number", [0, ROUNDS - 1])
@pytest.mark.parametrize("schedule", LEARNING_RATE_SCHEDULES)
def test_a_resumed_run_gives_the_model_of_an_uninterrupted_one(
    strategy: str, number: int, schedule: str, tmp_path: Path
) -> None:
    settings = config(strategy)
    settings = replace(settings, model=replace(settings.model, learning_rate_schedule=schedule))
    whole, _ = train(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "part", interrupt_in(number))
    prepared = prepare_federation_resume(tmp_path / "part")
    numbers: list[int] = []
    run = resume_federation(
        prepared, tmp_path / "part", lambda result, federation: numbers.append(result.number)
    )
    assert numbers == list(range(number + 1, ROUNDS))
    expected = prepare_federation(config(strategy)).model
    for model, one in ((expected, whole), (prepared.model, run)):
        load_model(model, one.model)
    for a, b in zip(expected.parameters(), prepared.model.parameters(), strict=True):
        assert torch.equal(a, b)
    ledger = run.read_finished()
    assert any(isinstance(line, ResumeEntry) for line in ledger.lines)
    with pytest.raises(RunExists):
        resume_federation(prepared, tmp_path / "part", ignore)


@BOTH
def test_releases_of_a_round_that_was_interrupted_are_counted_twice(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        break_training(patched, strategy, 3, stop)
        with pytest.raises(KeyboardInterrupt):
            train(config(strategy), tmp_path / "run")
    run = resume_federation(prepare_federation_resume(tmp_path / "run"), tmp_path / "run", ignore)
    counts = [len(one.releases) for one in run.read_finished().participants.values()]
    again = STEPS if strategy == FEDAVG else 1
    assert counts == [ROUNDS * again + again] * CLIENTS


def test_a_run_that_died_while_its_ledgers_were_sealed_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(federation_run, "write_weights", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config(FEDAVG), tmp_path / "run")
    prepared = prepare_federation_resume(tmp_path / "run")
    run = resume_federation(prepared, tmp_path / "run", ignore)
    counts = [len(one.releases) for one in run.read_finished().participants.values()]
    assert counts == [ROUNDS * STEPS] * CLIENTS
    assert sha256(run.model) == run.read_finished().seal.files["model.safetensors"]  # type: ignore[union-attr]


def test_releases_are_on_disk_before_the_noise_of_their_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed in a step has recorded it, and at most RECORDED_AHEAD - 1 more."""
    taken = 0
    private_step = Private.step

    def step(self: Private, given: object, batch: object) -> None:
        nonlocal taken
        private_step(self, given, batch)  # type: ignore[arg-type]
        taken += 1
        recorded = len(
            RunDirectory(tmp_path / "run").read_unfinished().participants["000"].releases
        )
        assert taken <= recorded < taken + RECORDED_AHEAD
        if taken == 30:
            raise KeyboardInterrupt

    monkeypatch.setattr(Private, "step", step)
    settings = replace(config(FEDAVG), local=LocalTraining(local_steps=40, sampling_rate=0.1))
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "run")
    assert taken == 30


def test_an_epsilon_is_given_for_each_participant(tmp_path: Path) -> None:
    found: list[dict[str, float]] = []

    def keep(result: RoundResult, federation: Federation) -> None:
        found.append({k: one.upper for k, one in federation.epsilons(DELTA).items()})

    train(config(FEDAVG, participation_rate=0.5), tmp_path / "run", keep)
    for epsilons in found:
        assert list(epsilons) == ["000", "001", "002", "003"]
    assert 0 in found[0].values()
    assert len(set(found[0].values())) == 2


@pytest.mark.parametrize("rate", [0.0, 1.1e38, 1e300, float("nan"), float("inf")])
def test_a_server_learning_rate_that_no_model_can_use_is_refused(rate: float) -> None:
    with pytest.raises(InvalidArgument, match="server_learning_rate"):
        LocalTraining(server_learning_rate=rate)


@pytest.fixture
def few_files() -> Iterator[int]:
    """Let this process open only 40 more files than it has open now; yield the limit."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as lowest:  # descriptors are the lowest free numbers
        limit = lowest.fileno() + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_participants_than_files_that_may_be_open(tmp_path: Path, few_files: int) -> None:
    base, participants = config(DP_FEDAVG), few_files + 10
    settings = replace(
        base,
        federation=replace(base.federation, participants=participants, rounds=2),
        local=replace(base.local, local_steps=1),
        speed=replace(base.speed, checkpoint_every=100),
    )

    def stop(result: RoundResult, federation: Federation) -> None:
        opened = sum(
            one.ledger.writer is not None and one.ledger.writer.is_open
            for one in federation.participants
        )
        assert 1 <= opened <= few_files // 4
        if result.number == 0:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(settings, out, stop)
    run = resume_federation(prepare_federation_resume(out), out, ignore)
    ledgers = run.read_finished().participants
    assert len(ledgers) == participants
    assert {len(one.releases) for one in ledgers.values()} == {3}  # round 0 was repeated
    remove_run(out)
    assert not out.exists()
