"""``dpaudit init``: a first policy, from a run."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import RUN
from dpaudit.cli.printing import named, say


@click.command()
@RUN
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("dpaudit.toml"),
    show_default=True,
    help="A new file: one that exists is refused.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Write the figures of RUN here, too, and demand that later runs are no worse.",
)
def init(run: Path, output: Path, baseline: Path | None) -> None:
    """Write a policy that RUN passes, as a start: read every line of it."""
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.drafting import write_draft

    write_draft(open_run(run), output, baseline)
    say(f"wrote {named(output)}" + ("" if baseline is None else f" and {named(baseline)}"))
