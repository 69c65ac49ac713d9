"""Language models: losses per record, and pre-trained models from safe local files alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from dpaudit.trainer.engine import Engine, Flat
from dpaudit.trainer.models.language_models import (
    TinyGpt2,
    evaluate_language_model,
    make_language_model,
    mean_token_losses,
    pretrained_folder,
)
from dpaudit.trainer.token_data import TokenRecords
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, UnreadableFile
from tests.trainer.engine.oracle import per_record, relative_gap

LENGTH, VOCABULARY = 7, 11


def some_records(records: int) -> TokenRecords:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (records, LENGTH))
    return TokenRecords(tokens, rng.integers(0, LENGTH + 1, records))


def batch_of(records: TokenRecords) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(records.tokens), torch.from_numpy(records.lengths)


def by_hand(model: nn.Module, records: TokenRecords) -> list[list[float]]:
    """Return the loss of every predicted token of each record, one record at a time."""
    found = []
    for tokens, length in zip(records.tokens, records.lengths, strict=True):
        row = torch.from_numpy(tokens[:length])[None]
        logits = model(row).detach() if length else None
        losses = [float(-logits[0, t - 1].log_softmax(0)[row[0, t]]) for t in range(1, int(length))]
        found.append(losses)
    return found


def tiny(seed: int = 0) -> nn.Module:
    return make_language_model("gpt2-tiny", LENGTH, VOCABULARY, seed)


def test_a_record_s_loss_is_the_mean_over_the_tokens_it_predicts() -> None:
    model, records = tiny(), some_records(12)
    expected = [sum(one) / len(one) if one else 0.0 for one in by_hand(model, records)]
    found = mean_token_losses(model, batch_of(records))
    assert torch.allclose(found, torch.tensor(expected), atol=1e-5)


def test_perplexity_is_over_all_held_out_tokens() -> None:
    model, records = tiny(), some_records(80)
    each = [loss for one in by_hand(model, records) for loss in one]
    found = evaluate_language_model(model, records)
    assert found.loss == pytest.approx(sum(each) / len(each), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert f"{found.perplexity:.4g}" in str(found)


def test_no_predicted_token_is_no_figure() -> None:
    empty = TokenRecords(np.zeros((3, LENGTH), np.int64), np.ones(3, np.int64))
    found = evaluate_language_model(tiny(), empty)
    assert math.isnan(found.loss)
    assert found.confidences.tolist() == [0.0] * 3


def test_the_built_in_model_gives_the_sum_of_the_loop_without_slow_parameters() -> None:
    model, batch = tiny(), batch_of(some_records(9))
    engine = Engine(model, mean_token_losses)
    found = engine.clipped_sum(batch, Flat(0.3)).sums
    expected = per_record(model, mean_token_losses, batch).clipped_sum(Flat(0.3))
    assert relative_gap(found, expected) < 1e-4
    assert engine.record_by_record == ()


def test_no_token_sees_a_later_one() -> None:
    model = tiny()
    tokens = torch.from_numpy(some_records(2).tokens)
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % VOCABULARY
    one, other = model(tokens), model(changed)
    assert torch.equal(one[:, :4], other[:, :4])
    assert not torch.allclose(one[:, 4:], other[:, 4:])


def test_the_seed_alone_determines_the_weights() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = tiny(1), tiny(1), tiny(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


# Pre-trained models.


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "small-gpt2"
    settings = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2
    )
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(settings).save_pretrained(folder)
    return folder


def test_a_local_folder_gives_its_model(pretrained: Path) -> None:
    model = make_language_model(str(pretrained), LENGTH, VOCABULARY, seed=3)
    expected = transformers.GPT2LMHeadModel.from_pretrained(pretrained).eval()
    tokens = torch.from_numpy(some_records(3).tokens)
    assert torch.equal(model.eval()(tokens).logits, expected(tokens).logits)
    folder = pretrained_folder(str(pretrained))
    assert folder is not None
    assert folder.description.startswith("pre-trained weights of small-gpt2 (SHA-256")


def test_other_weights_have_another_description(pretrained: Path, tmp_path: Path) -> None:
    other = tmp_path / "small-gpt2"
    model = transformers.GPT2LMHeadModel.from_pretrained(pretrained)
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(other)
    one, two = pretrained_folder(str(pretrained)), pretrained_folder(str(other))
    assert one is not None
    assert two is not None
    assert one.description != two.description


def copied(pretrained: Path, folder: Path, **settings: object) -> Path:
    folder.mkdir()
    content = json.loads((pretrained / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **settings}))
    return folder


def test_pickled_weights_are_refused(pretrained: Path, tmp_path: Path) -> None:
    folder = copied(pretrained, tmp_path / "pickled")
    model = transformers.GPT2LMHeadModel.from_pretrained(pretrained)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UnreadableFile, match="safetensors"):
        make_language_model(str(folder), LENGTH, VOCABULARY, 0)


def test_code_of_a_folder_never_runs(pretrained: Path, tmp_path: Path) -> None:
    named = {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}, "model_type": "evil"}
    folder = copied(pretrained, tmp_path / "evil", **named)
    (folder / "model.safetensors").write_bytes((pretrained / "model.safetensors").read_bytes())
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    with pytest.raises(InvalidArgument, match="auto_map"):
        make_language_model(str(folder), LENGTH, VOCABULARY, 0)
    assert not ran.exists()


def test_a_broken_folder_is_refused(pretrained: Path, tmp_path: Path) -> None:
    folder = copied(pretrained, tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnreadableFile, match="causal language model"):
        make_language_model(str(folder), LENGTH, VOCABULARY, 0)
    (folder / "config.json").write_text("[")
    with pytest.raises(UnreadableFile, match="JSON"):
        make_language_model(str(folder), LENGTH, VOCABULARY, 0)


def test_a_model_that_does_not_fit_the_tokens_is_refused(pretrained: Path) -> None:
    with pytest.raises(DpauditError, match="17"):  # more tokens than positions
        make_language_model(str(pretrained), 17, VOCABULARY, 0)
    with pytest.raises(InvalidArgument, match="logits"):
        make_language_model(str(pretrained), LENGTH, VOCABULARY + 1, 0)
    with pytest.raises(InvalidArgument, match="gpt2-tiny"):
        make_language_model("cnn", LENGTH, VOCABULARY, 0)
    with pytest.raises(InvalidArgument, match=r"did you mean gpt2-tiny\?"):
        make_language_model("gpt2-tny", LENGTH, VOCABULARY, 0)


def test_a_factory_gets_length_and_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_language_model.py").write_text(
        "from dpaudit.trainer.models.language_models import TinyGpt2\n"
        "def make(shape, classes):\n"
        "    return TinyGpt2(*shape, classes)\n"
        "def other(shape):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    model = make_language_model("own_language_model:make", LENGTH, VOCABULARY, 0)
    assert isinstance(model, TinyGpt2)
    assert model(torch.zeros(1, LENGTH, dtype=torch.int64)).shape == (1, LENGTH, VOCABULARY)
    with pytest.raises(InvalidArgument, match="signature"):
        make_language_model("own_language_model:other", LENGTH, VOCABULARY, 0)
