"""Make text canaries: sentences with a token of their own, or drawn from a language model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpaudit.attacks.canaries import assign_canaries
from dpaudit.attacks.canaries.text_canaries import (
    TextCanaries,
    new_token_sentences,
    synthetic_sentences,
)
from dpaudit.attacks.language_models.token_signals import SamplingScheme
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.workflow.audit.external_scores import AuditorCanaries, CanaryArrays
from dpaudit.workflow.audit.make_canaries import (
    read_training_texts,
    require_new_canaries,
    unpredictable_generator,
    write_canaries,
    write_training_texts,
)

PREFIX_WORDS = 4
"""Words before the canary's own token, at most: a longer prefix dilutes it in a mean loss."""


def make_new_token_canaries(
    count: int, out: Path, *, text: Path, training_file: Path | None
) -> AuditorCanaries:
    """Make sentences with a token of their own, draw their bits and write both files.

    The canaries begin as random texts of the file do. These texts stay out of the training file, as
    the canaries stand for held-out ones.

    Args:
        count: Number of sentences.
        out: The trainer's file, ``NAME.npz``; its ``token_names`` are to be added to the tokenizer.
        text: Training texts.
        training_file: Where to write the other texts with the included sentences among them; None:
            nowhere.

    Returns:
        All sentences with their bits.

    Raises:
        InvalidArgument: If there are fewer than twice as many texts, or if a file exists or cannot
            be written.
    """
    require_count("count", count)
    require_new_canaries(out, training_file)
    texts = [one for one in read_training_texts(text) if one.strip()]
    if len(texts) < 2 * count:
        allowed = f"at most {len(texts) // 2}, half of the texts"
        raise InvalidArgument("count", count, allowed)
    rng = unpredictable_generator()
    order = rng.permutation(len(texts)).tolist()
    prefixes = [" ".join(texts[place].split()[:PREFIX_WORDS]) for place in order[:count]]
    kept = [texts[place] for place in sorted(order[count:])]
    return _written("new-tokens", new_token_sentences(prefixes), kept, out, training_file, rng)


@dataclass(frozen=True)
class SyntheticSettings:
    """How synthetic sentences are drawn.

    Attributes:
        folder: Folder of the language model, which must not have seen private data.
        tokenizer: ``bytes``, or a folder with ``tokenizer.json``; None: the model's folder.
        prompts: Beginnings, which take turns.
        tokens: Number of tokens after the prompt.
        temperature: Sampling temperature.
    """

    folder: Path
    tokenizer: str | None
    prompts: Sequence[str]
    tokens: int
    temperature: float


def make_synthetic_canaries(
    count: int,
    out: Path,
    settings: SyntheticSettings,
    *,
    text: Path | None,
    training_file: Path | None,
) -> AuditorCanaries:
    """Draw sentences from a language model, draw their bits and write both files.

    Args:
        count: Number of sentences.
        out: The trainer's file, ``NAME.npz``.
        settings: The language model, and how it is sampled.
        text: Training texts; None: there are none.
        training_file: Where to write these texts with the included sentences among them; None:
            nowhere.

    Returns:
        All sentences with their bits.

    Raises:
        InvalidArgument: If the model cannot be used or repeats itself, or if a file exists or
            cannot be written.
        MissingExtra: If the transformers library is not installed.
    """
    from dpaudit.attacks.language_models.model_folder import (  # noqa: PLC0415 - torch
        open_language_model,
    )

    require_count("count", count)
    require_count("tokens", settings.tokens)
    require_new_canaries(out, training_file)
    texts = read_training_texts(text)
    model = open_language_model(settings.folder, tokenizer=settings.tokenizer)

    def sample(wanted: int, number: int) -> Sequence[str]:
        prompts = tuple(settings.prompts[row % len(settings.prompts)] for row in range(wanted))
        return model.sample(
            prompts,
            length=settings.tokens,
            scheme=SamplingScheme(settings.temperature),
            seed=int.from_bytes(os.urandom(7), "big"),
        )

    canaries = synthetic_sentences(count, sample)
    return _written("synthetic", canaries, texts, out, training_file, unpredictable_generator())


def _written(
    kind: str,
    canaries: TextCanaries,
    texts: Sequence[str],
    out: Path,
    training_file: Path | None,
    rng: np.random.Generator,
) -> AuditorCanaries:
    """Draw the bits and write all files."""
    assignment = assign_canaries(canaries, rng)
    every_token = np.array(canaries.new_tokens, dtype=np.str_)

    def arrays(some: TextCanaries) -> CanaryArrays:
        found: CanaryArrays = {"sentences": np.array(some.sentences, dtype=np.str_)}
        if canaries.new_tokens:
            # The tokenizer needs all of them: the vocabulary must not depend on the coins.
            found["new_tokens"] = np.array(some.new_tokens, dtype=np.str_)
            found["token_names"] = every_token
        return found

    written = write_canaries(kind, assignment, arrays, out)
    if training_file is not None:
        write_training_texts(training_file, texts, assignment.trained.sentences, rng)
    return written
