"""Both selective strategies in the embedded engine: claims, ledgers, budgets, resumption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from dpaudit.accountants.answers import compute_epsilon
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated import selective_rounds
from dpaudit.trainer.federated.dssgd import SparseVectorScales, Upload
from dpaudit.trainer.federated.dssgd_accounting import (
    ASSUMPTIONS,
    account_for_run,
    upload_release,
)
from dpaudit.trainer.federated.dssgd_corrected_strategy import CorrectedTurn
from dpaudit.trainer.federated.dssgd_strategy import PublishedTurn
from dpaudit.trainer.federated.federation import Federation
from dpaudit.trainer.federated.federation_run import (
    prepare_federation,
    prepare_federation_resume,
    resume_federation,
    train_federation,
)
from dpaudit.trainer.federated.selective_rounds import SelectiveRounds
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
    SelectiveSettings,
)
from dpaudit.vocabulary.ledger import SELECTED_ENTRIES
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import DataSettings, ModelSettings

ROUNDS, PARTICIPANTS = 2, 3
SIZE = 650  # parameters of the linear model on the digits


def config(strategy: str, noise: float = 0.0, **selective: Any) -> FederatedConfig:
    privacy: dict[str, Any] = selective.pop("privacy", {})
    federation: dict[str, Any] = selective.pop("federation", {})
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings(strategy, PARTICIPANTS, ROUNDS, **federation),
        FederatedPrivacy(delta=1e-5, noise_multiplier=noise, clip_norm=1.0, seed=3, **privacy),
        LocalTraining(local_steps=4, sampling_rate=0.25),
        SelectiveSettings(**{"gradient_bound": 1.0, "order": "asynchronous", **selective}),
        model=ModelSettings(model="linear", learning_rate=0.1, momentum=0.0),
    )


PUBLISHED = config("dssgd", selection="threshold", epsilon_per_epoch=1.0, gradient_bound=0.01)
CORRECTED = config("dssgd-corrected", noise=1.0)


def train(
    settings: FederatedConfig, out: Path
) -> tuple[RunDirectory, list[RoundResult], list[Federation]]:
    results: list[RoundResult] = []
    seen: list[Federation] = []

    def on_round(result: RoundResult, federation: Federation) -> None:
        results.append(result)
        seen.append(federation)

    return train_federation(prepare_federation(settings), out, on_round), results, seen


def read_claim(run: RunDirectory) -> Claim:
    return msgspec.json.decode(run.claim.read_bytes(), type=Claim)


def weights_of(run: RunDirectory) -> bytes:
    return run.model.read_bytes().split(b"}}", 1)[-1]


def test_each_upload_of_the_published_strategy_is_recorded(tmp_path: Path) -> None:
    run, results, _ = train(PUBLISHED, tmp_path / "run")
    ledger = run.read_ledger()
    scales = SparseVectorScales.of(PUBLISHED.selective, SIZE)
    assert scales is not None
    assert len(ledger.participants) == PARTICIPANTS
    for own in ledger.participants.values():
        assert [one.what for one in own.releases] == [SELECTED_ENTRIES] * ROUNDS
        assert {one.mechanism for one in own.releases} == {upload_release(scales)}
        assert [one.step for one in own.releases] == list(range(ROUNDS))
        assert set(ASSUMPTIONS) <= set(own.unaccounted)
    assert [result.joined for result in results] == [(0, 1, 2)] * ROUNDS


def test_the_claim_of_the_published_strategy_names_its_assumption(tmp_path: Path) -> None:
    run, _, _ = train(PUBLISHED, tmp_path / "run")
    claim = read_claim(run)
    scales = SparseVectorScales.of(PUBLISHED.selective, SIZE)
    assert scales is not None
    statement = account_for_run(scales, epochs=ROUNDS, delta=1e-5)
    assert claim.epsilon.upper == pytest.approx(statement.composed.upper, rel=1e-6)
    assert any("2 gamma" in one for one in claim.unaccounted)


def test_the_claim_of_the_corrected_strategy_is_that_of_its_steps(tmp_path: Path) -> None:
    run, results, _ = train(CORRECTED, tmp_path / "run")
    claim = read_claim(run)
    steps = Repeated(PoissonSampled(Gaussian(1.0), 0.25), ROUNDS * 4)
    expected = compute_epsilon("pld", steps, 1e-5, Adjacency.ADD_OR_REMOVE_ONE, None).epsilon
    assert claim.epsilon == expected
    assert not any("2 gamma" in one for one in claim.unaccounted)
    assert all(result.joined == (0, 1, 2) for result in results)


@pytest.mark.parametrize("settings", [PUBLISHED, CORRECTED, config("dssgd")])
def test_seeded_runs_are_reproducible(settings: FederatedConfig, tmp_path: Path) -> None:
    one, other = (train(settings, tmp_path / name)[0] for name in ("one", "other"))
    assert weights_of(one) == weights_of(other)


def test_a_corrected_turn_changes_the_selected_coordinates_alone(tmp_path: Path) -> None:
    taken: list[tuple[np.ndarray, np.ndarray, Upload]] = []

    class Watched(CorrectedTurn):
        def take(self, participant: int, number: int, local: Any) -> Any:
            trained, upload = super().take(participant, number, local)
            taken.append((local, trained, upload))
            return trained, upload

    settings = config("dssgd-corrected", noise=1.0, upload_fraction=0.1)
    _, _, seen = train(settings, tmp_path / "run")
    rounds = SelectiveRounds(seen[0], Watched(seen[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(seen[0].participants[0].ledger), "record_releases", _accept)
        rounds.run_round(0)
    assert len(taken) == PARTICIPANTS
    for local, trained, upload in taken:
        changed = np.flatnonzero(trained != local)
        assert len(upload.positions) == 65
        assert set(changed) <= set(upload.positions)
        assert len(changed) > 60  # noise moves nearly every selected coordinate


def _accept(self: object, releases: object) -> None:
    """Accept releases: the ledger of a finished run is closed."""


def test_participants_without_a_download_keep_their_own_parameters(tmp_path: Path) -> None:
    settings = config("dssgd", download_fraction=0.2, order="round-robin")
    _, _, seen = train(settings, tmp_path / "run")
    rounds = SelectiveRounds(seen[0], PublishedTurn(seen[0]))
    rounds.run_round(0)
    stored = rounds.state()
    locals_ = stored[selective_rounds.LOCALS]
    assert locals_.shape == (PARTICIPANTS, SIZE)
    assert not torch.equal(locals_[0], locals_[1])
    again = SelectiveRounds(seen[0], PublishedTurn(seen[0]))
    again.load_state(stored)
    for name, part in again.state().items():
        assert torch.equal(part, stored[name])


@pytest.mark.parametrize("settings", [PUBLISHED, CORRECTED, config("dssgd", download_fraction=0.5)])
def test_an_interrupted_run_is_resumed(settings: FederatedConfig, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(result: RoundResult, federation: Federation) -> None:
        raise Killed

    out = tmp_path / "run"
    speed = type(settings.speed)(checkpoint_every=1)
    settings = msgspec.structs.replace(settings, speed=speed)
    with pytest.raises(Killed):
        train_federation(prepare_federation(settings), out, kill)
    numbers: list[int] = []
    run = resume_federation(
        prepare_federation_resume(out), out, lambda result, _: numbers.append(result.number)
    )
    assert numbers == [1]
    whole, _, _ = train(settings, tmp_path / "whole")
    assert weights_of(run) == weights_of(whole)


def test_a_participant_without_budget_leaves(tmp_path: Path) -> None:
    settings = config("dssgd-corrected", noise=1.0, privacy={"max_epsilon": 5.0})
    _, results, seen = train(settings, tmp_path / "run")
    steps = Repeated(PoissonSampled(Gaussian(1.0), 0.25), 4)
    one = compute_epsilon("pld", steps, 1e-5, Adjacency.ADD_OR_REMOVE_ONE, None).epsilon.upper
    assert one <= 5.0
    assert results[0].joined == (0, 1, 2)
    assert results[1].ended
    assert all(bound.upper <= 5.0 for bound in seen[-1].epsilons(1e-5).values())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (config("dssgd", noise=1.0), "noise_multiplier"),
        (config("dssgd", selection="largest", epsilon_per_epoch=1.0), "selection"),
        (config("dssgd-corrected", noise=1.0, epsilon_per_epoch=1.0), "epsilon_per_epoch"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: FederatedConfig, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        prepare_federation(settings)


def test_diverged_training_is_rejected_and_the_round_continues(tmp_path: Path) -> None:
    _, _, seen = train(config("dssgd", order="round-robin"), tmp_path / "run")

    class Diverges(PublishedTurn):
        def take(self, participant: int, number: int, local: Any) -> Any:
            if participant == 1:
                local = np.full_like(local, np.inf)
            return super().take(participant, number, local)

    result = SelectiveRounds(seen[0], Diverges(seen[0])).run_round(0)
    assert result.joined == (0, 2)
    assert list(result.rejected) == [1]
    assert "NaN" in result.rejected[1]
