"""Models with a fixed part: computed once a run, shipped whole, the same from either side."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer import run as runs
from dpaudit.trainer import tasks
from dpaudit.trainer.canaries.run_canaries import RunCanaries
from dpaudit.trainer.data import load_dataset
from dpaudit.trainer.models import factories
from dpaudit.trainer.models.factories import (
    FixedFeatureModel,
    compute_features,
    default_learning_rate,
    evaluate_model,
    make_model,
    trained_part,
)
from dpaudit.trainer.models.scattering_transform import ScatteringTransform
from dpaudit.trainer.tasks import load_trained_model
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)

SIDE, CLASSES = 8, 3


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % CLASSES
    source = tmp_path / "images.npz"
    np.savez(source, x=rng.random((90, SIDE, SIDE)) * (1 + labels[:, None, None]), y=labels)
    return RunConfig(
        DataSettings(str(source)),
        PrivacySettings(
            *(0.5, 1.0, 0.1, 6, 1e-5),
            expected_batch_size=35.0,
            seed=4,
        ),
        ModelSettings("scattering", learning_rate=1.0),
        CanarySettings(gradient=4, inputs=6),
        SpeedSettings(checkpoint_every=2),
    )


def train(config: RunConfig, out: Path) -> RunDirectory:
    return runs.train_run(runs.prepare_run(config), out, lambda done, tap: None)


def test_the_scattering_model_is_linear_and_normalises_each_record_by_itself() -> None:
    model = make_model("scattering", (28, 28), 10, seed=0)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == {
        "trained.weight": (10, 81 * 7 * 7),
        "trained.bias": (10,),
    }
    images = torch.rand(5, 28, 28)
    features = torch.from_numpy(compute_features(model, images.numpy()))
    groups = features.view(5, 27, -1)
    assert torch.allclose(groups.mean(dim=2), torch.zeros(5, 27), atol=1e-5)
    assert torch.allclose(trained_part(model)(features), model(images), atol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (3, 32, 32)])
def test_any_image_has_a_scattering_model(shape: tuple[int, ...]) -> None:
    model = make_model("scattering", shape, 4, seed=0)
    assert model(torch.rand(2, *shape)).shape == (2, 4)


def test_features_do_not_depend_on_how_many_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model("scattering", (SIDE, SIDE), CLASSES, seed=0)
    images = np.random.default_rng(1).random((25, SIDE, SIDE)).astype(np.float32)
    whole = compute_features(model, images)
    monkeypatch.setattr(factories, "FEATURES_AT_ONCE", 4)
    assert np.allclose(compute_features(model, images), whole, atol=1e-5)


def test_a_model_without_a_fixed_part_is_trained_whole_on_records_as_they_are() -> None:
    model = make_model("linear", (SIDE, SIDE), CLASSES, seed=0)
    records = np.ones((3, SIDE, SIDE), dtype=np.float32)
    assert trained_part(model) is model
    assert compute_features(model, records) is records


def test_a_fixed_part_with_something_to_train_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="weight"):
        FixedFeatureModel(nn.Linear(3, 3), nn.Linear(3, 2))
    FixedFeatureModel(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 2))


def test_a_fixed_part_stays_in_evaluation_mode() -> None:
    model = FixedFeatureModel(nn.Dropout(0.5), nn.Dropout(0.5)).train()
    assert not model.features.training
    assert model.trained.training


class MixesRecords(nn.Module):
    def forward(self, records: torch.Tensor) -> torch.Tensor:
        return records.flatten(1) - records.flatten(1).mean(dim=0)


def featured_at_zero(shape: tuple[int, ...], classes: int) -> nn.Module:
    trained = nn.Linear(SIDE * SIDE, classes)
    nn.init.zeros_(trained.weight)
    return FixedFeatureModel(MixesRecords(), trained)


def test_a_fixed_part_that_mixes_records_is_refused_whatever_follows_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(factories.BUILT_IN_MODELS, "mixing", featured_at_zero)
    asked = msgspec.structs.replace(config, model=ModelSettings("mixing"))
    with pytest.raises(InvalidArgument, match="MixesRecords"):
        runs.prepare_run(asked)


def test_features_are_computed_once_a_run(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = runs.prepare_run(config)
    seen: list[int] = []
    transformed = ScatteringTransform.forward

    def noted(self: ScatteringTransform, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return transformed(self, images)

    monkeypatch.setattr(ScatteringTransform, "forward", noted)
    run = runs.train_run(prepared, tmp_path / "run", lambda done, tap: None)
    trained = len(RunCanaries.read(run).trained_inputs)
    assert seen == [len(prepared.split.train) + trained]  # input canaries go the same way


def test_what_ships_is_the_whole_model_and_takes_images(tmp_path: Path, config: RunConfig) -> None:
    run = train(config, tmp_path / "run")
    assert set(load_file(run.model)) == {"trained.weight", "trained.bias"}
    split = load_dataset(config.data)
    model = load_trained_model(run, split)
    found = evaluate_model(model, split.train)
    features = compute_features(model, split.train.features)
    with torch.no_grad():
        outputs = trained_part(model)(torch.from_numpy(features))
    labels = torch.from_numpy(split.train.labels)
    expected = nn.functional.cross_entropy(outputs, labels, reduction="none")
    assert np.allclose(found.losses, expected.numpy(), atol=1e-4)


def test_training_on_features_is_training_the_whole_model(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same run, with features made anew from each batch's images, ends at the same weights."""
    once = train(config, tmp_path / "once")
    monkeypatch.setattr(tasks, "trained_part", lambda model: model)
    monkeypatch.setattr(tasks, "compute_features", lambda model, records: records)
    every_step = train(config, tmp_path / "every-step")
    one, other = load_file(once.model), load_file(every_step.model)
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_an_interrupted_run_with_features_resumed_is_the_run_uninterrupted(
    tmp_path: Path, config: RunConfig
) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(done: int, tap: object) -> None:
        if done == 3:
            raise Interrupted

    whole = train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        runs.train_run(runs.prepare_run(config), tmp_path / "run", interrupt)
    out = tmp_path / "run"
    run = runs.resume_run(runs.prepare_resume(out), out, lambda done, tap: None)
    weights, others = load_file(run.model), load_file(whole.model)
    assert all(torch.equal(weights[name], others[name]) for name in others)


def test_a_preset_is_named_in_what_the_ledger_takes_as_public(
    tmp_path: Path, config: RunConfig
) -> None:
    run = train(msgspec.structs.replace(config, preset="mnist-scattering"), tmp_path / "run")
    assert "preset mnist-scattering" in run.read_ledger().header.assumed_public
    assert run.read_config().preset == "mnist-scattering"


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adam-corrected"])
def test_optimizers_that_scale_their_steps_have_a_small_default_rate(optimizer: str) -> None:
    assert default_learning_rate("linear", (8, 8), optimizer) == 0.01
    assert default_learning_rate("linear", (8, 8), "sgd") == 1.0


def test_a_misspelt_model_gets_a_suggestion() -> None:
    with pytest.raises(InvalidArgument, match=r"did you mean mlp\?"):
        make_model("mpl", (8,), 2, 0)
