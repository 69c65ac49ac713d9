"""Options of ``dpaudit attack`` and ``dpaudit audit`` for language models."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import option_name, was_given
from dpaudit.cli.printing import progress_bars
from dpaudit.vocabulary.errors import InvalidArgument

if TYPE_CHECKING:
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.workflow.attack.score_evaluation import AttackOutcome
    from dpaudit.workflow.attack.text_attacks import TextAttackSettings

TEXT_ATTACKS = ("loss", "zlib", "min-k", "min-k++", "reference-ratio", "reference-difference")
PATH = click.Path(path_type=Path)

# fmt: off
LANGUAGE_MODEL = click.option("--language-model", type=PATH, metavar="FOLDER", help="Language model: config.json, safetensors weights and tokenizer.json. No code in it runs. Extra llm.")
TOKENIZER = click.option("--tokenizer", metavar="FOLDER", help="Folder with tokenizer.json, or bytes.  [default: the model's folder]")
TOKEN_LOGPROBS = click.option("--token-logprobs", type=PATH, help="Token log-probabilities computed elsewhere, .jsonl or .npz, in place of a language model.")
TEXT_OPTIONS = (
    LANGUAGE_MODEL,
    TOKEN_LOGPROBS,
    click.option("--reference-model", type=PATH, metavar="FOLDER", help="Language model that was not trained on the texts, for the reference attacks."),
    TOKENIZER,
    click.option("--sequence-length", type=int, help="Number of tokens after which a text is cut off.  [default: no text is cut]"),
    click.option("--suffix-tokens", type=int, help="Also measure extraction of this many tokens at the end of each text."),
    click.option("--attempts", type=int, default=100, show_default=True, help="Attempts of an extraction, n."),
    click.option("--extraction-probability", type=float, default=0.5, show_default=True, help="Probability that one of them succeeds, p."),
    click.option("--temperature", type=float, default=1.0, show_default=True, help="Sampling temperature of an extraction."),
    click.option("--top-k", type=int, help="Most probable tokens that an extraction draws from.  [default: all]"),
)
# fmt: on

EXTRACTION_OPTIONS = ("attempts", "extraction_probability", "temperature", "top_k")
TEXT_ONLY = (
    *("reference_model", "tokenizer", "sequence_length", "suffix_tokens"),
    *EXTRACTION_OPTIONS,
)
CLASSIFIER_ONLY = (
    *("label", "checkpoint", "references", "targets", "model", "epochs", "batch_size"),
    *("learning_rate", "records", "workers", "queries", "without_labels", "infer", "record_risk"),
    *("task", "by", "reference_training", "score_column", "member_column", "smaller_means_member"),
)
"""Options without effect on language models."""


def attacks_text(options: dict[str, Any]) -> bool:
    """Return whether the options name a language model, or a run on text.

    Args:
        options: Values of the options of ``dpaudit attack``.

    Returns:
        True if the attack is one on texts.
    """
    if options["language_model"] is not None or options["token_logprobs"] is not None:
        return True
    if options["run"] is None or options["scores"] is not None:
        return False
    from dpaudit.runs.directory import open_run

    try:
        run: RunDirectory = open_run(options["run"])
    except InvalidArgument:  # the attack itself reports it, after what is not installed
        return False
    return run.config.exists() and run.read_settings().data.has_tokens


def require_text_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that would be ignored, and sources that do not go together.

    Args:
        ctx: The context of the command.
        options: Values of its options.

    Raises:
        click.UsageError: If an option has no effect.
    """
    if not attacks_text(options):
        for name in TEXT_ONLY:
            if was_given(ctx, name):
                raise click.UsageError(f"{option_name(name)} goes with a language model")
        return
    if options["token_logprobs"] is not None:
        others = ("run", "scores", "data", "language_model", "reference_model", "tokenizer")
        unused = next((name for name in (*others, "sequence_length") if was_given(ctx, name)), None)
        if unused is not None:
            shown = "RUN" if unused == "run" else option_name(unused)
            raise click.UsageError(f"leave out {shown}: --token-logprobs holds everything")
    elif options["language_model"] is not None and (
        options["data"] is None or options["run"] is not None or options["scores"] is not None
    ):
        raise click.UsageError("--language-model goes with --data, a file of texts, and no RUN")
    elif options["run"] is not None and was_given(ctx, "sequence_length"):
        raise click.UsageError("leave out --sequence-length: the RUN has one")
    for name in CLASSIFIER_ONLY:
        if was_given(ctx, name):
            raise click.UsageError(f"leave out {option_name(name)}: it has no effect on texts")
    for name in EXTRACTION_OPTIONS:
        if was_given(ctx, name) and options["suffix_tokens"] is None:
            raise click.UsageError(f"{option_name(name)} goes with --suffix-tokens")


def text_outcome(options: dict[str, Any]) -> AttackOutcome:
    """Run the attacks on texts.

    Args:
        options: Values of the options of ``dpaudit attack``.

    Returns:
        The report and every score.
    """
    from dpaudit.workflow.attack import text_attacks

    settings = _settings(options)
    if options["token_logprobs"] is not None:
        return text_attacks.attack_token_logprobs(options["token_logprobs"], settings)
    with progress_bars() as progress:
        if options["language_model"] is not None:
            return text_attacks.attack_language_model(
                options["language_model"], Path(options["data"]), settings, progress=progress
            )
        import dpaudit.trainer  # noqa: F401  names the extra where torch is missing
        from dpaudit.runs.directory import open_run
        from dpaudit.workflow.attack.text_run_attacks import attack_text_run

        return attack_text_run(open_run(options["run"]), settings, progress=progress)


def _settings(options: dict[str, Any]) -> TextAttackSettings:
    """Return the settings that the options ask for."""
    from dpaudit.attacks.language_models.token_signals import SamplingScheme
    from dpaudit.workflow.attack.text_attacks import ExtractionSettings, TextAttackSettings

    asked = tuple(dict.fromkeys(options["attacks"]))
    extraction = None
    if options["suffix_tokens"] is not None:
        extraction = ExtractionSettings(
            options["suffix_tokens"],
            options["attempts"],
            options["extraction_probability"],
            SamplingScheme(options["temperature"], options["top_k"]),
        )
    return TextAttackSettings(
        attacks=() if "all" in asked else asked,
        confidence=options["confidence"],
        sequence_length=options["sequence_length"],
        tokenizer=options["tokenizer"],
        reference_model=options["reference_model"],
        extraction=extraction,
        seed=options["seed"],
    )
