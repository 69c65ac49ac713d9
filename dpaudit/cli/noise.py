"""``dpaudit noise``: the least noise for a target epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.plan import rate_and_steps, scheduled_options
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.ledger import Sampling


@click.command()
@scheduled_options
@click.option("--target-epsilon", type=float, required=True, help="Epsilon not to exceed.")
@click.option("--delta", type=float, required=True, help="Delta of the statement.")
@click.option(
    "--accountant",
    type=click.Choice(["pld", "rdp", "naive"]),
    default="pld",
    show_default=True,
    help="Whose upper bound must meet the target.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def noise(
    ctx: click.Context,
    /,
    target_epsilon: float,
    delta: float,
    accountant: str,
    sampling: str,
    adjacency: str,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Say how much noise a plan needs; the answer itself was priced and meets the target.

    \b
    dpaudit noise --sampling-rate 0.01 --steps 1000 --target-epsilon 2 --delta 1e-5
    dpaudit noise --dataset-size 60000 --batch-size 256 --epochs 60 --target-epsilon 3 --delta 1e-5
    """
    from dpaudit.report import text
    from dpaudit.workflow import questions

    answer = questions.least_noise(
        rate=rate_and_steps(ctx),
        sampling=Sampling(sampling),
        adjacency=Adjacency(adjacency),
        target_epsilon=target_epsilon,
        delta=delta,
        accountant=accountant,
    )
    emit(text.as_json(answer) if format_ == "json" else text.noise_text(answer), output)
