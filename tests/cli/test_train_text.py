"""A language model by command: train, audit, gate, report, watch; what needs classes refuses."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from calling import Call
from safetensors.torch import load_file

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json
from dpaudit.trainer.canaries.run_canaries import RunCanaries
from dpaudit.trainer.run import optimizer_from_settings, prepare_run
from dpaudit.trainer.tasks import load_trained_model
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.workflow.train.accuracy import evaluate_heldout

STEPS = 3
SETTINGS = ("--sampling-rate", 0.1, "--expected-batch-size", 20, "--noise-multiplier", 1,
            "--steps", STEPS, "--learning-rate", 0.01, "--optimizer", "adam",
            "--sequence-length", 8, "--clip-norm", 1)  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be, that is the question. " * 40)
    return path


def train(call: Call, out: Path, *more: object) -> tuple[RunDirectory, str]:
    done = call("train", *SETTINGS, "--out", out, *more)
    assert done.code == 0, done.err
    return RunDirectory(out), done.out


@pytest.mark.slow
def test_gradient_canaries_audit_a_run_on_text(tmp_path: Path, text: Path, call: Call) -> None:
    run, _ = train(call, tmp_path / "run", "--data", text, "--canaries", 30)
    config = tomllib.loads(run.config.read_text())
    assert config["canaries"]["inputs"] == 0  # no label can be wrong
    assert call("audit", run.path).code == 0
    report = read_json(run.audit, AuditReport)
    assert report.bounds
    assert report.heldout_loss is not None


def test_a_run_on_text_is_audited_gated_reported_and_watched(
    tmp_path: Path, text: Path, call: Call
) -> None:
    run, out = train(call, tmp_path / "run", "--data", text)
    header = json.loads(run.ledger.read_text().splitlines()[0])["entry"]
    assert {"sequence length", "vocabulary"} <= set(header["assumed_public"])
    assert "held-out loss" in out
    assert "perplexity" in out
    assert "accuracy" not in out
    audited = call("audit", run.path)
    assert audited.code == 0
    assert "held-out loss" in audited.out
    report = read_json(run.audit, AuditReport)
    assert report.heldout_accuracy is None
    assert report.heldout_loss == pytest.approx(
        evaluate_heldout(run, prepare_run(run.read_config()).split).loss
    )
    policy = tmp_path / "policy.toml"
    policy.write_text("[claim]\nmax_epsilon = 30\ndelta = 1e-5\n")
    gated = call("gate", run.path, "--policy", policy)
    assert gated.code == 0, gated.out + gated.err
    assert call("report", run.path, "-o", tmp_path / "r.html").code == 0
    watched = call("watch", "--once", run.path)
    assert "nats per token" in watched.out


def test_a_run_on_text_is_attacked_and_what_compares_classes_refuses_it(
    tmp_path: Path, text: Path, call: Call
) -> None:
    run, _ = train(call, tmp_path / "run", "--data", text)
    done = call("attack", run.path, "--suffix-tokens", 3)
    assert done.code == 0, done.err
    report = read_json(run.attack, AttackReport)
    assert [one.attack for one in report.membership] == ["loss", "zlib", "min-k", "min-k++"]
    audited = call("audit", run.path)
    assert audited.code == 0
    by_loss = read_json(run.audit, AuditReport).membership[0]
    assert report.membership[0].auc == pytest.approx(by_loss.auc, abs=1e-3)
    assert "verbatim extraction" in done.out
    done = call("conformance", run.path)
    assert done.code == 2
    assert "DPA101" in done.err
    assert "classes" in done.err


def test_sequences_with_a_token_of_their_own_give_a_certified_bound(
    tmp_path: Path, text: Path, call: Call
) -> None:
    run, _ = train(call, tmp_path / "run", "--data", text, "--input-canaries", 12)
    weights = load_file(run.model)
    assert len(weights["head.weight"]) == 256 + 12
    with np.load(run.secret_canaries) as secret, np.load(run.canaries) as trained:
        included, tokens = secret["inputs_included"], secret["input_features"]
        assert tokens.max(axis=1).tolist() == list(range(256, 268))
        assert np.array_equal(trained["input_features"], tokens[included])
    assert call("audit", run.path).code == 0
    report = read_json(run.audit, AuditReport)
    (bound,) = report.bounds
    assert (bound.kind.value, bound.trials, bound.guesses) == ("certified", 12, 12)
    assert (RunCanaries.read(run).inputs_included == included).all()
    policy = tmp_path / "policy.toml"
    policy.write_text("[claim]\nmax_epsilon = 30\ndelta = 1e-5\n")
    assert call("gate", run.path, "--policy", policy).code == 0
    assert call("attack", run.path, "--attack", "loss").code in {0, 3}
    assert call("watch", "--once", run.path).code == 0


@pytest.mark.parametrize(
    ("options", "text_of_error"),
    [
        (("--input-canaries", 300), "half of the held-out records"),
        (("--model", "cnn"), "gpt2-tiny"),
        (("--views", 2), "views"),
        (("--label", "y"), "label"),
    ],
)
def test_settings_of_classifiers_are_refused_for_text(
    tmp_path: Path, text: Path, call: Call, options: tuple[object, ...], text_of_error: str
) -> None:
    done = call("train", *SETTINGS, "--out", tmp_path / "run", "--data", text, *options)
    assert done.code == 2
    assert text_of_error in done.err
    assert not (tmp_path / "run").exists()


def test_a_federation_refuses_text(tmp_path: Path, text: Path, call: Call) -> None:
    done = call("train", "--federated", "fedavg", "--data", text, "--target-epsilon", 4,
                "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 2
    assert "classes" in done.err


@pytest.mark.parametrize("option", [("--lora", 2), ("--freeze-body",), ("--views", 2)])
def test_a_federation_refuses_to_train_a_part(
    tmp_path: Path, call: Call, option: tuple[object, ...]
) -> None:
    done = call("train", "--federated", "fedavg", "--target-epsilon", 4, *option,
                "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 2
    assert "left out in a federation" in done.err


@pytest.mark.parametrize("model", ["gpt2-tiny", "scattering"])
def test_a_model_of_text_or_images_is_refused_for_other_records(
    tmp_path: Path, call: Call, model: str
) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "1,0\n2,1\n" * 30)
    done = call("train", "--data", tmp_path / "t.csv", "--model", model, "--noise-multiplier", 1,
                "--out", tmp_path / "run")  # fmt: skip
    assert done.code == 2
    assert "model" in done.err


# Adapters beside pre-trained weights.


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    settings = transformers.GPT2Config(
        vocab_size=256, n_positions=8, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(settings).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def released_model(run: RunDirectory) -> torch.nn.Module:
    config = run.read_config()
    assert isinstance(config, RunConfig)
    return load_trained_model(run, prepare_run(config).split)


def test_adapters_alone_are_released_and_the_ledger_names_the_base(
    tmp_path: Path, text: Path, pretrained: Path, call: Call
) -> None:
    run, _ = train(call, tmp_path / "run", "--data", text, "--model", pretrained, "--lora", 2)
    released = load_file(run.model)
    assert released
    assert all(name.endswith((".down.weight", ".up.weight")) for name in released)
    header = json.loads(run.ledger.read_text().splitlines()[0])["entry"]
    assert any(one.startswith("pre-trained weights of base") for one in header["assumed_public"])
    model = dict(released_model(run).named_parameters())
    base = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(model[name], tensor) for name, tensor in released.items())
    assert any(bool(tensor.any()) for name, tensor in released.items() if ".up." in name)
    layer = "transformer.h.0.mlp.c_fc"
    assert torch.equal(model[f"{layer}.base.weight"], base[f"{layer}.weight"])


def test_an_altered_base_is_an_integrity_error(
    tmp_path: Path, text: Path, pretrained: Path, call: Call
) -> None:
    run, _ = train(call, tmp_path / "run", "--data", text, "--model", pretrained, "--freeze-body")
    model = transformers.GPT2LMHeadModel.from_pretrained(pretrained)
    with torch.no_grad():
        model.transformer.ln_f.weight += 1
    shutil.rmtree(pretrained)
    model.save_pretrained(pretrained)
    done = call("audit", run.path)
    assert done.code == 4
    assert "base" in done.err


def test_adapters_beside_a_drawn_base_are_released_with_it(
    tmp_path: Path, text: Path, call: Call
) -> None:
    run, out = train(call, tmp_path / "run", "--data", text, "--lora", 2)
    assert "positions.weight" in load_file(run.model)
    split = prepare_run(run.read_config()).split
    assert str(evaluate_heldout(run, split)) in out


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.5), ("adam", 0.003)])
def test_text_has_learning_rates_of_its_own(text: Path, optimizer: str, rate: float) -> None:
    for model in ("auto", "gpt2-tiny"):
        settings = ModelSettings(model, optimizer)
        prepared = prepare_run(
            RunConfig(
                DataSettings(str(text), sequence_length=8),
                PrivacySettings(0.1, 1.0, 1.0, 1, 1e-5),
                settings,
                CanarySettings(),
                SpeedSettings(),
            )
        )
        (group,) = optimizer_from_settings(prepared.model, prepared).param_groups
        assert group["lr"] == rate
