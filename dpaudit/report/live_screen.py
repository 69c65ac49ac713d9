"""Live terminal display of a run while it trains."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.report.run_status import RunStage, RunStatus, status_rows
from dpaudit.vocabulary.errors import MissingExtra

try:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text
except ImportError as error:  # pragma: no cover - needs an environment without rich
    raise MissingExtra("rich", "watch") from error

BAR_WIDTH = 40
STAGE_STYLES = {RunStage.SILENT: "bold yellow", RunStage.FINISHED: "bold green"}


def show_live(statuses: Iterator[RunStatus], console: Console | None = None) -> None:
    """Show each status in place of the one before; the last one stays on the terminal.

    Args:
        statuses: Successive states of one run; the display follows them until they end.
        console: Where to draw; None for standard output. With NO_COLOR set, no colours.
    """
    with Live(console=console or Console(), auto_refresh=False) as live:
        for status in statuses:
            live.update(status_table(status), refresh=True)


def status_table(status: RunStatus) -> Table:
    """Format a status as a table, with a progress bar of the steps below.

    Args:
        status: State of the run; its strings are shown as text, never as rich markup.

    Returns:
        One row per quantity; the bar is the last row where the number of steps is known.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, words in status_rows(status):
        table.add_row(Text(name), Text(words, style=_style(status, name)))
    if status.steps is not None:
        table.add_row("", _bar(status.steps_done, status.steps))
    return table


def _bar(done: int, steps: int) -> ProgressBar:
    return ProgressBar(
        total=steps,
        completed=done,
        width=BAR_WIDTH,
        complete_style="cyan",
        finished_style="green",
    )


def _style(status: RunStatus, name: str) -> str:
    """Return the style of one row: red for an epsilon above the limit, NaN included."""
    over = status.limit is not None and not (status.projected or 0.0) <= status.limit.epsilon
    if over and name.startswith("epsilon"):
        return "bold red"
    return STAGE_STYLES.get(status.stage, "") if name == "run" else ""
