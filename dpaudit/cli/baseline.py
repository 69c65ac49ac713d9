"""``dpaudit baseline``: the figures of a run, to compare later runs with."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.gate import POLICY_OPTIONS
from dpaudit.cli.options import RUN, with_options
from dpaudit.cli.printing import named, say, warn


@click.group()
def baseline() -> None:
    """Keep the figures of a run, for later runs to be compared with."""


@baseline.command()
@RUN
@with_options(POLICY_OPTIONS)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("baseline.json"),
    show_default=True,
    help="Replaced if it is a baseline; anything else is refused.",
)
def write(run: Path, policy: Path | None, assignments: tuple[str, ...], output: Path) -> None:
    """Write the claim of RUN, what it booked and what was measured, for dpaudit gate --baseline.

    The claim is the one that the policy asks for, where there is a policy. What was measured
    comes from the training records and is covered by no claim.
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.runs.files import read_if_there
    from dpaudit.vocabulary.verdict import Outcome, Verdict
    from dpaudit.workflow.baselines import baseline_of_run, write_baseline
    from dpaudit.workflow.policies import load_policy, some_policy

    directory = open_run(run)
    asked = None
    if policy is not None or assignments or some_policy():
        asked = load_policy(policy, assignments).policy
    write_baseline(output, baseline_of_run(directory, asked))
    verdict = read_if_there(directory.verdict, Verdict)
    said = "never judged" if verdict is None else verdict.outcome.value
    if said != Outcome.HOLDS.value:
        warn(f"dpaudit: the run of this baseline is {said}: dpaudit gate {run}")
    say(f"wrote {named(output)}")
