"""``dpaudit audit``: what a finished run really gives away."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import OUTPUT, RUN, emit, format_option


@click.command()
@RUN
@click.option(
    "--confidence",
    type=float,
    default=0.95,
    show_default=True,
    help="Probability with which all lower bounds hold together.",
)
@format_option("text", "json")
@OUTPUT
def audit(run: Path, confidence: float, format_: str, output: Path | None) -> None:
    """Attack RUN: membership inference, and lower bounds on epsilon from its canaries.

    What is found comes from the training records and is not covered by the run's claim.
    """
    from dpaudit.report import text
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.auditing import audit_run

    report = audit_run(open_run(run), confidence=confidence)
    emit(text.as_json(report) if format_ == "json" else text.audit_text(report), output)
