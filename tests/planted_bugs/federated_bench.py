"""The federation that bugs are planted in: dpaudit's, with small models."""

from __future__ import annotations

from functools import cache

import numpy as np

from dpaudit.attacks.conformance import Effort
from dpaudit.trainer.federated.aggregation import ParticipantClipping
from dpaudit.trainer.federated.conformance_clients import ParticipantClientFactory
from dpaudit.trainer.federated.conformance_servers import AggregationServerFactory
from dpaudit.trainer.federated.federation_run import prepare_federation
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
)
from dpaudit.vocabulary.settings import DataSettings, ModelSettings

LOCAL_STEPS, ROUNDS, RECORDS = 3, 6, 16
SERVER_EFFORT = Effort(noise_samples=20_000, sampler_steps=240)
CLIENT_EFFORT = Effort(noise_samples=30_000, sampler_steps=60, replays=1, search_steps=100)


def server_factory() -> AggregationServerFactory:
    settings = ParticipantClipping(
        clip_norm=0.5, noise_multiplier=1.5, participation_rate=0.5, participants=8
    )
    return AggregationServerFactory(settings, {"weight": np.zeros((12, 5)), "bias": np.zeros(12)})


@cache
def client_factory() -> ParticipantClientFactory:
    config = FederatedConfig(
        DataSettings("digits"),
        FederationSettings("fedavg", participants=4, rounds=ROUNDS),
        FederatedPrivacy(delta=1e-5, noise_multiplier=2.0, clip_norm=0.1),
        LocalTraining(local_steps=LOCAL_STEPS, sampling_rate=0.4),
        model=ModelSettings("linear"),
    )
    return ParticipantClientFactory(prepare_federation(config))
