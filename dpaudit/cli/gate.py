"""``dpaudit gate``: claim, measurement and policy, compared; the exit code is the verdict."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import OUTPUT, RUN, emit, format_option


@click.command()
@RUN
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    default=Path("dpaudit.toml"),
    show_default=True,
    help="dpaudit.toml, or a pyproject.toml with [tool.dpaudit].",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def gate(ctx: click.Context, run: Path, policy: Path, format_: str, output: Path | None) -> None:
    """Judge RUN by a policy.

    Exit code: 0 the policy holds, 1 it is violated, 3 that cannot be told, 2 bad usage,
    4 a file of the run is missing or altered.
    """
    from dpaudit.gate.policy import read_policy
    from dpaudit.report import text
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.judging import judge_run

    verdict = judge_run(open_run(run), read_policy(policy))
    emit(text.as_json(verdict) if format_ == "json" else text.verdict_text(verdict), output)
    ctx.exit(verdict.exit_code)
