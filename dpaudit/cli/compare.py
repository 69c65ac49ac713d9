"""``dpaudit compare``: two runs, and why they differ."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import OUTPUT, emit, format_option
from dpaudit.files.writing import PRIVATE

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@format_option("text", "json")
@OUTPUT
def compare(before: Path, after: Path, format_: str, output: Path | None) -> None:
    """Say how run B differs from run A, by cause, and what each cause by itself costs.

    A and B are run directories, or what dpaudit baseline write wrote.
    """
    from dpaudit.report.comparison_text import comparison_text
    from dpaudit.report.text import as_json
    from dpaudit.workflow import comparing

    found = comparing.compare(before, after)
    emit(as_json(found) if format_ == "json" else comparison_text(found), output, mode=PRIVATE)
