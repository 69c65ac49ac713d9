"""``dpaudit conformance``: does a trainer do what it claims?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.options import OUTPUT, emit, format_option, required
from dpaudit.files.writing import PRIVATE

if TYPE_CHECKING:
    from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim


@click.command()
@click.argument("trainer", metavar="RUN|pkg.mod:make_trainer")
@click.option(
    "--claim",
    type=click.Path(path_type=Path),
    help="What is claimed of each step, in TOML; of a RUN by default what its settings say.",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    help="An .npz with the arrays x and y, for a trainer that is not a run's.",
)
@click.option(
    "--probes",
    type=click.Path(path_type=Path),
    help="An .npz with the arrays x and y: records to replay in place of the usual probes, e.g. "
    "such whose gradients are longer than the clip norm.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="The run that make_trainer made: its ledger is held against the claim, too, and what "
    "is found is written into it, for dpaudit gate.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def conformance(
    ctx: click.Context,
    trainer: str,
    claim: Path | None,
    records: Path | None,
    probes: Path | None,
    run: Path | None,
    format_: str,
    output: Path | None,
) -> None:
    """Replay a trainer's steps, and test noise and sampling against what is claimed.

    Exit code: 0 it does what it claims, as far as this could see; 1 it does not; 3 that cannot
    be told.

    \b
    dpaudit conformance runs/mnist
    dpaudit conformance my_package.training:make_trainer --claim claim.toml --records records.npz
    """
    from dpaudit.report import text

    result = _checked(trainer, claim, records, probes, run)
    emit(
        text.as_json(result) if format_ == "json" else text.conformance_text(result),
        output,
        mode=PRIVATE,
    )
    ctx.exit(result.exit_code)


def _checked(
    trainer: str,
    claim: Path | None,
    records: Path | None,
    probes: Path | None,
    run: Path | None,
) -> ConformanceResult:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.conforming import check_factory, check_run, read_claim

    asked: StepClaim | None = None if claim is None else read_claim(claim)
    if ":" in trainer and not Path(trainer).exists():
        made = None if run is None else open_run(run)
        return check_factory(trainer, required("claim", asked), records, made, probes)
    if run is not None:
        raise click.UsageError("--run goes with make_trainer: a RUN has a trainer of its own")
    return check_run(open_run(Path(trainer)), asked, probes)
