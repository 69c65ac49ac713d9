"""The benchmark of FedAvg: its settings, its model, its committed figures."""

from __future__ import annotations

import json

import fedavg
import pytest
import torch
from places import ROOT
from side_by_side.federated_models import linear_cnn

from dpaudit.accountants import pld
from dpaudit.vocabulary.settings import HYPERPARAMETER_TUNING

RESULTS = ROOT / "benchmarks" / "results" / "fedavg-2026-12-01.json"


@pytest.mark.parametrize("model", list(fedavg.TARGETS))
def test_both_federations_have_the_published_setting(model: str) -> None:
    private, plain = (fedavg.config(model, noise, 10, 1) for noise in (1.03, 0.0))
    assert private.adds_noise
    assert not plain.adds_noise
    for one in (private, plain):
        assert (one.federation.participants, one.federation.rounds) == (4, 10)
        assert (one.federation.partition, one.federation.shards_per_participant) == ("shards", 3)
        assert (one.local.local_steps, one.local.sampling_rate) == (500, 0.01)
        assert (one.privacy.clip_norm, one.privacy.delta) == (0.1, 1e-5)
    assert private.model.model == plain.model.model


def test_the_claim_of_the_cnn_lists_the_search_of_its_settings() -> None:
    assert fedavg.config("cnn", 1.03, 10, 1).privacy.unaccounted == (HYPERPARAMETER_TUNING,)
    assert fedavg.config("scattering", 1.03, 10, 1).privacy.unaccounted == ()


def test_the_cnn_has_no_hidden_layer() -> None:
    model = linear_cnn((28, 28), 10)
    assert model(torch.zeros(2, 28, 28)).shape == (2, 10)
    assert sum(p.numel() for p in model.parameters()) == 14_394


def test_the_committed_epsilons_are_those_of_the_committed_noise() -> None:
    stored = json.loads(RESULTS.read_text())
    for one in stored["models"].values():
        steps = one["rounds"] * fedavg.LOCAL_STEPS
        spent = pld.profile(fedavg.run_of(stored["noise"]["pld"], steps))
        assert one["private"]["epsilon"] <= fedavg.EPSILON
        assert spent.epsilon(delta=fedavg.DELTA).upper <= one["private"]["epsilon"] * (1 + 1e-6)
