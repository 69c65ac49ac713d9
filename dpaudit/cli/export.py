"""``dpaudit export``: tell other tools of a run."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import RUN
from dpaudit.cli.printing import named, say


@click.group()
def export() -> None:
    """Tell MLflow or TensorBoard of a finished run: its claim, what was measured, its verdict.

    \b
    dpaudit export mlflow runs/mnist --tracking-uri http://localhost:5000
    dpaudit export tensorboard runs/mnist --folder events
    """


@export.command()
@RUN
@click.option("--tracking-uri", required=True, help="Of the MLflow server or store.")
@click.option("--experiment", default="dpaudit", show_default=True, help="Made if it is new.")
def mlflow(run: Path, tracking_uri: str, experiment: str) -> None:
    """Write RUN as an MLflow run, its claim.json and report.html with it.

    Called twice, it writes two.
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.exporting import exported
    from dpaudit.workflow.to_mlflow import to_mlflow

    run_id = to_mlflow(exported(open_run(run)), tracking_uri, experiment)
    say(f"wrote run {named(run_id)} to {named(tracking_uri)}")


@export.command()
@RUN
@click.option(
    "--folder",
    required=True,
    type=click.Path(path_type=Path),
    help="TensorBoard's --logdir; RUN gets a folder of its name there.",
)
def tensorboard(run: Path, folder: Path) -> None:
    """Write RUN's figures as events for TensorBoard."""
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.exporting import exported
    from dpaudit.workflow.to_tensorboard import to_tensorboard

    say(f"wrote {named(to_tensorboard(exported(open_run(run)), folder))}")
