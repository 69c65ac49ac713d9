"""``dpaudit report``: one HTML file for people, of one run or of two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.cli.printing import named, say
from dpaudit.files.writing import PRIVATE

if TYPE_CHECKING:
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.vocabulary.history import PastRun

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("runs", metavar="RUN [RUN_B]", nargs=-1, required=True, type=PATH)
@format_option("html", "model-card")
@click.option(
    "--history",
    type=PATH,
    help="A folder that dpaudit history keeps: its past verdicts are shown beside RUN.",
)
@OUTPUT
def report(runs: tuple[Path, ...], format_: str, history: Path | None, output: Path | None) -> None:
    """Write RUN's report: one HTML file that needs no network and no script.

    It goes to report.html in RUN unless --output says otherwise. Of two runs, a page that
    shows them side by side goes to --output.

    \b
    dpaudit report runs/digits
    dpaudit report runs/digits --history runs
    dpaudit report runs/digits --format model-card
    dpaudit report runs/before runs/after -o both.html
    """
    from dpaudit.runs.directory import open_run

    if len(runs) == 1:
        _report_one(open_run(runs[0]), format_, history, output)
    elif len(runs) == 2:
        if format_ != "html" or history is not None:
            raise click.UsageError("two runs make one HTML page: leave out --format and --history")
        if output is None:
            raise click.UsageError("the page of two runs is neither's own: say where with --output")
        _report_both(open_run(runs[0]), open_run(runs[1]), output)
    else:
        raise click.UsageError(f"give one run, or two to see side by side; got {len(runs)}")


def _report_one(run: RunDirectory, format_: str, history: Path | None, output: Path | None) -> None:
    from dpaudit.workflow.reporting import gather

    if format_ == "model-card":
        from dpaudit.report.model_card import model_card

        emit(model_card(gather(run)), output, mode=PRIVATE)
        return
    from dpaudit.report.html import render

    target = output or run.report
    _require_target(target)
    _write(target, render(gather(run, _past(history))))


def _report_both(before: RunDirectory, after: RunDirectory, target: Path) -> None:
    from dpaudit.report.page_comparison import render_both
    from dpaudit.workflow.reporting import gather_both

    _require_target(target)
    _write(target, render_both(gather_both(before, after)))


def _past(history: Path | None) -> tuple[PastRun, ...]:
    from dpaudit.runs.history import read_history

    return () if history is None else read_history(history)


def _require_target(target: Path) -> None:
    from dpaudit.runs.files import require_new_file

    require_new_file("output", target)


def _write(target: Path, page: str) -> None:
    from dpaudit.files.writing import write_bytes

    write_bytes(target, page.encode(errors="replace"), PRIVATE)
    say(f"wrote {named(target)}")
