"""Conformance and membership inference on federated runs, and on servers and clients by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from dpaudit.attacks.conformance import Effort
from dpaudit.attacks.conformance.federated.clients import (
    TrainerOfClient,
    check_noise_of_clients,
    check_uploads,
)
from dpaudit.attacks.conformance.noise_distribution import check_noise
from dpaudit.attacks.conformance.noise_only_runs import NoiseOnlyMode, run_without_records
from dpaudit.cli.attack import attack_command
from dpaudit.cli.audit import conformance_command
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.federated import conformance_clients
from dpaudit.trainer.federated.conformance_clients import ParticipantClientFactory
from dpaudit.trainer.federated.federation_run import prepare_federation, train_federation
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
    SecureAggregationSettings,
)
from dpaudit.vocabulary.settings import DataSettings, ModelSettings
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.audit.federated_conformance import check_federation

SERVER = "tests.attacks.conformance.federated.reference_server:ReferenceServer"
CLIENT = "tests.attacks.conformance.federated.reference_client:ReferenceClient"
SERVER_CLAIM = """
noise_multiplier = 1.5
clip_norm = 0.5
sampling_rate = 0.5
steps = 12
update_scale = 0.25
"""
CLIENT_CLAIM = """
noise_multiplier = 2.0
clip_norm = 0.5
sampling_rate = 0.4
steps = 18
update_scale = 1.0
"""


def called(command: Any, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def trained(out: Path, strategy: str, **privacy: Any) -> RunDirectory:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings(strategy, participants=5, rounds=2),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.5, clip_norm=0.5, seed=1, **privacy),
        LocalTraining(local_steps=3, sampling_rate=0.3),
        model=ModelSettings("linear"),
    )
    return train_federation(prepare_federation(config), out, lambda result, federation: None)


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return trained(tmp_path_factory.mktemp("fedavg") / "run", "fedavg")


@pytest.fixture(scope="module")
def dp_fedavg(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    out = tmp_path_factory.mktemp("dp-fedavg") / "run"
    return trained(out, "dp-fedavg", participation_rate=0.6)


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    return tmp_path / "claim.toml"


def test_server_by_name(claim: Path) -> None:
    claim.write_text(SERVER_CLAIM)
    code, said = called(
        conformance_command, SERVER, "--kind", "server", "--claim", str(claim), "--format", "json"
    )
    assert (code, json.loads(said)["verdict"]) == (0, "PASS")


def test_server_that_adds_less_noise_than_claimed(claim: Path) -> None:
    claim.write_text(SERVER_CLAIM.replace("1.5", "2.0"))
    code, said = called(conformance_command, SERVER, "--kind", "server", "--claim", str(claim))
    assert code == 1
    assert "0.75 times the claimed standard deviation" in said


@pytest.mark.slow
def test_client_by_name(claim: Path, tmp_path: Path) -> None:
    claim.write_text(CLIENT_CLAIM)
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "r.npz", x=rng.standard_normal((16, 20)), y=np.arange(16) % 2)
    records = str(tmp_path / "r.npz")
    arguments = ("--kind", "client", "--claim", str(claim), "--records", records)
    code, said = called(conformance_command, CLIENT, *arguments)
    assert code == 0, said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((SERVER, "--kind", "server"), "--claim"),
        ((SERVER, "--kind", "client", "--claim", "{claim}"), "participant"),
        ((CLIENT, "--kind", "server", "--claim", "{claim}"), "a function of (seed)"),
        ((CLIENT, "--kind", "client", "--claim", "{claim}", "--run", "x"), "--run"),
        (("nothing:here", "--kind", "server", "--claim", "{claim}"), "make_server"),
        ((SERVER, "--kind", "server", "--claim", "{claim}", "--records", "x.npz"), "planted"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    arguments: tuple[str, ...], said: str, claim: Path
) -> None:
    claim.write_text(SERVER_CLAIM)
    given = [one.format(claim=claim) for one in arguments]
    done = CliRunner().invoke(conformance_command, given)
    assert done.exit_code != 0
    assert said in f"{done.output} {done.exception}"


def test_server_of_a_run_is_checked_with_its_ledgers(dp_fedavg: RunDirectory) -> None:
    code, said = called(conformance_command, str(dp_fedavg.path), "--format", "json")
    result = json.loads(said)
    assert code == 0, said
    assert {one["check"] for one in result["findings"]} >= {"replay", "noise", "provenance"}
    assert result["ledger_head"] == dp_fedavg.read_finished().head
    assert dp_fedavg.conformance.exists()


@pytest.mark.slow
def test_server_with_adaptive_clipping_is_checked(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "dp-fedavg", participation_rate=0.6, adaptive_clipping=True,
        quantile_noise=2.0,
    )  # fmt: skip
    code, said = called(conformance_command, str(run.path), "--format", "json")
    assert code == 0, said
    assert "scale of the count" in {one["name"] for one in json.loads(said)["findings"]}


@pytest.mark.slow
def test_clients_of_a_run_are_checked_with_their_ledgers(fedavg: RunDirectory) -> None:
    code, said = called(conformance_command, str(fedavg.path), "--format", "json")
    assert code == 0, said
    names = {one["name"] for one in json.loads(said)["findings"]}
    assert names >= {"uploads", "clients", "releases"}


def test_final_model_of_a_federation_is_attacked(fedavg: RunDirectory) -> None:
    asked = ("--attack", "loss", "--format", "json", "--confidence", "0.99")
    code, said = called(attack_command, str(fedavg.path), *asked)
    assert code == 0, said
    (loss,) = json.loads(said)["membership"]
    parts = prepare_federation(fedavg.read_federated_config()).parts
    assert loss["members"] == sum(len(part) for part in parts)
    assert fedavg.attack.exists()


def test_clients_of_corrected_selective_sgd_add_the_noise_of_their_claim() -> None:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("dssgd-corrected", participants=5, rounds=2),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.5, clip_norm=0.5),
        LocalTraining(local_steps=3, sampling_rate=0.3),
        model=ModelSettings("linear"),
    )
    factory = ParticipantClientFactory(prepare_federation(config))
    trainer, claim = TrainerOfClient(factory), factory.claim()
    effort = Effort(noise_samples=20_000)
    mode = NoiseOnlyMode("on an empty data set")
    found = check_noise(run_without_records(trainer, claim, mode, effort, 1), claim)
    assert {one.outcome for one in found} == {Outcome.PASS}, found
    (uploads,) = check_uploads(factory, factory.records(12), 1)
    assert uploads.outcome is Outcome.PASS, uploads.why


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_uploads_are_replayed_with_the_schedule_of_the_learning_rate(
    schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("fedavg", participants=2, rounds=2),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.5, clip_norm=0.5),
        LocalTraining(local_steps=3, sampling_rate=0.3),
        model=ModelSettings("linear", learning_rate_schedule=schedule),
    )
    factory = ParticipantClientFactory(prepare_federation(config))
    (uploads,) = check_uploads(factory, factory.records(12), 1)
    assert uploads.outcome is Outcome.PASS, uploads.why
    monkeypatch.setattr(conformance_clients, "schedule_learning_rate", lambda *arguments: None)
    (uploads,) = check_uploads(factory, factory.records(12), 1)
    assert uploads.outcome is (Outcome.PASS if schedule == "constant" else Outcome.FAIL)


def test_noise_of_clients_is_compared_in_a_federation_of_two() -> None:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("fedavg", participants=2, rounds=1),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.5, clip_norm=0.5),
        LocalTraining(local_steps=2, sampling_rate=0.1),
        model=ModelSettings("linear"),
    )
    factory = ParticipantClientFactory(prepare_federation(config))
    found = check_noise_of_clients(factory, factory.records(4), 1)
    assert found.outcome is Outcome.PASS, found.why


def test_selective_sgd_as_published_cannot_be_checked(tmp_path: Path) -> None:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("dssgd", participants=5, rounds=1),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.5),
    )
    with pytest.raises(InvalidArgument, match="dssgd"):
        check_federation(config, None, None, None)


def test_run_with_secure_aggregation_cannot_be_checked() -> None:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("dp-fedavg", participants=5, rounds=1),
        FederatedPrivacy(delta=1e-5, noise_multiplier=1.0, clip_norm=0.5),
        secure_aggregation=SecureAggregationSettings(),
    )
    with pytest.raises(InvalidArgument, match="secure aggregation"):
        check_federation(config, None, None, None)
