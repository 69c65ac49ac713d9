"""``dpaudit config``: the policy in force, where each key comes from, and whether it is valid."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.gate import POLICY_OPTIONS, say_what_stands_above_files
from dpaudit.cli.options import OUTPUT, emit, with_options
from dpaudit.cli.printing import say
from dpaudit.vocabulary.errors import ExitCode


@click.group()
def config() -> None:
    """Show and check the policy in force."""


@config.command()
@with_options(POLICY_OPTIONS)
@click.option("--origin", is_flag=True, help="Say where each key was set.")
@OUTPUT
def show(
    policy: Path | None, assignments: tuple[str, ...], origin: bool, output: Path | None
) -> None:
    """Print every key of the policy in force, defaults included."""
    from dpaudit.report.policy_text import policy_text, policy_with_origins
    from dpaudit.workflow.policies import load_policy

    loaded = load_policy(policy, assignments)
    emit((policy_with_origins if origin else policy_text)(loaded), output)


@config.command()
@click.argument("settings", nargs=-1, type=click.Path(path_type=Path))
@with_options(POLICY_OPTIONS)
@click.pass_context
def check(
    ctx: click.Context,
    settings: tuple[Path, ...],
    policy: Path | None,
    assignments: tuple[str, ...],
) -> None:
    """Check the policy: that it is valid, and that no waiver expired.

    SETTINGS are configuration files of dpaudit train: the epsilon that each plans is held
    against the policy, before anything is trained. Exit code 1 where it would be violated.
    """
    from dpaudit.cli.train import settings_of
    from dpaudit.report.verdicts.text import verdict_text
    from dpaudit.workflow.checking import check_policy
    from dpaudit.workflow.policies import load_policy

    plans = {str(path): settings_of(path).privacy for path in settings}
    loaded = load_policy(policy, assignments)
    say_what_stands_above_files(loaded)
    verdict = check_policy(loaded.policy, plans)
    if verdict.rules:
        say(verdict_text(verdict))
        ctx.exit(verdict.exit_code)
    say("the policy is valid")
    ctx.exit(ExitCode.HOLDS)


@config.command()
@OUTPUT
def schema(output: Path | None) -> None:
    """Print the JSON Schema of the policy, for editors."""
    from importlib.resources import files

    shipped = files("dpaudit.vocabulary") / "schemas" / "policy.json"
    emit(shipped.read_text(encoding="utf-8").rstrip(), output)
