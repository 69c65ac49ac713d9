"""Models of text of transformers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dpaudit.trainer.engine import PerSampleLoss
from public_models.subject import (
    CLASSES,
    HEADS,
    LAYERS,
    LENGTH,
    VOCABULARY,
    WIDTH,
    Subject,
    from_transformers,
    next_tokens,
    text_classes,
    token_batch,
    token_losses,
)

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
    "max_position_embeddings": 2 * LENGTH,
}
ENCODER = SHAPE | {
    "num_labels": CLASSES,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DECODER = SHAPE | {"use_cache": False}
ROTARY = DECODER | {"num_key_value_heads": HEADS // 2}


def _subject(name: str, loss: PerSampleLoss, settings: dict[str, Any], **more: Any) -> Subject:
    return Subject(
        "transformers", partial(from_transformers, name, **settings), token_batch, loss, **more
    )


def _encoder(name: str, **settings: Any) -> Subject:
    return _subject(f"{name} ForSequenceClassification", text_classes, ENCODER | settings)


def _decoder(name: str, **settings: Any) -> Subject:
    return _subject(f"{name} ForCausalLM", next_tokens, DECODER | settings)


def _rotary(name: str, **settings: Any) -> Subject:
    return _subject(f"{name} ForCausalLM", next_tokens, ROTARY | settings)


def _pairs_of_texts(records: int) -> tuple[Tensor, Tensor]:
    """Return sources and targets of tokens."""
    return tuple(torch.randint(4, VOCABULARY, (records, LENGTH)) for _ in range(2))  # type: ignore[return-value]


def _targets(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's mean loss of predicting its target's next tokens."""
    source, target = batch
    found = model(input_ids=source, decoder_input_ids=target[:, :-1], use_cache=False)
    return token_losses(found.logits, target[:, 1:])


def _sequences(name: str, **settings: Any) -> Subject:
    return Subject(
        "transformers", partial(from_transformers, name, **settings), _pairs_of_texts, _targets
    )


TEXT_MODELS = {
    "BERT (eager)": _encoder("Bert"),
    "BERT (sdpa)": _encoder("Bert", attn_implementation="sdpa"),
    "DistilBERT": _subject(
        "DistilBert ForSequenceClassification",
        text_classes,
        {
            "vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS,
            "hidden_dim": 4 * WIDTH, "max_position_embeddings": 2 * LENGTH, "dropout": 0.0,
            "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "num_labels": CLASSES,
        },
    ),
    "RoBERTa": _encoder("Roberta"),
    "RoBERTa (dropout)": _subject(
        "Roberta ForSequenceClassification",
        text_classes,
        ENCODER | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        draws=True,
    ),
    "DeBERTa-v2": _encoder(
        "DebertaV2", relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"], share_att_key=True, pooler_dropout=0.0,
        pooler_hidden_size=WIDTH,
    ),
    "Electra": _encoder("Electra", embedding_size=WIDTH // 2, summary_last_dropout=0.0),
    "ALBERT": _encoder("Albert", embedding_size=WIDTH // 2, classifier_dropout_prob=0.0),
    "ModernBERT": _subject(
        "ModernBert ForSequenceClassification",
        text_classes,
        SHAPE | {"num_labels": CLASSES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                 "cls_token_id": 1, "sep_token_id": 2, "reference_compile": False},
    ),
    "GPT-2": _subject(
        "GPT2 LMHeadModel",
        next_tokens,
        {
            "vocab_size": VOCABULARY, "n_positions": 2 * LENGTH, "n_embd": WIDTH,
            "n_layer": LAYERS, "n_head": HEADS, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
            "attn_pdrop": 0.0, "use_cache": False,
        },
    ),
    "GPT-NeoX": _decoder("GPTNeoX", attention_dropout=0.0, hidden_dropout=0.0),
    "OPT": _subject(
        "OPT ForCausalLM",
        next_tokens,
        {
            "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
            "ffn_dim": 4 * WIDTH, "num_attention_heads": HEADS, "dropout": 0.0,
            "max_position_embeddings": 2 * LENGTH, "word_embed_proj_dim": WIDTH,
            "use_cache": False,
        },
    ),
    "Bloom": _subject(
        "Bloom ForCausalLM",
        next_tokens,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
         "hidden_dropout": 0.0, "attention_dropout": 0.0, "use_cache": False},
    ),
    "Llama": _rotary("Llama"),
    "Qwen2": _rotary("Qwen2"),
    "Qwen3": _rotary("Qwen3", head_dim=WIDTH // HEADS),
    "Mistral": _rotary("Mistral"),
    "Gemma2": _rotary("Gemma2", head_dim=WIDTH // HEADS),
    "Phi3": _rotary("Phi3", pad_token_id=0),
    "Mixtral": _rotary("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "Mamba": _subject(
        "Mamba ForCausalLM",
        next_tokens,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "state_size": 8, "use_cache": False},
    ),
    "Mamba2": _subject(
        "Mamba2 ForCausalLM",
        next_tokens,
        {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "state_size": 16, "num_heads": 8, "head_dim": 32, "n_groups": 2, "expand": 2,
         "chunk_size": 16, "use_cache": False},
    ),
    "T5": _sequences(
        "T5 ForConditionalGeneration", vocab_size=VOCABULARY, d_model=WIDTH, d_kv=WIDTH // HEADS,
        d_ff=4 * WIDTH, num_layers=LAYERS, num_heads=HEADS, dropout_rate=0.0, use_cache=False,
    ),
    "BART": _sequences(
        "Bart ForConditionalGeneration", vocab_size=VOCABULARY, d_model=WIDTH,
        encoder_layers=LAYERS, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=4 * WIDTH, decoder_ffn_dim=4 * WIDTH,
        dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, use_cache=False,
        max_position_embeddings=2 * LENGTH,
    ),
}  # fmt: skip
