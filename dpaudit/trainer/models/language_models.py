"""Causal language models: a small built-in one, and pre-trained ones from a local folder.

A pre-trained model is read from ``config.json`` and ``*.safetensors``. Pickled weights, and code
in the folder, are refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.files.regular_files import DOCUMENT_LIMIT, InputFile, read_bytes
from dpaudit.files.user_code import call_factory, call_user_function, import_object
from dpaudit.runs.file_io import sha256
from dpaudit.trainer.token_data import TokenRecords
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    MissingExtra,
    UnreadableFile,
    did_you_mean,
)

# The built-in model.

TINY_GPT2 = "gpt2-tiny"
LAYERS, WIDTH, HEADS = 2, 128, 4
INITIAL_DEVIATION = 0.02  # of initial weights, as in GPT-2


class _Block(nn.Module):
    """Causal attention and a two-layer network, each on a normalized input and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the states after this block, shape ``(records, length, width)``."""
        records, length, width = x.shape
        shape = (records, length, 3, self.heads, width // self.heads)
        query, key, value = self.attention(self.before_attention(x)).view(shape).unbind(2)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.joined(mixed.transpose(1, 2).reshape(records, length, width))
        out: Tensor = x + self.network(self.before_network(x))
        return out


class TinyGpt2(nn.Module):
    """GPT-2 with few and narrow layers, without dropout.

    Args:
        length: Largest number of tokens of a record.
        vocabulary: Number of different tokens.

    References:
        Radford et al. (2019), Language Models are Unsupervised Multitask Learners.
    """

    def __init__(self, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH)
        self.positions = nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*(_Block(WIDTH, HEADS) for _ in range(LAYERS)))
        self.last = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        self.head.weight = self.tokens.weight

    def get_output_embeddings(self) -> nn.Module:
        """Return the layer that makes the logits, whose weights are those of the tokens."""
        return self.head

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token at every position.

        Args:
            tokens: Shape ``(records, length)``, int64.

        Returns:
            Shape ``(records, length, vocabulary)``.
        """
        # Positions with a dimension of records: each record has its own rows.
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        states = self.blocks(self.tokens(tokens) + self.positions(positions))
        logits: Tensor = self.head(self.last(states))
        return logits


# Pre-trained models in a local folder.

CONFIG, WEIGHTS = "config.json", "*.safetensors"


@dataclass(frozen=True)
class PretrainedFolder:
    """A folder with a model of the transformers library.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def description(self) -> str:
        """The folder's name and a digest of its weights, for the ledger."""
        digests = [f"{file.name} {sha256(file)}" for file in self._weights()]
        whole = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return f"pre-trained weights of {self.path.name} (SHA-256 of digests {whole})"

    def _weights(self) -> list[Path]:
        """Return the files of weights; refuse a folder without any."""
        found = sorted(self.path.glob(WEIGHTS))
        if not found:
            allowed = "a folder with safetensors weights: pickled weights can run code"
            raise UnreadableFile("model", str(self.path), allowed)
        return found

    def load(self) -> nn.Module:
        """Return the model with its weights, on the CPU.

        Returns:
            A causal language model.

        Raises:
            UnreadableFile: If the folder lacks safetensors weights or a valid configuration.
            InvalidArgument: If its configuration names code to run.
            MissingExtra: If the transformers library is not installed.
        """
        try:
            from transformers import AutoModelForCausalLM  # noqa: PLC0415  an extra
        except ImportError as error:
            raise MissingExtra("transformers", "text") from error
        self._weights()
        self._require_no_code()
        try:
            with _without_progress_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(
                    str(self.path),
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                )
        except Exception as error:  # the library raises errors of many kinds
            why = f"a causal language model ({type(error).__name__}: {error})"
            raise UnreadableFile("model", str(self.path), why) from error
        model.config.use_cache = False  # nothing of one record is kept for another
        found: nn.Module = model.float()
        return found

    def _require_no_code(self) -> None:
        """Refuse a configuration that names modules of the folder to import."""
        file = self.path / CONFIG
        try:
            settings = json.loads(read_bytes(InputFile(file, "model", DOCUMENT_LIMIT)))
        except (ValueError, RecursionError) as error:
            raise UnreadableFile("model", str(file), f"JSON ({error})") from error
        if isinstance(settings, dict) and "auto_map" not in settings:
            return
        raise InvalidArgument("model", str(file), "a configuration that names no code (auto_map)")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Keep the transformers library from printing progress bars while the block runs."""
    from transformers.utils import logging  # noqa: PLC0415  an extra

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def pretrained_folder(name: str) -> PretrainedFolder | None:
    """Return the folder that a model's name is the path of.

    Args:
        name: The name in the settings.

    Returns:
        The folder; None if there is none with a ``config.json``.
    """
    path = Path(name)
    return PretrainedFolder(path) if (path / CONFIG).is_file() else None


ALLOWED_LANGUAGE_MODELS = (
    f"auto, {TINY_GPT2}, a local folder with {CONFIG} and safetensors weights, or "
    "package.module:factory for token data"
)


def make_language_model(name: str, length: int, vocabulary: int, seed: int) -> nn.Module:
    """Return the named model for sequences of tokens, initialized from ``seed``.

    A user's factory is called with the shape of a record, ``(length,)``, and the size of the
    vocabulary, or without arguments if it takes none.

    Args:
        name: ``auto``, ``gpt2-tiny``, a local folder, or ``package.module:factory``.
        length: Number of tokens of a record.
        vocabulary: Number of different tokens.
        seed: Seed of torch's generator while the model is made.

    Returns:
        The model, whose output are logits of shape ``(records, length, vocabulary or more)``.

    Raises:
        InvalidArgument: If there is no such model, or its output has another shape.
        UserCodeError: If the factory, or its model, raised an error.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _named_model(name, length, vocabulary)
    if not isinstance(model, nn.Module):
        raise InvalidArgument("model", name, "a factory that returns a torch.nn.Module")
    _require_logits(name, model, length, vocabulary)
    return model


