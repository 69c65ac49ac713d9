"""``dpaudit gate``: claim, measurement and policy, compared; the exit code is the verdict."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import (
    OUTPUT,
    emit,
    format_option,
    option_name,
    was_given,
    with_options,
)
from dpaudit.cli.printing import warn
from dpaudit.files.writing import PRIVATE

if TYPE_CHECKING:
    from dpaudit.gate.layers import LoadedPolicy
    from dpaudit.vocabulary.basis import Override
    from dpaudit.vocabulary.verdict import Verdict
    from dpaudit.workflow.judging import Judging

PATH = click.Path(path_type=Path)
FORMATS = ("text", "json", "markdown", "junit", "sarif", "github", "html")
RECORDED = (
    "policy",
    "baseline",
    "inconclusive",
    "scores",
    "audit",
    "attack",
    "conformance",
    "claim_epsilon",
    "delta",
)
WITHOUT_RUN = ("scores", "audit", "attack", "conformance", "claim_epsilon", "delta")

# fmt: off
POLICY_OPTIONS = (
    click.option("--policy", type=PATH, help="dpaudit.toml, or a pyproject.toml with [tool.dpaudit].  [default: both, of this folder]"),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Above the policy's files: claim.max_epsilon=2. Repeatable."),
)
GATE_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    *POLICY_OPTIONS,
    click.option("--baseline", type=PATH, help="What dpaudit baseline write wrote, or another run."),
    click.option("--inconclusive", type=click.Choice(("fail", "warn")), default="fail", show_default=True, help="What becomes of a verdict that cannot be told."),
    click.option("--history", type=PATH, help="Remember the verdict in this folder: dpaudit history."),
    click.option("--claim-epsilon", type=float, help="Without a RUN: what is claimed."),
    click.option("--delta", type=float, default=1e-5, show_default=True, help="Without a RUN: of the claim."),
    click.option("--scores", type=PATH, help="Without a RUN: a .csv, .parquet or .npz of score and member."),
    click.option("--audit", type=PATH, help="Without a RUN: the JSON of dpaudit audit."),
    click.option("--attack", type=PATH, help="Without a RUN: the JSON of dpaudit attack."),
    click.option("--conformance", type=PATH, help="Without a RUN: the JSON of dpaudit conformance."),
    format_option(*FORMATS),
    OUTPUT,
)
# fmt: on


@click.command()
@with_options(GATE_OPTIONS)
@click.pass_context
def gate(ctx: click.Context, /, **options: Any) -> None:
    """Judge RUN, or measurements alone, by a policy.

    Exit code: 0 the policy holds, 1 it is violated, 3 that cannot be told, 2 bad usage,
    4 a file of the run is missing or altered. Where GITHUB_STEP_SUMMARY is set, a table is
    added to that file.

    \b
    dpaudit gate runs/mnist --baseline baseline.json
    dpaudit gate runs/mnist --format sarif -o dpaudit.sarif
    dpaudit gate --scores scores.csv --claim-epsilon 4 --delta 1e-5
    """
    from dpaudit.report.verdicts.formats import FORMATS as WRITERS
    from dpaudit.report.verdicts.judged import Judged

    _say_what_variables_set(ctx)
    judge = _run if options["run"] is not None else _files
    verdict, loaded = judge(ctx, options)
    judged = Judged(verdict, loaded)
    emit(WRITERS[options["format_"]](judged), options["output"], mode=PRIVATE)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        from dpaudit.report.verdicts.summary import append_summary

        append_summary(Path(summary), WRITERS["markdown"](judged))
    ctx.exit(verdict.exit_code)


Judgement = tuple["Verdict", "LoadedPolicy"]


def _run(ctx: click.Context, options: dict[str, Any]) -> Judgement:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.judging import judge_run
    from dpaudit.workflow.policies import load_policy

    given = [name for name in WITHOUT_RUN if was_given(ctx, name)]
    if given:
        raise click.UsageError(f"a RUN has its own: leave out {option_name(given[0])}")
    run = open_run(options["run"])
    loaded = load_policy(options["policy"], options["assignments"], assigned_by=_assigner(ctx))
    return judge_run(run, _judging(ctx, loaded, options), options["history"]), loaded


def _files(ctx: click.Context, options: dict[str, Any]) -> Judgement:
    from dpaudit.gate.evidence import Declared
    from dpaudit.gate.layers import LoadedPolicy
    from dpaudit.workflow.measuring import OWN_POLICY, Measured, evidence_of_files
    from dpaudit.workflow.policies import load_policy, some_policy

    names = ("scores", "audit", "attack", "conformance")
    if options["claim_epsilon"] is None or not any(options[name] for name in names):
        raise click.UsageError(
            "give a RUN, or --claim-epsilon with --scores, --audit, --attack or --conformance"
        )
    if options["history"] is not None:
        raise click.UsageError("--history remembers runs: give a RUN")
    if was_given(ctx, "policy") or options["assignments"] or some_policy():
        loaded = load_policy(options["policy"], options["assignments"], assigned_by=_assigner(ctx))
    else:
        loaded = LoadedPolicy(OWN_POLICY, {})
        warn("dpaudit: no policy is here: no measurement may contradict the claim")
    measured = Measured(**{name: options[name] for name in names})
    claim = Declared(options["claim_epsilon"], options["delta"])
    judging = _judging(ctx, loaded, options)
    return judging.verdict(evidence_of_files(claim, measured, loaded.policy)), loaded


def _judging(ctx: click.Context, loaded: LoadedPolicy, options: dict[str, Any]) -> Judging:
    from dpaudit.vocabulary.verdict import OnInconclusive
    from dpaudit.workflow.baselines import read_baseline
    from dpaudit.workflow.judging import Judging, PolicySources

    say_what_stands_above_files(loaded)
    path = options["baseline"]
    return Judging(
        loaded.policy,
        None if path is None else read_baseline(path, loaded.policy),
        OnInconclusive(options["inconclusive"]),
        sources=PolicySources.of(loaded, tuple(_options_set(ctx))),
    )


def _assigner(ctx: click.Context) -> str:
    """Return what gave the assignments: the option, or a variable of the environment."""
    source = ctx.get_parameter_source("assignments")
    by_environment = source is not None and source.name == "ENVIRONMENT"
    return "$DPAUDIT_GATE_ASSIGNMENTS" if by_environment else "--set"


def _options_set(ctx: click.Context) -> Iterator[Override]:
    """Yield the options that can change the verdict and that the user or a variable set."""
    from dpaudit.vocabulary.basis import Override

    for name in RECORDED:
        source = ctx.get_parameter_source(name)
        if was_given(ctx, name) and source is not None:
            variable = f"$DPAUDIT_GATE_{name.upper()}"
            by = variable if source.name == "ENVIRONMENT" else "command line"
            yield Override(option_name(name), str(ctx.params[name]), by)


def say_what_stands_above_files(loaded: LoadedPolicy) -> None:
    """Name every key of the policy that a variable or an option sets, on standard error."""
    for key, origin in sorted(loaded.above_files().items()):
        warn(f"dpaudit: {key} is set by {origin}")


def _say_what_variables_set(ctx: click.Context) -> None:
    """Name every option that the environment sets: it may loosen the gate."""
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "ENVIRONMENT":
            variable = f"$DPAUDIT_GATE_{name.upper()}"
            warn(f"dpaudit: {option_name(name)} is {value} by {variable}")
