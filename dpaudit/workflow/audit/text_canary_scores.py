"""Score text canaries of ``dpaudit canaries make``: by a model folder, a run, or given signals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.language_models.canary_scores import (
    NEW_TOKENS,
    part_scores,
    sentence_scores,
)
from dpaudit.attacks.language_models.text_encoders import TextEncoder
from dpaudit.attacks.language_models.text_files import read_token_signals
from dpaudit.attacks.language_models.token_signals import TokenSignals
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.audit.external_scores import AuditorCanaries

Array = NDArray[np.float64]
SignalsOf = Callable[[Sequence[Sequence[int]]], tuple[TokenSignals, ...]]
"""From the tokens of texts to their signals."""

ScoresById = dict[str, float]
"""Scores of the canaries, and of the references under ``reference-0``, ``reference-1`` ..."""


def scores_of_model_folder(
    auditor: AuditorCanaries, folder: Path, tokenizer: str | None
) -> ScoresById:
    """Score text canaries by the language model in a folder.

    Args:
        auditor: All canaries.
        folder: Folder with ``config.json``, safetensors weights and ``tokenizer.json``.
        tokenizer: ``bytes``, or another folder of the tokenizer; None: the model's.

    Returns:
        A score for every canary and reference.

    Raises:
        InvalidArgument: If the canaries are no texts, or the model cannot be used.
        MissingExtra: If the transformers library is not installed.
    """
    from dpaudit.attacks.language_models.model_folder import (  # noqa: PLC0415 - torch
        open_language_model,
    )
    from dpaudit.attacks.language_models.torch_signals import model_signals  # noqa: PLC0415

    model = open_language_model(folder, tokenizer=tokenizer)
    texts = _texts(auditor)
    model.encode(texts)  # refuses texts that the model has no positions or tokens for

    def signals_of(tokens: Sequence[Sequence[int]]) -> tuple[TokenSignals, ...]:
        return model_signals(model.logits, [np.array(one, dtype=np.int64) for one in tokens])

    return _scores(auditor, model.encoder, signals_of)


def scores_of_run(auditor: AuditorCanaries, run: RunDirectory) -> ScoresById:
    """Score text canaries by the language model of a run of ``dpaudit train``.

    Sentences are cut off after the run's sequence length, as its records are.

    Args:
        auditor: All canaries.
        run: A finished run on text.

    Returns:
        A score for every canary and reference.

    Raises:
        InvalidArgument: If the canaries are no texts, or have tokens of their own: a run makes
            such canaries itself.
    """
    from dpaudit.attacks.language_models.torch_signals import model_signals  # noqa: PLC0415 - torch
    from dpaudit.trainer.tasks import LANGUAGE_MODELING, load_trained_model  # noqa: PLC0415
    from dpaudit.workflow.attack.text_run_attacks import run_encoder, run_logits  # noqa: PLC0415

    if auditor.kind == NEW_TOKENS:
        allowed = "sentences of ordinary tokens; dpaudit train --input-canaries adds new tokens"
        raise InvalidArgument("canaries", auditor.kind, allowed)
    data = run.read_config().data
    model = load_trained_model(run, LANGUAGE_MODELING.load(data)).eval()
    length = data.sequence_length

    def signals_of(tokens: Sequence[Sequence[int]]) -> tuple[TokenSignals, ...]:
        cut = [np.array(one[:length], dtype=np.int64) for one in tokens]
        return model_signals(run_logits(model), cut)

    return _scores(auditor, run_encoder(data), signals_of)


def scores_of_token_logprobs(auditor: AuditorCanaries, path: Path) -> ScoresById:
    """Score text canaries by token log-probabilities that were computed elsewhere.

    Args:
        auditor: All canaries.
        path: A file with one entry per canary, under its ``id``, and optionally per reference. For
            canaries with a token of their own, that token is the last one.

    Returns:
        A score for every id of the file.

    Raises:
        InvalidArgument: If the file cannot be used.
    """
    records, signals = read_token_signals(path)
    if auditor.kind == NEW_TOKENS:
        found = np.array([one.log_probabilities[-1] for one in signals])
    else:
        found = sentence_scores(signals)
    return dict(zip(records.ids, found.tolist(), strict=True))


def _texts(auditor: AuditorCanaries) -> tuple[str, ...]:
    """Return the sentences of the canaries, and of the references after them."""
    if "sentences" not in auditor.arrays:
        allowed = "texts: secrets, new-tokens or synthetic"
        raise InvalidArgument("canaries", auditor.kind, allowed)
    names = [name for name in ("sentences", "references") if name in auditor.arrays]
    return tuple(str(text) for name in names for text in auditor.arrays[name])


def _scores(auditor: AuditorCanaries, encoder: TextEncoder, signals_of: SignalsOf) -> ScoresById:
    """Return the score of every canary and reference."""
    texts = _texts(auditor)
    tokens = [encoder.encode(text, None).tokens for text in texts]
    signals = signals_of(tokens)
    if auditor.kind == NEW_TOKENS:
        parts = [encoder.plain(str(name)) for name in auditor.arrays["new_tokens"]]
        found = part_scores(signals, tokens, parts)
    else:
        found = sentence_scores(signals)
    references = range(len(texts) - len(auditor.ids))
    ids = (*auditor.ids, *(f"reference-{number}" for number in references))
    return dict(zip(ids, found.tolist(), strict=True))
