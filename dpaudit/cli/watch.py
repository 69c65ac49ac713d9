"""``dpaudit watch``: a run while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpaudit.cli.options import RUN
from dpaudit.cli.printing import say

if TYPE_CHECKING:
    from dpaudit.gate.policy import Policy
    from dpaudit.report.watch_text import Glimpse
    from dpaudit.workflow.observing import Observer


@click.command()
@RUN
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Whose limit counts.  [default: the one in force, where there is a dpaudit.toml]",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Look once and end.")
def watch(run: Path, policy: Path | None, every: float, once: bool) -> None:
    """Show RUN while it trains: epsilon spent and left, steps, accuracy, projected end.

    It only reads, and ends when the run is sealed. Where standard output is no terminal, each
    look is a line.

    \b
    dpaudit watch runs/mnist
    dpaudit watch runs/mnist --once
    """
    from dpaudit.report.watch_text import glimpse_line, glimpse_text
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.observing import Observer

    observer = Observer(open_run(run), _policy(policy), time.time)
    if once:
        say(glimpse_text(observer.look()))
    elif sys.stdout.isatty():
        from dpaudit.report.watch_screen import show

        show(_looks(observer, every))
    else:
        for seen in _looks(observer, every):
            say(glimpse_line(seen))


def _looks(observer: Observer, every: float) -> Iterator[Glimpse]:
    """Return a look each few seconds, until the run is sealed."""
    while True:
        seen = observer.look()
        yield seen
        if seen.finished:
            return
        time.sleep(every)


def _policy(path: Path | None) -> Policy | None:
    """Return the policy that is named, or the one in force, where the working directory has one."""
    from dpaudit.workflow.policies import OWN_FILE, load_policy, read_policy

    if path is not None:
        return read_policy(path)
    return load_policy(None).policy if Path(OWN_FILE).is_file() else None
