"""``dpaudit report``, ``compare``, ``export`` and ``history``: results of one run or of many."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.commands import Command, Group
from dpaudit.cli.options import OUTPUT, RUN, STANDARD_STREAM, format_option, write_result
from dpaudit.cli.printing import (
    print_message,
    print_text,
    printable_path,
    progress_bars,
    warn,
    warn_written,
)
from dpaudit.files.regular_files import PRIVATE
from dpaudit.vocabulary.errors import ExitCode

if TYPE_CHECKING:
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.vocabulary.verdict import PastRun


PATH = click.Path(path_type=Path)


@click.command("report", cls=Command)
@click.argument("runs", metavar="RUN [RUN_B]", nargs=-1, required=True, type=PATH)
@format_option("html", "model-card")
@click.option(
    "--history",
    type=PATH,
    help="Folder of dpaudit history: its past verdicts are shown in the report.",
)
@OUTPUT
def report_command(
    runs: tuple[Path, ...], format_: str, history: Path | None, output: Path | None
) -> None:
    """Write the HTML report of a run, or of two runs.

    The report of one run is report.html in RUN unless --output is given. The report of two
    runs compares them side by side and needs --output. A report is one file without scripts;
    it needs no network.

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
            raise click.UsageError(
                "a report of two runs is HTML without a history: leave out --format and --history"
            )
        if output is None:
            raise click.UsageError("a report of two runs needs --output")
        _report_both(open_run(runs[0]), open_run(runs[1]), output)
    else:
        raise click.UsageError(f"give one run or two, got {len(runs)}")


def _report_one(run: RunDirectory, format_: str, history: Path | None, output: Path | None) -> None:
    from dpaudit.workflow.report.run_evidence import gather_evidence

    if format_ == "model-card":
        from dpaudit.report.model_card import model_card_markdown

        write_result(model_card_markdown(gather_evidence(run)), output, mode=PRIVATE)
        return
    from dpaudit.report.report_pages import report_page

    target = output or run.report
    _require_target(target)
    with progress_bars() as progress:
        evidence = gather_evidence(run, _past(history), progress=progress)
    _write(target, report_page(evidence))


def _report_both(before: RunDirectory, after: RunDirectory, target: Path) -> None:
    from dpaudit.report.report_pages import comparison_page
    from dpaudit.workflow.report.run_evidence import gather_comparison

    _require_target(target)
    _write(target, comparison_page(gather_comparison(before, after)))


def _past(history: Path | None) -> tuple[PastRun, ...]:
    from dpaudit.runs.history_database import read_history

    return () if history is None else read_history(history)


def _require_target(target: Path) -> None:
    if str(target) == STANDARD_STREAM:
        return
    from dpaudit.runs.file_io import require_new_file

    require_new_file("output", target)


def _write(target: Path, page: str) -> None:
    from dpaudit.files.regular_files import write_bytes

    if str(target) == STANDARD_STREAM:
        print_text(page)
        return
    write_bytes(target, page.encode(errors="replace"), PRIVATE)
    print_text(f"wrote {printable_path(target)}")


# ``dpaudit compare``: differences of two runs.


@click.command(cls=Command)
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@format_option("text", "json")
@OUTPUT
def compare(before: Path, after: Path, format_: str, output: Path | None) -> None:
    """Compare two runs, and compute the effect of each change.

    A and B are run directories or files of dpaudit baseline write. For each difference,
    prints the epsilon of A with this change alone.
    """
    from dpaudit.report.text import as_json
    from dpaudit.report.verdicts.text import comparison_text
    from dpaudit.workflow.report import run_evidence

    found = run_evidence.compare_runs(before, after)
    write_result(
        as_json(found) if format_ == "json" else comparison_text(found), output, mode=PRIVATE
    )


# ``dpaudit export``: results of a run for other tools.


@click.group(cls=Group)
def export() -> None:
    """Export a finished run to MLflow or TensorBoard.

    Exports its claim, its measurements and its verdict.

    \b
    dpaudit export mlflow runs/mnist --tracking-uri http://localhost:5000
    dpaudit export tensorboard runs/mnist --folder events
    """


