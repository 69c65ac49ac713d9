"""``dpaudit delta``: the delta at an epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.plan import priced_options, question_of
from dpaudit.cli.printing import warn

UNUSED_DELTA = 1e-5  # a question carries one; this command asks for it


@click.command()
@priced_options
@click.option("--epsilon", type=float, required=True, help="Epsilon of the statement, in nats.")
@click.option("--explain", is_flag=True, help="Say how the interval was come by, and its errors.")
@format_option("text", "json")
@OUTPUT
@click.pass_context
def delta(
    ctx: click.Context,
    /,
    epsilon: float,
    explain: bool,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Say at which delta RUN, a plan, or FILE keeps an epsilon, by the PLD accountant.

    \b
    dpaudit delta --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 --epsilon 2
    dpaudit delta runs/digits --epsilon 1
    """
    from dpaudit.report import text
    from dpaudit.workflow import questions

    question = question_of(ctx, delta=UNUSED_DELTA)
    answer = questions.delta_at(question, epsilon)
    if question.caveat is not None:
        warn(question.caveat)
    if format_ == "json":
        shown = text.as_json(answer)
    else:
        shown = text.delta_text(answer, question.sampling)
        if explain:
            shown += "\n\n" + text.explanation_text(answer.explanation)
    emit(shown, output)
