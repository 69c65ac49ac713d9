"""Options of ``dpaudit audit`` and ``dpaudit canaries make`` that would be ignored."""

from __future__ import annotations

from typing import Any

import click

from dpaudit.cli.options import option_name, was_given

OF_A_RUN = {
    "delta": "the RUN's claim has a delta",
    "claim_epsilon": "the RUN has a claim",
    "trust_model_code": "the RUN's own model is built from its settings or by --model",
}
"""Options that a run answers itself, with the reasons."""

SCORING_OPTIONS = (
    *("canaries", "scores", "checkpoint", "model", "trust_model_code", "language_model"),
    *("tokenizer", "token_logprobs"),
)
"""Options for canaries and scores; an own trainer has none."""

INPUT_OPTIONS = ("data", "label", "training_file")
CANARY_OPTIONS = {
    "mislabelled": INPUT_OPTIONS,
    "blank": INPUT_OPTIONS,
    "out-of-distribution": INPUT_OPTIONS,
    "crafted": (*INPUT_OPTIONS, "checkpoint", "trust_model_code", "model"),
    "secrets": ("template", "references", "text", "training_file"),
    "new-tokens": ("text", "training_file"),
    "synthetic": (
        *("language_model", "tokenizer", "prompt", "temperature", "tokens"),
        *("text", "training_file"),
    ),
    "dummy": (),
}
"""Options of each kind of canaries, next to those of all kinds."""

OPTIONS_OF_ALL_KINDS = ("kind", "count", "output")


def require_used_audit_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that an audit of this kind would ignore.

    Args:
        ctx: The context of the command.
        options: Values of its options.

    Raises:
        click.UsageError: If an option has no effect.
    """
    if options["run"] is not None:
        for name, why in OF_A_RUN.items():
            if was_given(ctx, name):
                raise click.UsageError(f"leave out {option_name(name)}: {why}")
        return
    if was_given(ctx, "view"):
        raise click.UsageError("--view goes with a RUN: it names observations of its canaries")
    if options["black_box"]:
        for name in SCORING_OPTIONS:
            if was_given(ctx, name):
                why = "--black-box trains and reads models of its own"
                raise click.UsageError(f"leave out {option_name(name)}: {why}")
        return
    for name, needed in (
        ("model", "checkpoint"),
        ("trust_model_code", "checkpoint"),
        ("tokenizer", "language_model"),
    ):
        by_text = options["language_model"] is not None or options["token_logprobs"] is not None
        if was_given(ctx, name) and options[needed] is None and not by_text:
            raise click.UsageError(f"{option_name(name)} goes with {option_name(needed)}")


def require_used_canary_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that canaries of this kind would ignore.

    Args:
        ctx: The context of the command.
        options: Values of its options.

    Raises:
        click.UsageError: If an option has no effect.
    """
    kind = options["kind"]
    used = (*OPTIONS_OF_ALL_KINDS, *CANARY_OPTIONS[kind])
    for name in options:
        if name not in used and was_given(ctx, name):
            raise click.UsageError(
                f"leave out {option_name(name)}: it has no effect on canaries of kind {kind}"
            )
