"""Adapters and frozen bodies: what is trained, what stays, and what is released."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from dpaudit.trainer.models.adapters import (
    LowRankAdapter,
    add_adapters,
    fill_trained_part,
    freeze_body,
    last_layer,
    trained_names,
)
from dpaudit.trainer.models.language_models import make_language_model
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import ModelSettings


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))


def test_adapters_change_nothing_at_first_and_alone_are_trained() -> None:
    model, batch = network(), torch.randn(6, 5)
    before = model(batch)
    add_adapters(model, 2)
    assert torch.equal(model(batch), before)
    assert trained_names(model) == {f"{n}.{part}.weight" for n in (0, 2) for part in ("down", "up")}
    assert isinstance(model[3], nn.Linear)


def test_an_adapter_adds_a_product_of_rank_r() -> None:
    base = nn.Linear(5, 4)
    adapter = LowRankAdapter(base, 5, 4, 2)
    nn.init.normal_(adapter.up.weight)
    added = adapter.up.weight @ adapter.down.weight
    assert torch.linalg.matrix_rank(added) == 2
    x = torch.randn(3, 7, 5)
    expected = nn.functional.linear(x, base.weight + added, base.bias)
    assert torch.allclose(adapter(x), expected, atol=1e-5)


def test_a_tied_layer_has_one_adapter() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2))
    add_adapters(model, 1)
    assert model[0] is model[2]
    assert len(trained_names(model)) == 2


def test_the_transposed_layers_of_gpt2_are_adapted() -> None:
    settings = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(settings).eval()
    tokens = torch.randint(11, (2, 8))
    before = model(tokens).logits
    add_adapters(model, 2)
    assert torch.equal(model(tokens).logits, before)
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert trained_names(model) == {
        f"transformer.h.0.{layer}.{part}.weight" for layer in layers for part in ("down", "up")
    }


def test_a_frozen_body_leaves_the_last_layer() -> None:
    model = network()
    freeze_body(model)
    assert trained_names(model) == {"3.weight", "3.bias"}
    language = make_language_model("gpt2-tiny", 4, 9, 0)
    assert last_layer(language) is language.head
    freeze_body(language)
    assert trained_names(language) == {"tokens.weight"}  # the head has the tokens' weights


def test_a_model_without_a_layer_to_adapt_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="lora"):
        add_adapters(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 1)
    with pytest.raises(InvalidArgument, match="freeze_body"):
        freeze_body(nn.Conv2d(1, 1, 1))


def test_adapters_and_a_frozen_body_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument, match="freeze_body"):
        ModelSettings(lora_rank=2, freeze_body=True)
    with pytest.raises(InvalidArgument, match="lora"):
        ModelSettings(lora_rank=0)


def test_a_release_of_the_trained_part_fits_one_model() -> None:
    model = network()
    freeze_body(model)
    release = {"3.weight": torch.ones(3, 4), "3.bias": torch.zeros(3)}
    fill_trained_part(model, release)
    assert torch.equal(model[3].weight, torch.ones(3, 4))
    more, short = torch.ones(4, 5), torch.ones(2)
    for wrong in ({}, {**release, "0.weight": more}, {**release, "3.bias": short}):
        with pytest.raises(ValueError, match=r"trained parameters|shape"):
            fill_trained_part(model, wrong)
