"""Membership inference and extraction on language models, from files: no torch at import."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from dpaudit.attacks.language_models.distribution_shift import blind_baselines, separation_warning
from dpaudit.attacks.language_models.extraction import (
    DEFAULT_PROBABILITY,
    DEFAULT_QUERIES,
    extract_probabilistically,
    extract_verbatim,
)
from dpaudit.attacks.language_models.likelihood_attacks import (
    LIKELIHOOD_ATTACKS,
    possible_attacks,
)
from dpaudit.attacks.language_models.text_files import TextRecords, read_texts, read_token_signals
from dpaudit.attacks.language_models.token_signals import SamplingScheme, TokenSignals
from dpaudit.files.regular_files import utf8_name
from dpaudit.runs.file_io import sha256
from dpaudit.vocabulary.audit import AttackReport
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    InvalidData,
    require_count,
    require_open_unit,
)
from dpaudit.vocabulary.language_models import ExtractionResult
from dpaudit.vocabulary.settings import NoProgress, Progress
from dpaudit.workflow.attack.score_evaluation import AttackOutcome, evaluate_scores


@dataclass(frozen=True)
class ExtractionSettings:
    """Settings of an extraction.

    Attributes:
        suffix_tokens: Number of tokens at the end of each text that must be generated.
        queries: Number of independent attempts, n.
        probability: Probability, p, with which at least one attempt succeeds, in (0, 1).
        scheme: How tokens are drawn.

    Raises:
        InvalidArgument: If a number is out of its range.
    """

    suffix_tokens: int
    queries: int = DEFAULT_QUERIES
    probability: float = DEFAULT_PROBABILITY
    scheme: SamplingScheme = field(default_factory=SamplingScheme)

    def __post_init__(self) -> None:
        require_count("suffix_tokens", self.suffix_tokens)
        require_count("queries", self.queries)
        require_open_unit("extraction_probability", self.probability)


@dataclass(frozen=True)
class TextAttackSettings:
    """Settings of attacks on a language model.

    Attributes:
        attacks: Names in ``LIKELIHOOD_ATTACKS``; empty: all that the signals allow.
        confidence: Of each interval, in (0, 1).
        sequence_length: Number of tokens after which a text is cut off; None: no text is cut.
        tokenizer: ``bytes``, or a folder with ``tokenizer.json``; None: the model's folder.
        reference_model: Folder of a reference model, with its own tokenizer or that of
            ``tokenizer``; None: there is none.
        extraction: Settings of an extraction; None: it is not measured.
        seed: Seed of the baselines.

    Raises:
        InvalidArgument: If an attack is unknown or a value is out of range.
    """

    attacks: tuple[str, ...] = ()
    confidence: float = 0.95
    sequence_length: int | None = None
    tokenizer: str | None = None
    reference_model: Path | None = None
    extraction: ExtractionSettings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not set(self.attacks) <= set(LIKELIHOOD_ATTACKS):
            allowed = f"some of {', '.join(LIKELIHOOD_ATTACKS)}, for a language model"
            raise InvalidArgument("attack", list(self.attacks), allowed)
        require_open_unit("confidence", self.confidence)
        if self.sequence_length is not None:
            require_count("sequence_length", self.sequence_length, least=2)

    @property
    def scheme(self) -> SamplingScheme | None:
        """The sampling scheme, where log-probabilities under it are needed."""
        if self.extraction is None or self.extraction.scheme.is_plain:
            return None
        return self.extraction.scheme


def attack_token_logprobs(path: Path, settings: TextAttackSettings) -> AttackOutcome:
    """Attack a language model by token log-probabilities that were computed elsewhere.

    Args:
        path: The file; see ``dpaudit.attacks.language_models.text_files``.
        settings: The attacks.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If the file or a setting cannot be used.
    """
    records, signals = read_token_signals(path)
    described = f"a language model by the token log-probabilities of {utf8_name(path)}"
    found = evaluate_texts(described, records, signals, settings)
    return _with_files(found, {"token_logprobs": sha256(path)})


def attack_language_model(
    folder: Path, texts: Path, settings: TextAttackSettings, *, progress: Progress | None = None
) -> AttackOutcome:
    """Attack the language model in a folder.

    Args:
        folder: Folder with ``config.json`` and safetensors weights.
        texts: File of texts with their membership.
        settings: The attacks.
        progress: Receives finished texts; None: not reported.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If a file or a setting cannot be used.
        MissingExtra: If the transformers library is not installed.
    """
    from dpaudit.attacks.language_models.model_folder import (  # noqa: PLC0415 - torch
        open_language_model,
    )

    records = read_texts(texts)
    assert records.texts is not None
    records.require_member()
    model = open_language_model(folder, tokenizer=settings.tokenizer)
    progress = progress or NoProgress()
    progress.start("computing log-probabilities", len(records))
    signals = model.signals(
        records.texts,
        length=settings.sequence_length,
        scheme=settings.scheme,
        on_texts=progress.advance,
    )
    signals = with_reference(records.texts, signals, settings, progress)
    found = evaluate_texts(f"the language model in {utf8_name(folder)}", records, signals, settings)
    return _with_files(found, {"data": sha256(texts)})


def with_reference(
    texts: Sequence[str],
    signals: tuple[TokenSignals, ...],
    settings: TextAttackSettings,
    progress: Progress,
) -> tuple[TokenSignals, ...]:
    """Add the log-probabilities under the reference model, if there is one.

    Args:
        texts: The texts.
        signals: Signals of each text under the target.
        settings: The attacks; ``reference_model`` may be None.
        progress: Receives finished texts.

    Returns:
        The signals with ``reference``.

    Raises:
        InvalidArgument: If the reference model cannot be used.
        MissingExtra: If the transformers library is not installed.
    """
    if settings.reference_model is None:
        return signals
    from dpaudit.attacks.language_models.model_folder import (  # noqa: PLC0415 - torch
        open_language_model,
    )

    model = open_language_model(
        settings.reference_model, tokenizer=settings.tokenizer, argument="reference_model"
    )
    progress.start("computing log-probabilities of the reference", len(texts))
    of_reference = model.signals(
        tuple(texts), length=settings.sequence_length, on_texts=progress.advance
    )
    return tuple(
        replace(own, reference=other.log_probabilities)
        for own, other in zip(signals, of_reference, strict=True)
    )


def evaluate_texts(
    described: str,
    records: TextRecords,
    signals: Sequence[TokenSignals],
    settings: TextAttackSettings,
) -> AttackOutcome:
    """Score texts by each attack, and compare with baselines that use no model.

    If a baseline separates members from non-members, every attack is inconclusive: it may measure
    the difference of the two sets.

    Args:
        described: The attacked model, as text.
        records: The texts with their membership.
        signals: Signals of each text.
        settings: The attacks.

    Returns:
        The report and every score.

    Raises:
        InvalidArgument: If membership is unknown, or a signal that an attack needs is missing.
    """
    import pandas as pd  # noqa: PLC0415 - score_evaluation raises MissingExtra without it

    member = records.require_member()
    attacks = settings.attacks or possible_attacks(signals)
    frame = pd.concat(
        [
            pd.DataFrame(
                {
                    "attack": name,
                    "id": list(records.ids),
                    "score": LIKELIHOOD_ATTACKS[name](signals).values,
                    "member": member.astype(int),
                }
            )
            for name in attacks
        ],
        ignore_index=True,
    )
    baselines = blind_baselines(records.texts, signals, member, seed=settings.seed)
    warning = separation_warning(baselines)
    try:
        found = evaluate_scores(frame, described, confidence=settings.confidence)
    except InvalidArgument as error:
        if warning is None:
            raise
        # Scores that are far below chance: the split is the reason, not their sign.
        raise InvalidData("member", "no random choice of the texts", warning) from error
    membership = tuple(
        one if warning is None else msgspec.structs.replace(one, inconclusive=warning)
        for one in found.report.membership
    )
    report = msgspec.structs.replace(
        found.report,
        membership=membership,
        baselines=baselines,
        extraction=_extracted(records, signals, settings),
    )
    return replace(found, report=report)


def _extracted(
    records: TextRecords, signals: Sequence[TokenSignals], settings: TextAttackSettings
) -> tuple[ExtractionResult, ...]:
    """Return verbatim extraction, where greedy decoding is known, and probabilistic extraction."""
    if settings.extraction is None:
        return ()
    member, asked = records.require_member(), settings.extraction
    found = []
    if all(one.greedy is not None for one in signals):
        found.append(
            extract_verbatim(
                signals,
                member,
                suffix_tokens=asked.suffix_tokens,
                confidence=settings.confidence,
            )
        )
    found.append(
        extract_probabilistically(
            signals,
            member,
            suffix_tokens=asked.suffix_tokens,
            queries=asked.queries,
            probability=asked.probability,
            scheme=asked.scheme,
            confidence=settings.confidence,
        )
    )
    return tuple(found)


def _with_files(found: AttackOutcome, files: dict[str, str]) -> AttackOutcome:
    """Return an outcome whose report holds digests of what was read."""
    report: AttackReport = msgspec.structs.replace(found.report, files=files)
    return replace(found, report=report)
