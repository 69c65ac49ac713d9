"""``dpaudit report``: one HTML file for people."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import OUTPUT, RUN


@click.command()
@RUN
@OUTPUT
def report(run: Path, output: Path | None) -> None:
    """Write RUN's report: one HTML file that needs no network and no script.

    It goes to report.html in RUN unless --output says otherwise.
    """
    from dpaudit.report.html import render
    from dpaudit.runs.directory import open_run
    from dpaudit.runs.files import require_new_file, write_bytes
    from dpaudit.workflow.reporting import gather

    directory = open_run(run)
    target = output or directory.report
    require_new_file("output", target)
    write_bytes(target, render(gather(directory)).encode())
    click.echo(f"wrote {target}")
