"""``dpaudit sweep``: epsilon over a grid of plans."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.commands import Choice, Command
from dpaudit.cli.options import OUTPUT, format_option, write_bytes_result, write_result
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency


@click.command(cls=Command)
@click.option(
    "--sampling-rate", required=True, metavar="VALUES", help="Probability of being in a batch."
)
@click.option(
    "--noise-multiplier",
    required=True,
    metavar="VALUES",
    help="Standard deviation of the noise divided by the clip norm.",
)
@click.option("--steps", required=True, metavar="VALUES", help="Number of noisy steps.")
@click.option("--delta", required=True, metavar="VALUES", help="Delta of the guarantee.")
@click.option(
    "--adjacency",
    type=Choice([adjacency.value for adjacency in Adjacency]),
    default=Adjacency.ADD_OR_REMOVE_ONE.value,
    show_default=True,
    help="Which data sets are neighbors.",
)
@format_option("csv", "parquet")
@OUTPUT
def sweep(
    sampling_rate: str,
    noise_multiplier: str,
    steps: str,
    delta: str,
    adjacency: str,
    format_: str,
    output: Path | None,
) -> None:
    """Compute epsilon for every combination of plans.

    VALUES is a list as 1,2,5, or a geometric range LOW:HIGH:COUNT as 0.5:4:8. Every row has a lower
    and an upper bound of epsilon by the accountant pld. An upper bound is inf where none can be
    certified.

    \b
    dpaudit sweep --sampling-rate 0.01 --noise-multiplier 0.6:3:20 \\
                  --steps 100:10000:20 --delta 1e-5,1e-6 --output sweep.csv
    """
    from dpaudit.workflow import sweep as workflow

    if format_ == "parquet" and output is None:
        raise InvalidArgument("output", "standard output", "a file for parquet: --output FILE")
    table = workflow.sweep(
        workflow.parse_values("sampling_rate", sampling_rate),
        workflow.parse_values("noise_multiplier", noise_multiplier),
        workflow.parse_values("steps", steps, whole=True),
        workflow.parse_values("delta", delta),
        adjacency=Adjacency(adjacency),
    )
    if format_ == "parquet" and output is not None:
        write_bytes_result(table.as_parquet(), output)
    else:
        write_result(table.as_csv(), output)
