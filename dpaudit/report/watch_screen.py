"""What is seen of a run while it trains, on a terminal: one picture, drawn over the last one."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.report.watch_text import Glimpse, Stage, glimpse_rows
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
STYLES = {Stage.SILENT: "bold yellow", Stage.FINISHED: "bold green"}


def show(glimpses: Iterator[Glimpse], console: Console | None = None) -> None:
    """Draw each glimpse in place of the last one; the last one stays.

    Colours are left out where NO_COLOR is set.
    """
    with Live(console=console or Console(), auto_refresh=False) as live:
        for seen in glimpses:
            live.update(picture(seen), refresh=True)


def picture(seen: Glimpse) -> Table:
    """Return what is seen over a bar of the steps; names are shown as they are."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, words in glimpse_rows(seen):
        table.add_row(Text(name), Text(words, style=_style(seen, name)))
    if seen.steps is not None:
        table.add_row("", _bar(seen.steps_done, seen.steps))
    return table


def _bar(done: int, steps: int) -> ProgressBar:
    return ProgressBar(
        total=steps,
        completed=done,
        width=BAR_WIDTH,
        complete_style="cyan",
        finished_style="green",
    )


def _style(seen: Glimpse, name: str) -> str:
    over = seen.limit is not None and not (seen.projected or 0.0) <= seen.limit.epsilon
    if over and name.startswith("epsilon"):
        return "bold red"
    return STYLES.get(seen.stage, "") if name == "run" else ""
