"""``dpaudit split``: the noise of several queries that share a privacy budget."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.commands import Choice, Command
from dpaudit.cli.options import OUTPUT, format_option, write_result
from dpaudit.vocabulary.privacy_terms import Adjacency

ACCOUNTANTS = ("naive", "rdp", "pld")


@click.command(cls=Command)
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True)
@click.option(
    "--target-epsilon",
    type=float,
    required=True,
    help="Largest epsilon of all queries together, in nats.",
)
@click.option(
    "--delta",
    type=float,
    required=True,
    help="Delta of --target-epsilon; 0 for Laplace noise alone.",
)
@click.option(
    "--adjacency",
    type=Choice([adjacency.value for adjacency in Adjacency]),
    default=Adjacency.ADD_OR_REMOVE_ONE.value,
    show_default=True,
    help="Which data sets are neighbors.",
)
@click.option(
    "--accountant",
    type=Choice(ACCOUNTANTS),
    default="pld",
    show_default=True,
    help="Accountant whose bound must meet the target.",
)
@format_option("text", "json")
@OUTPUT
def split(
    queries: tuple[str, ...],
    target_epsilon: float,
    delta: float,
    adjacency: str,
    accountant: str,
    format_: str,
    output: Path | None,
) -> None:
    """Split an epsilon and delta over several queries.

    QUERY is NAME=WEIGHT, and after commas noise=laplace (default: gaussian),
    sensitivity=NUMBER (1) and times=COUNT (1). A query of twice the weight takes
    twice the share of the budget. The accountant prices all queries together.

    The sensitivity of Gaussian noise is that of one record added or removed, also
    under replace-one. That of Laplace noise is the one between neighbors.

    \b
    dpaudit split sum=2,sensitivity=10 histogram=1,noise=laplace \\
                  --target-epsilon 1 --delta 1e-6
    """
    from dpaudit.report import text
    from dpaudit.workflow import split as workflow

    answer = workflow.split_answer(
        workflow.parse_queries(queries),
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=Adjacency(adjacency),
        accountant=accountant,
    )
    write_result(text.as_json(answer) if format_ == "json" else text.split_text(answer), output)
