"""Attacks on language models: membership from token log-probabilities, and extraction.

    from dpaudit.attacks import language_models

    records, signals = language_models.read_token_signals(Path("logprobs.jsonl"))
    scores = language_models.min_k_scores(signals).split(records.require_member())

A signal is what the model says of one text: the log-probability of each token, and further
quantities (``TokenSignals``). An attack is a pure function of signals. Signals come from a file
(``read_token_signals``), from a folder with a transformers model (``open_language_model``), or from
your own torch model (``model_signals``). The latter two need the extra ``llm``.

``blind_baselines`` test whether members differ from non-members without any model.
"""

from typing import TYPE_CHECKING

from dpaudit.attacks.language_models.distribution_shift import blind_baselines, separation_warning
from dpaudit.attacks.language_models.extraction import (
    attempt_log_probability,
    extract_probabilistically,
    extract_verbatim,
    queries_needed,
    succeeds_within,
)
from dpaudit.attacks.language_models.likelihood_attacks import (
    loss_scores,
    min_k_plus_plus_scores,
    min_k_scores,
    possible_attacks,
    reference_difference_scores,
    reference_ratio_scores,
    zlib_scores,
)
from dpaudit.attacks.language_models.text_files import TextRecords, read_texts, read_token_signals
from dpaudit.attacks.language_models.token_signals import (
    SamplingScheme,
    TokenSignals,
    signals_of_log_distribution,
    zlib_bytes,
)
from dpaudit.vocabulary import lazy_exports

if TYPE_CHECKING:
    from dpaudit.attacks.language_models.model_folder import (
        FolderLanguageModel,
        open_language_model,
    )
    from dpaudit.attacks.language_models.torch_signals import model_signals

__all__ = [
    "FolderLanguageModel",
    "SamplingScheme",
    "TextRecords",
    "TokenSignals",
    "attempt_log_probability",
    "blind_baselines",
    "extract_probabilistically",
    "extract_verbatim",
    "loss_scores",
    "min_k_plus_plus_scores",
    "min_k_scores",
    "model_signals",
    "open_language_model",
    "possible_attacks",
    "queries_needed",
    "read_texts",
    "read_token_signals",
    "reference_difference_scores",
    "reference_ratio_scores",
    "separation_warning",
    "signals_of_log_distribution",
    "succeeds_within",
    "zlib_bytes",
    "zlib_scores",
]

_SOURCES = {
    "FolderLanguageModel": "model_folder",
    "open_language_model": "model_folder",
    "model_signals": "torch_signals",
}

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    __getattr__, __dir__ = lazy_exports(__name__, _SOURCES)