def _named_model(name: str, length: int, vocabulary: int) -> Any:
    """Return what the name stands for; a user's factory may return anything."""
    if name in {"auto", TINY_GPT2}:
        return TinyGpt2(length, vocabulary)
    folder = pretrained_folder(name)
    if folder is not None:
        return folder.load()
    allowed = ALLOWED_LANGUAGE_MODELS + did_you_mean(name, ("auto", TINY_GPT2))
    factory = import_object("model", name, allowed)
    return call_factory("model", name, factory, (length,), vocabulary)


def _require_logits(name: str, model: nn.Module, length: int, vocabulary: int) -> None:
    """Refuse a model that does not return logits for two records of the data's length."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    tokens = torch.zeros(2, length, dtype=torch.int64)
    with torch.no_grad():
        what = f"model {name}, of two records of {length} tokens,"
        found = call_user_function(what, model_logits, model, tokens)
    for module in training:
        module.training = True
    shape = tuple(found.shape) if isinstance(found, Tensor) else ()
    if shape[:-1] != (2, length) or shape[-1] < vocabulary:
        allowed = f"a model with logits of shape (2, {length}, {vocabulary}) for two records"
        raise InvalidArgument("model", f"{name}, with {shape or type(found).__name__}", allowed)


def model_logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of a model that returns them alone, or as ``logits`` of its output.

    Args:
        model: The model.
        tokens: Shape ``(records, length)``.

    Returns:
        Shape ``(records, length, vocabulary)``.
    """
    output = model(tokens)
    logits: Tensor = getattr(output, "logits", output)
    return logits


# Losses.


def token_losses(logits: Tensor, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of each record's losses over its tokens, and their number.

    Position t predicts token t + 1. The first token, and padding, are not predicted.

    Args:
        logits: Shape ``(records, length, vocabulary)``.
        tokens: Shape ``(records, length)``.
        lengths: Tokens of each record without padding, shape ``(records,)``.

    Returns:
        Sums in nats, and numbers of predicted tokens, each of shape ``(records,)``.
    """
    each = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )
    places = torch.arange(1, tokens.shape[1], device=tokens.device)
    counted = places < lengths[:, None]
    return each.where(counted, 0.0).sum(dim=1), counted.sum(dim=1)


def mean_token_losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return each record's loss: the mean over the tokens that it predicts.

    Args:
        model: A causal language model.
        batch: Tokens and lengths, of shapes ``(records, length)`` and ``(records,)``.

    Returns:
        Losses in nats per token, shape ``(records,)``; 0 for a record with one token or none.
    """
    tokens, lengths = batch
    sums, counts = token_losses(model_logits(model, tokens), tokens, lengths)
    return sums / counts.clamp(min=1)


EVALUATED_AT_ONCE = 64


@dataclass(frozen=True)
class TokenEvaluation:
    """The losses of a language model on records.

    Attributes:
        sums: Sum of each record's losses over its predicted tokens, in nats.
        counts: Number of predicted tokens of each record.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def confidences(self) -> NDArray[np.float64]:
        """Minus the mean loss of each record: larger for a record that the model knows."""
        return -self.sums / np.maximum(self.counts, 1)

    @property
    def loss(self) -> float:
        """Mean loss over all predicted tokens, in nats; NaN for none."""
        total = int(self.counts.sum())
        return float(self.sums.sum() / total) if total else math.nan

    @property
    def perplexity(self) -> float:
        """Exponential of the mean loss."""
        return float(np.exp(self.loss))

    @property
    def accuracy(self) -> None:
        """No figure of a language model."""
        return

    def __str__(self) -> str:
        return f"held-out loss {self.loss:.3f} nats per token, perplexity {self.perplexity:.4g}"


def evaluate_language_model(model: nn.Module, records: TokenRecords) -> TokenEvaluation:
    """Compute the losses of a model in evaluation mode.

    Args:
        model: The model, which is left in evaluation mode.
        records: The records.

    Returns:
        Sums of losses and numbers of tokens.
    """
    model.eval()
    sums, counts = [np.empty(0)], [np.empty(0, np.int64)]
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(records), EVALUATED_AT_ONCE):
            some = records[np.arange(start, min(start + EVALUATED_AT_ONCE, len(records)))]
            tokens, lengths = (torch.from_numpy(a).to(device) for a in (some.tokens, some.lengths))
            total, number = token_losses(model_logits(model, tokens).double(), tokens, lengths)
            sums.append(total.cpu().numpy())
            counts.append(number.cpu().numpy())
    return TokenEvaluation(np.concatenate(sums), np.concatenate(counts))
