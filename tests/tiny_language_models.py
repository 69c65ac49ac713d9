"""Folders with a tiny GPT-2, for tests of language models."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

VOCABULARY = 260


def save_tiny_gpt2(folder: Path, *, positions: int = 32, seed: int = 0) -> Path:
    """Save a GPT-2 with one layer of width 8 and random weights."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=positions, n_embd=8, n_layer=1, n_head=2,
        bos_token_id=None, eos_token_id=None, initializer_range=0.5,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
