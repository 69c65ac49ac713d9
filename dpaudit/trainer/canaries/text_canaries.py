"""Input canaries of a language model: sequences that end with a token of their own.

A canary is the beginning of a held-out record, followed by a token that occurs nowhere else. The
model can only predict this token there if it was trained on the canary, and the token's row of the
embedding belongs to the canary alone. The canary's score is the log-probability of that token.

References: Panda et al. (2025), arXiv:2503.06808, use new tokens as canaries.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dpaudit.trainer.canaries.run_canaries import RunCanaries, choose_directions
from dpaudit.trainer.models.language_models import EVALUATED_AT_ONCE, model_logits
from dpaudit.trainer.noise.randomness import Keystream, Purpose
from dpaudit.trainer.token_data import PADDING, TokenRecords, TokenSplit
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import CanarySettings

PREFIX_TOKENS = 4
"""Tokens before the canary's own one. The loss is a mean: a longer prefix dilutes the canary."""


def make_text_canaries(
    settings: CanarySettings, split: TokenSplit, parameters: int, stream: Keystream
) -> RunCanaries:
    """Draw the canaries of a run on text.

    Args:
        settings: Number of canaries of each kind, and the kind of directions.
        split: The records, with one canary token for each input canary.
        parameters: Number of trainable parameters.
        stream: Keystream of bits and directions.

    Returns:
        The canaries. The first held-out records became input canaries.

    Raises:
        InvalidArgument: If more than half of the held-out records would become canaries, one of
            them is empty or records are too short, or the directions do not fit the parameters.
    """
    most = len(split.heldout) // 2
    if settings.inputs > most:
        allowed = f"at most {most}, half of the held-out records"
        raise InvalidArgument("input_canaries", settings.inputs, allowed)
    coins = stream.coins(Purpose.CANARY_COINS, 0, settings.gradient + settings.inputs, 0.5)
    return RunCanaries(
        gradient_included=coins[: settings.gradient],
        inputs=new_token_records(split, settings.inputs),
        inputs_included=coins[settings.gradient :],
        directions=choose_directions(settings.directions, settings.gradient, parameters, stream),
    )


def new_token_records(split: TokenSplit, count: int) -> TokenRecords:
    """Make canaries from the beginnings of the first held-out records.

    Args:
        split: The records.
        count: Number of canaries, at most ``split.canary_tokens``.

    Returns:
        One sequence per canary; canary i ends with token ``split.text_vocabulary + i``.

    Raises:
        InvalidArgument: If a held-out record is empty, or records hold one token alone.
    """
    length = split.heldout.tokens.shape[1]
    tokens = np.full((count, length), PADDING, dtype=np.int64)
    kept = np.minimum(split.heldout.lengths[:count], min(PREFIX_TOKENS, length - 1))
    if not (kept >= 1).all():
        given = "a held-out record without a token before the canary's own one"
        raise InvalidArgument("input_canaries", given, "records of two tokens or more")
    for row, prefix in enumerate(kept.tolist()):
        tokens[row, :prefix] = split.heldout.tokens[row, :prefix]
        tokens[row, prefix] = split.text_vocabulary + row
    return TokenRecords(tokens, kept + 1)


def last_token_confidences(model: nn.Module, records: TokenRecords) -> NDArray[np.float64]:
    """Compute the log-probability of the last token of each record.

    Args:
        model: The model, which is left in evaluation mode.
        records: Records of two tokens or more.

    Returns:
        Log-probabilities in nats, shape ``(records,)``.
    """
    model.eval()
    found = [np.empty(0)]
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(records), EVALUATED_AT_ONCE):
            some = records[np.arange(start, min(start + EVALUATED_AT_ONCE, len(records)))]
            tokens = torch.from_numpy(some.tokens).to(device)
            rows = torch.arange(len(some), device=device)
            last = torch.from_numpy(some.lengths).to(device) - 1
            logits = model_logits(model, tokens)[rows, last - 1].double()
            own = torch.log_softmax(logits, dim=-1)[rows, tokens[rows, last]]
            found.append(own.cpu().numpy())
    return np.concatenate(found)
