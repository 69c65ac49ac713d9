"""Membership inference and extraction on the language model of a run of ``dpaudit train``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.language_models.text_encoders import (
    ByteEncoder,
    TextEncoder,
    TokenizerEncoder,
)
from dpaudit.attacks.language_models.text_files import TextRecords
from dpaudit.attacks.language_models.token_signals import TokenSignals, zlib_bytes
from dpaudit.attacks.language_models.torch_signals import Logits, model_signals
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, write_json
from dpaudit.trainer.models.language_models import model_logits
from dpaudit.trainer.run import heldout_records
from dpaudit.trainer.tasks import LANGUAGE_MODELING, load_trained_model
from dpaudit.trainer.token_data import TokenRecords
from dpaudit.vocabulary.errors import InvalidData
from dpaudit.vocabulary.settings import DataSettings, NoProgress, Progress
from dpaudit.workflow.attack.score_evaluation import AttackOutcome
from dpaudit.workflow.attack.text_attacks import (
    TextAttackSettings,
    evaluate_texts,
    with_reference,
)


def attack_text_run(
    run: RunDirectory, settings: TextAttackSettings, *, progress: Progress | None = None
) -> AttackOutcome:
    """Attack the language model of a finished run, and write the report into the run.

    Members are the records that it was trained on, non-members the held-out ones. The coins that
    divided them are those of the run, so both have one distribution. Records with fewer than two
    tokens are left out: nothing of them is predicted.

    Args:
        run: A finished run on text; its data must still be there.
        settings: The attacks; tokenizer and sequence length are those of the run.
        progress: Receives finished texts; None: not reported.

    Returns:
        The report and every score.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the run's data are gone, or a setting cannot be used.
    """
    ledger = run.read_finished()
    data = run.read_settings().data
    split = LANGUAGE_MODELING.load(data)
    model = load_trained_model(run, split).eval()
    members = _sequences(split.train)
    others = _sequences(heldout_records(run, split))
    sequences = [*members, *others]
    if not members or not others:
        raise InvalidData("data", data.source, "with members and non-members of two tokens or more")
    texts = tuple(run_encoder(data).decode(one.tolist()) for one in sequences)
    progress = progress or NoProgress()
    progress.start("computing log-probabilities", len(sequences))
    found = model_signals(
        run_logits(model), sequences, scheme=settings.scheme, on_texts=progress.advance
    )
    signals: tuple[TokenSignals, ...] = tuple(
        replace(one, compressed_bytes=zlib_bytes(text))
        for one, text in zip(found, texts, strict=True)
    )
    own = replace(settings, tokenizer=data.tokenizer or settings.tokenizer or "bytes")
    signals = with_reference(texts, signals, own, progress)
    ids = (
        *(f"train-{row}" for row in range(len(members))),
        *(f"heldout-{row}" for row in range(len(others))),
    )
    records = TextRecords(ids, texts, np.arange(len(ids)) < len(members))
    outcome = evaluate_texts("the run's language model", records, signals, own)
    report = msgspec.structs.replace(outcome.report, ledger_head=ledger.head)
    write_json(run.attack, report, PRIVATE)
    return replace(outcome, report=report)


def run_logits(model: nn.Module) -> Logits:
    """Return the function from tokens to logits of a run's model.

    Args:
        model: The model in evaluation mode.

    Returns:
        The function; its logits are on the CPU.
    """
    device = next(model.parameters()).device

    def logits(tokens: Tensor) -> Tensor:
        """Return the logits on the CPU."""
        return model_logits(model, tokens.to(device)).cpu()

    return logits


def run_encoder(data: DataSettings) -> TextEncoder:
    """Return the encoder of a run's texts.

    Args:
        data: The run's data settings.

    Returns:
        Bytes, or the tokenizer that the settings name.

    Raises:
        UnreadableFile: If the tokenizer is gone.
    """
    return ByteEncoder() if data.tokenizer is None else TokenizerEncoder(Path(data.tokenizer))


def _sequences(records: TokenRecords) -> list[NDArray[np.int64]]:
    """Return the tokens of each record without padding; records of one token are left out."""
    pairs = zip(records.tokens, records.lengths.tolist(), strict=True)
    return [row[:length] for row, length in pairs if length >= 2]
