"""One process and Flower give the same global model, in seeded mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr", reason="flwr is not installed: pip install 'dpaudit[federated]'")


import torch
from flower_grid import InProcessGrid, as_server_app, config_of
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from safetensors.numpy import load_file

from dpaudit.trainer.federated.dp_fedavg import clipping_settings
from dpaudit.trainer.federated.federation import (
    Federation,
    Participant,
    PreparedFederation,
    participant_stream,
)
from dpaudit.trainer.federated.federation_run import prepare_federation, train_federation
from dpaudit.trainer.federated.flower import DPFedAvg, ServerSettings, answer_participant
from dpaudit.trainer.federated.ledgers import FederationLedger, federation_header
from dpaudit.trainer.federated.local_training import PlainTrainer
from dpaudit.trainer.models.factories import trained_part
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
)
from dpaudit.vocabulary.settings import DataSettings, ModelSettings

PARTICIPANTS, ROUNDS, SEED = 4, 3, 11


@pytest.fixture(autouse=True)
def _server_app() -> Iterator[None]:
    with as_server_app():
        yield


def config(rate: float) -> FederatedConfig:
    return FederatedConfig(
        DataSettings("digits"),
        FederationSettings("dp-fedavg", PARTICIPANTS, ROUNDS, partition="shards"),
        FederatedPrivacy(
            delta=1e-5, noise_multiplier=0.5, clip_norm=0.3, participation_rate=rate, seed=SEED
        ),
        LocalTraining(local_steps=5, sampling_rate=0.1, server_learning_rate=0.7),
        ModelSettings(model="linear"),
    )


def in_memory(prepared: PreparedFederation) -> Federation:
    """Return the federation that a Flower client trains in: its ledgers are not on disk."""

    def ledger(number: int | None) -> FederationLedger:
        stream = prepared.stream
        return FederationLedger.begin(
            None,
            federation_header(prepared.config, prepared.definition, stream.randomness, number),
        )

    participants = tuple(
        Participant(number, records, participant_stream(prepared.stream, number), ledger(number))
        for number, records in enumerate(prepared.records)
    )
    return Federation(
        prepared.config,
        trained_part(prepared.model),
        prepared.split.shape,
        prepared.stream,
        ledger(None),
        participants,
        0,
        len(prepared.split.train) // PARTICIPANTS,
    )


def app_of(federation: Federation) -> ClientApp:
    trainers = [PlainTrainer(federation, one) for one in federation.participants]
    app = answer_participant(ClientApp())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"]
        weights = {name: torch.from_numpy(one.numpy().copy()) for name, one in arrays.items()}
        number = int(str(config_of(message)["server-round"])) - 1
        trainer = trainers[int(str(context.node_config["partition-id"]))]
        trained = trainer.train(weights, number)
        record = ArrayRecord({name: Array(one.numpy()) for name, one in trained.items()})
        return Message(RecordDict({"arrays": record}), reply_to=message)

    return app


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_one_process_and_flower_give_the_same_model(tmp_path: Path, rate: float) -> None:
    settings = config(rate)
    run = train_federation(
        prepare_federation(settings), tmp_path / "engine", lambda result, federation: None
    )
    embedded = load_file(run.model)

    prepared = prepare_federation(settings)
    federation = in_memory(prepared)
    server = ServerSettings(
        clipping_settings(settings),
        settings.privacy.delta,
        learning_rate=settings.local.server_learning_rate,
        seed=SEED,
    )
    initial = ArrayRecord({name: Array(one) for name, one in federation.reference().items()})
    strategy = DPFedAvg(server, tmp_path / "flower")
    result = strategy.start(InProcessGrid(app_of(federation), PARTICIPANTS), initial, ROUNDS)

    found = {name: one.numpy() for name, one in result.arrays.items()}
    moved = max(np.abs(part - initial[name].numpy()).max() for name, part in found.items())
    assert moved > 0.01
    for name, part in found.items():
        (own,) = (one for key, one in embedded.items() if key.endswith(name))
        assert np.abs(part - own).max() <= 1e-6
    assert strategy.run is not None
    assert [
        (one.what, one.mechanism, one.step) for one in strategy.run.read_finished().releases
    ] == [(one.what, one.mechanism, one.step) for one in run.read_finished().releases]
    claims = [one.claim.read_text() for one in (run, strategy.run)]
    assert claims[0].split('"epsilon"')[1][:120] == claims[1].split('"epsilon"')[1][:120]
