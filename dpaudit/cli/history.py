"""``dpaudit history``: the verdicts of many runs, kept and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.printing import warn
from dpaudit.files.writing import PRIVATE
from dpaudit.vocabulary.errors import ExitCode

if TYPE_CHECKING:
    from dpaudit.vocabulary.history import PastRun


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw claims, lower bounds and attack rates over the runs: .svg or .png.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def history(
    ctx: click.Context, folder: Path, plot: Path | None, format_: str, output: Path | None
) -> None:
    """Take up the verdicts of all runs in DIR, and show these and all earlier ones.

    They are kept in DIR/history.sqlite, also when a run is removed. Exit code: 0, 3 there is no
    verdict yet, 4 a run is unreadable or altered (the others are shown).

    \b
    dpaudit gate runs/mnist; dpaudit history runs
    dpaudit history runs --plot course.svg
    """
    from dpaudit.report.history_text import history_text, one_line
    from dpaudit.report.text import as_json
    from dpaudit.runs.history import history_file, read_history
    from dpaudit.vocabulary.history import History
    from dpaudit.workflow.histories import take_up

    if plot is not None:
        _require_picture(plot)
    refused = take_up(folder)
    for why in refused:
        warn(one_line(why))
    runs = read_history(folder) if history_file(folder).exists() else ()
    if plot is not None and runs:
        _draw(runs, plot)
    emit(as_json(History(runs)) if format_ == "json" else history_text(runs), output, mode=PRIVATE)
    if not runs:
        warn(f"{folder} holds no verdict yet: dpaudit gate RUN makes one")
    ctx.exit(ExitCode.INTEGRITY if refused else ExitCode.HOLDS if runs else ExitCode.INCONCLUSIVE)


def _require_picture(plot: Path) -> None:
    from dpaudit.report.history_figure import require_picture

    require_picture(plot)


def _draw(runs: tuple[PastRun, ...], plot: Path) -> None:
    from dpaudit.report.history_figure import write_history

    write_history(runs, plot)
