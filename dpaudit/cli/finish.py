"""``dpaudit finish``: complete a run whose process died after its last step."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import RUN
from dpaudit.cli.printing import named, say


@click.command()
@RUN
@click.option("--delta", type=float, help="Delta of the claim; that of RUN's settings by default.")
def finish(run: Path, delta: float | None) -> None:
    """Write the claim or the seal that RUN lacks, if its files prove that training has ended.

    Nothing is trained. A run that has steps to take is refused: resume it.

    \b
    dpaudit finish runs/mnist
    dpaudit finish runs/own-loop --delta 1e-5
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow import finishing

    done = finishing.finish(open_run(run), delta)
    say(f"{named(run)} {done.value}")
