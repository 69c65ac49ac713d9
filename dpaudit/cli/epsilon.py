"""``dpaudit epsilon``: what a run, a plan for one, or another library's ledger costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.plan import priced_options, question_of
from dpaudit.cli.printing import warn


@click.command()
@priced_options
@click.option("--delta", type=float, help="Delta of the statement; that of RUN by default.")
@click.option(
    "--accountant",
    type=click.Choice(["all", "pld", "rdp", "naive", "zcdp", "gdp"]),
    default="all",
    show_default=True,
    help="Who computes; zcdp and gdp refuse what is sampled.",
)
@click.option("--explain", is_flag=True, help="Say how the interval was come by, and its errors.")
@format_option("text", "json")
@OUTPUT
@click.pass_context
def epsilon(
    ctx: click.Context,
    /,
    delta: float | None,
    accountant: str,
    explain: bool,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Say what RUN, a plan, or FILE costs: epsilon by every accountant, side by side.

    \b
    dpaudit epsilon --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 --delta 1e-5
    dpaudit epsilon --dataset-size 60000 --batch-size 256 --epochs 60 \\
                    --noise-multiplier 1.1 --delta 1e-5
    dpaudit epsilon runs/digits
    dpaudit epsilon --from opacus history.json --delta 1e-5
    """
    # Heavy imports stay inside the command that needs them.
    from dpaudit.report import text
    from dpaudit.workflow import questions

    question = question_of(ctx, delta=delta)
    answers = questions.answer(question, accountant)
    if explain:
        answers = questions.explained(question, answers)
    if question.caveat is not None:
        warn(question.caveat)
    for warning in questions.delta_warnings(question, ctx.params["dataset_size"]):
        warn(f"warning: {warning}")
    if format_ == "text":
        shown = text.epsilon_text(question.mechanism, question.sampling, answers)
        if explain:
            shown += "\n\n" + text.guarantee_text(question.mechanism, answers)
    elif accountant == "all":
        shown = text.as_json(text.EpsilonAnswers(answers, question.mechanism))
    else:
        shown = text.as_json(answers[0])
    emit(shown, output)
