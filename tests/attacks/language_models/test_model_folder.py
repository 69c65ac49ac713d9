"""A model folder: signals equal a direct computation; code, pickles and missing weights fail."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_language_models import save_tiny_gpt2

from dpaudit.attacks.language_models.model_folder import open_language_model
from dpaudit.attacks.language_models.text_encoders import ByteEncoder, TokenizerEncoder
from dpaudit.attacks.language_models.token_signals import SamplingScheme, zlib_bytes
from dpaudit.attacks.language_models.torch_signals import model_signals, sample_sequences
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, InvalidData, UnreadableFile

TEXTS = ("to be or not", "that", "is the question: whether 'tis")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def changed(tmp_path: Path, folder: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


def test_signals_equal_those_of_each_text_by_itself(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    found = open_language_model(folder, tokenizer="bytes").signals(TEXTS)
    for text, signals in zip(TEXTS, found, strict=True):
        tokens = torch.tensor([list(text.encode())])
        with torch.no_grad():
            rows = torch.log_softmax(model(tokens).logits[0, :-1], dim=-1)
        own = rows[torch.arange(len(text) - 1), tokens[0, 1:]].numpy()
        assert signals.log_probabilities == pytest.approx(own, abs=1e-5)
        means = (rows.exp() * rows).sum(dim=1).numpy()
        assert signals.means == pytest.approx(means, abs=1e-5)
        assert signals.compressed_bytes == zlib_bytes(text)
        assert signals.greedy is not None
        assert signals.greedy.tolist() == (rows.argmax(dim=1) == tokens[0, 1:]).tolist()


def test_a_sampling_scheme_renormalizes_the_kept_tokens(folder: Path) -> None:
    model = open_language_model(folder, tokenizer="bytes")
    scheme = SamplingScheme(0.5, 100)
    signals = model.signals(("to be",), scheme=scheme)[0]
    with torch.no_grad():
        logits = model.logits(torch.tensor([list(b"to be")]))[0, :-1].double()
    for row, token, drawn in zip(logits, b"o be", signals.drawn.tolist(), strict=True):  # type: ignore[union-attr]
        kept = row.sort(descending=True).values[:100] / 0.5
        inside = bool((row > row[token]).sum() < 100)
        expected = float(row[token] / 0.5 - torch.logsumexp(kept, 0)) if inside else -np.inf
        assert drawn == pytest.approx(expected, abs=1e-9)


def test_texts_beyond_the_positions_are_refused_or_cut(folder: Path) -> None:
    model = open_language_model(folder, tokenizer="bytes")
    with pytest.raises(InvalidData, match="--sequence-length"):
        model.signals(("a" * 33,))
    cut = model.signals(("abcd" * 10,), length=8)[0]
    assert len(cut) == 7
    assert cut.compressed_bytes == zlib_bytes("abcdabcd")
    with pytest.raises(InvalidData, match="two tokens"):
        model.signals(("a",))


def test_sampled_tokens_follow_the_scheme() -> None:
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return torch.log(torch.tensor([0.6, 0.3, 0.1])).expand(*tokens.shape, 3)

    prompts = [np.array([2, 2])] * 1000 + [np.array([1])] * 1000
    drawn = sample_sequences(logits, prompts, length=1, scheme=SamplingScheme(1.0, 2),
                             generator=torch.Generator().manual_seed(0))  # fmt: skip
    assert [len(one) for one in drawn[::1000]] == [3, 2]
    counts = Counter(int(one[-1]) for one in drawn)
    assert counts[2] == 0
    assert abs(counts[0] / 2000 - 2 / 3) < 0.06  # 5.7 standard deviations


def test_pickled_weights_and_code_are_refused(changed: Path) -> None:
    config = json.loads((changed / "config.json").read_text())
    for key, value in (("auto_map", {"AutoModel": "m.M"}), ("quantization_config", {"a": 1}),
                       ("attn_implementation", "kernels-community/x")):  # fmt: skip
        (changed / "config.json").write_text(json.dumps(config | {"text_config": {key: value}}))
        with pytest.raises(InvalidArgument, match=key):
            open_language_model(changed, tokenizer="bytes")
    (changed / "config.json").write_text(json.dumps(config))
    (changed / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="merged"):
        open_language_model(changed, tokenizer="bytes")
    (changed / "adapter_config.json").unlink()
    torch.save(load_file(changed / "model.safetensors"), changed / "pytorch_model.bin")
    (changed / "model.safetensors").unlink()
    with pytest.raises(UnreadableFile, match="pickled"):
        open_language_model(changed, tokenizer="bytes")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "layers", "vocabulary"])
def test_weights_that_are_not_those_of_the_model_are_refused(changed: Path, change: str) -> None:
    path, config_path = changed / "model.safetensors", changed / "config.json"
    weights, config = load_file(path), json.loads(config_path.read_text())
    match change:
        case "missing":
            weights.pop("transformer.h.0.mlp.c_fc.weight")
        case "unexpected":
            weights["transformer.h.0.lora_A"] = torch.zeros(2)
        case "shape":
            weights["transformer.ln_f.bias"] = torch.zeros(9)
        case "layers":
            config["n_layer"] = 10**9
        case _:
            config["vocab_size"] = 10**11
    save_file(weights, path, metadata={"format": "pt"})
    config_path.write_text(json.dumps(config))
    with pytest.raises(UnreadableFile):
        open_language_model(changed, tokenizer="bytes")


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x05\x00\x00\x00\x00\x00\x00\x00[1,2]"])
def test_a_broken_weight_file_is_refused(changed: Path, content: bytes) -> None:
    (changed / "model.safetensors").write_bytes(content)
    with pytest.raises(UnreadableFile):
        open_language_model(changed, tokenizer="bytes")


def test_a_folder_without_a_tokenizer_needs_one(folder: Path) -> None:
    with pytest.raises(InvalidData, match="bytes"):
        open_language_model(folder)


def test_a_tokenizer_file_is_read_with_its_special_tokens(tmp_path: Path) -> None:
    words = {"<s>": 0, "to": 1, "be": 2, "or": 3, "[UNK]": 4}
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": None,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
    }))  # fmt: skip
    encoder = TokenizerEncoder(tmp_path)
    assert encoder.encode("to be or", None).tokens == (0, 1, 2, 3)
    assert encoder.encode("to be or", 3).text == "to be"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnreadableFile):
        TokenizerEncoder(tmp_path)


def test_bytes_that_were_cut_inside_a_character_are_replaced() -> None:
    assert ByteEncoder().encode("aé", 2).text == "a\ufffd"
    assert ByteEncoder().decode([97, 300]) == "a\ufffd"


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    model = open_language_model(folder, tokenizer="bytes")

    class Larger(ByteEncoder):
        def encode(self, text: str, length: int | None):  # type: ignore[no-untyped-def]
            found = super().encode(text, length)
            return type(found)((*found.tokens, 999), found.text)

    other = type(model)(model.model, Larger(), model.vocabulary, model.longest)
    with pytest.raises(DpauditError, match="tokenizer is not that of the model"):
        other.signals(("to be",))


def test_batches_of_any_size_give_the_same_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    sequences = [np.random.default_rng(i).integers(0, 9, 2 + i % 5) for i in range(12)]
    together = model_signals(lambda tokens: table[tokens], sequences)
    monkeypatch.setattr("dpaudit.attacks.language_models.torch_signals.TOKENS_AT_ONCE", 1)
    monkeypatch.setattr("dpaudit.attacks.language_models.torch_signals.POSITIONS_AT_ONCE", 2)
    for one, other in zip(together, model_signals(lambda t: table[t], sequences), strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-12)
        assert one.means == pytest.approx(other.means, abs=1e-12)


def test_quadratic_buffers_are_refused_before_they_use_memory(tmp_path: Path) -> None:
    config = transformers.GPTNeoConfig(
        vocab_size=8, hidden_size=2, num_layers=1, num_heads=1, intermediate_size=2,
        attention_types=[[["global"], 1]], max_position_embeddings=8,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    assert open_language_model(tmp_path, tokenizer="bytes").longest == 8
    # One mask of 20,000 x 20,000 positions has 400 MB; the files have under 0.2 MB.
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.wpe.weight"] = torch.zeros(20_000, 2)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _edit(tmp_path / "config.json", max_position_embeddings=20_000)
    with pytest.raises(UnreadableFile, match="bytes of buffers"):
        open_language_model(tmp_path, tokenizer="bytes")


def test_a_number_of_positions_beyond_any_model_is_refused(changed: Path) -> None:
    _edit(changed / "config.json", n_positions=1 << 30)
    with pytest.raises(UnreadableFile, match="max_position_embeddings 1073741824, at most"):
        open_language_model(changed, tokenizer="bytes")


@pytest.mark.parametrize("named", ["w.bin", "../outside.safetensors", "link.safetensors", 3])
def test_an_index_names_only_checked_files_of_the_folder(changed: Path, named: object) -> None:
    weights = load_file(changed / "model.safetensors")
    (changed / "model.safetensors").rename(changed / "x.safetensors")
    index = changed / "model.safetensors.index.json"
    for name, fits in (("x.safetensors", True), (named, False)):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(weights, name)}))
        if fits:
            open_language_model(changed, tokenizer="bytes")
            continue
        with pytest.raises(UnreadableFile, match="an index of"):
            open_language_model(changed, tokenizer="bytes")


def test_a_link_to_weights_out_of_the_folder_is_refused(changed: Path, folder: Path) -> None:
    (changed / "model.safetensors").unlink()
    (changed / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(UnreadableFile, match="a link out of it"):
        open_language_model(changed, tokenizer="bytes")


def test_other_weights_of_a_configuration_are_refused(changed: Path) -> None:
    _edit(changed / "config.json", transformers_weights="other.safetensors.index.json")
    with pytest.raises(InvalidArgument, match="transformers_weights"):
        open_language_model(changed, tokenizer="bytes")


def test_files_that_are_not_loaded_do_not_count_as_stored(changed: Path) -> None:
    save_file({"unused": torch.zeros(600, 8)}, changed / "unused.safetensors")
    _edit(changed / "config.json", n_positions=600)
    with pytest.raises(UnreadableFile, match="parameters declared"):
        open_language_model(changed, tokenizer="bytes")


def _edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
