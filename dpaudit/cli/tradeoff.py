"""``dpaudit tradeoff``: what the numbers let an attacker do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.plan import priced_options, question_of
from dpaudit.cli.printing import warn

UNUSED_DELTA = 1e-5  # a question carries one; this command does not ask for any


@click.command()
@priced_options
@click.option(
    "--fpr",
    multiple=True,
    type=float,
    default=(0.001, 0.01, 0.1),
    show_default=True,
    help="False-positive rate of the attacker; may be repeated.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def tradeoff(
    ctx: click.Context, /, fpr: tuple[float, ...], format_: str, output: Path | None, **_: Any
) -> None:
    """Say what an attacker who knows all records but one can learn of that one, at most.

    \b
    dpaudit tradeoff --sampling-rate 0.01 --noise-multiplier 1 --steps 1000
    dpaudit tradeoff runs/digits --fpr 0.0001 --fpr 0.01
    """
    from dpaudit.report import text
    from dpaudit.workflow import questions

    question = question_of(ctx, delta=UNUSED_DELTA)
    answer = questions.risk_of(question, tuple(sorted(fpr)))
    if question.caveat is not None:
        warn(question.caveat)
    shown = text.as_json(answer) if format_ == "json" else text.risk_text(answer, question.sampling)
    emit(shown, output)