@export.command()
@RUN
@click.option("--tracking-uri", required=True, help="URI of the MLflow server or store.")
@click.option(
    "--experiment",
    default="dpaudit",
    show_default=True,
    help="Name of the experiment; created if it is new.",
)
def mlflow(run: Path, tracking_uri: str, experiment: str) -> None:
    """Write RUN as an MLflow run.

    Attaches claim.json and report.html. Each call creates a new MLflow run.
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.report.run_export import collect_export, export_to_mlflow

    run_id = export_to_mlflow(collect_export(open_run(run)), tracking_uri, experiment)
    print_text(f"wrote run {printable_path(run_id)} to {printable_path(tracking_uri)}")


@export.command()
@RUN
@click.option(
    "--folder",
    required=True,
    type=click.Path(path_type=Path),
    help="TensorBoard's --logdir; RUN is written to a subfolder of its name.",
)
def tensorboard(run: Path, folder: Path) -> None:
    """Write the results of RUN as TensorBoard events."""
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.report.run_export import collect_export, export_to_tensorboard

    print_text(
        f"wrote {printable_path(export_to_tensorboard(collect_export(open_run(run)), folder))}"
    )


# ``dpaudit history``: past verdicts of many runs.


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Write a plot of claims, lower bounds and attack rates: .svg or .png.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def history(
    ctx: click.Context, folder: Path, plot: Path | None, format_: str, output: Path | None
) -> None:
    """Import the verdicts of all runs in DIR and list them.

    Verdicts are stored in DIR/history.sqlite and stay there when a run is removed. Exit
    code: 0; 3 there is no verdict yet, or one is older than a measurement of its run; 4 a run
    is unreadable or altered. The others are listed.

    \b
    dpaudit gate runs/mnist; dpaudit history runs
    dpaudit history runs --plot course.svg
    """
    from dpaudit.report.text import as_json, history_text, printable_name
    from dpaudit.runs.history_database import history_file, read_history
    from dpaudit.vocabulary.verdict import RunHistory
    from dpaudit.workflow.gate.verdict_history import import_verdicts

    if plot is not None:
        _require_picture(plot)
    refused = import_verdicts(folder)
    for one in refused:
        print_message(printable_name(one.why))
    runs = read_history(folder) if history_file(folder).exists() else ()
    if plot is not None and runs:
        _draw(runs, plot)
    shown = as_json(RunHistory(runs)) if format_ == "json" else history_text(runs)
    write_result(shown, output, mode=PRIVATE, outcomes=format_ == "text")
    if not runs:
        print_message(f"{folder} holds no verdict yet: dpaudit gate RUN writes one")
    if any(not one.stale for one in refused):
        ctx.exit(ExitCode.INTEGRITY)
    ctx.exit(ExitCode.PASS if runs and not refused else ExitCode.INCONCLUSIVE)


def _require_picture(plot: Path) -> None:
    from dpaudit.report.history_figures import require_history_plot_suffix

    require_history_plot_suffix(plot)


def _draw(runs: tuple[PastRun, ...], plot: Path) -> None:
    from dpaudit.report.history_figures import write_history_plot

    write_history_plot(runs, plot)
    warn_written(plot)


# ``dpaudit run``: list the runs of a folder, or show one run.


@click.group("run", cls=Group)
def run_group() -> None:
    """List the runs of a folder, or show one run.

    \b
    dpaudit run list runs
    dpaudit run show runs/mnist
    """


@run_group.command("list")
@click.argument("folder", metavar="[FOLDER]", default=Path("runs"), type=click.Path(path_type=Path))
@format_option("text", "json")
@OUTPUT
@click.pass_context
def list_command(ctx: click.Context, folder: Path, format_: str, output: Path | None) -> None:
    """List the runs in FOLDER (default: runs).

    Prints state, steps, the upper bound on epsilon recomputed from the ledger, and the
    verdict if it is current. Writes nothing into a run. Exit code 4 if a run is damaged.
    """
    from dpaudit.report.text import as_json
    from dpaudit.report.verdicts.text import run_list_text
    from dpaudit.vocabulary.run_overview import RunState
    from dpaudit.workflow.report.run_overview import list_runs

    found = list_runs(folder)
    if not found.runs:
        warn(f"dpaudit: {folder} holds no run")
    shown = as_json(found) if format_ == "json" else run_list_text(found)
    write_result(shown, output, mode=PRIVATE, outcomes=format_ == "text")
    damaged = any(one.state is RunState.DAMAGED for one in found.runs)
    ctx.exit(ExitCode.INTEGRITY if damaged else ExitCode.PASS)


@run_group.command("show")
@RUN
@format_option("text", "json")
@OUTPUT
@click.pass_context
def show_command(ctx: click.Context, run: Path, format_: str, output: Path | None) -> None:
    """Show settings, ledger, files, claim and verdict of RUN.

    RUN may be unfinished. Of a damaged run, prints the parts that can be read and the
    problems; the exit code is 4.
    """
    from dpaudit.report.text import as_json
    from dpaudit.report.verdicts.text import run_overview_text
    from dpaudit.runs.directory import open_run
    from dpaudit.vocabulary.run_overview import RunState
    from dpaudit.workflow.report.run_overview import describe_run

    found = describe_run(open_run(run))
    shown = as_json(found) if format_ == "json" else run_overview_text(found)
    write_result(shown, output, mode=PRIVATE, outcomes=format_ == "text")
    damaged = found.summary.state is RunState.DAMAGED
    ctx.exit(ExitCode.INTEGRITY if damaged else ExitCode.PASS)
