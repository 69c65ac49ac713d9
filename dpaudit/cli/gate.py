"""Commands of the gate: evaluate a policy, write policies and baselines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.commands import Choice, Command, Group
from dpaudit.cli.options import (
    OUTPUT,
    RUN,
    InputPath,
    OutputPath,
    format_option,
    input_name,
    option_name,
    was_given,
    with_options,
    write_result,
)
from dpaudit.cli.printing import print_message, print_text, printable_path
from dpaudit.files.regular_files import DATA_LIMIT, PRIVATE
from dpaudit.vocabulary.errors import ExitCode

if TYPE_CHECKING:
    from dpaudit.gate.policy_layers import LoadedPolicy
    from dpaudit.vocabulary.federation import FederatedConfig
    from dpaudit.vocabulary.settings import PrivacySettings
    from dpaudit.vocabulary.verdict import PolicyOverride, Verdict
    from dpaudit.workflow.gate.run_evaluation import GateSettings, RuleTimer


# ruff: noqa: E501  the options are read as a table: one option a line


PATH = click.Path(path_type=Path)
FORMATS = ("text", "json", "markdown", "junit", "sarif", "github", "html")
RECORDED_OPTIONS = (
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
EXTERNAL_EVIDENCE_OPTIONS = ("scores", "audit", "attack", "conformance", "claim_epsilon", "delta")

# fmt: off
POLICY_OPTIONS = (
    click.option("--policy", type=InputPath(".toml"), help="dpaudit.toml, or a pyproject.toml with [tool.dpaudit].  [default: both, of this folder]"),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key of the policy's files: claim.max_epsilon=2. Repeatable."),
)
GATE_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    *POLICY_OPTIONS,
    click.option("--baseline", type=PATH, help="File of dpaudit baseline write, or another run."),
    click.option("--inconclusive", type=Choice(("fail", "warn")), default="fail", show_default=True, help="Exit code of an inconclusive verdict: 3 (fail) or 0 (warn)."),
    click.option("--history", type=PATH, help="Add the verdict to the history of this folder, see dpaudit history."),
    click.option("--claim-epsilon", type=float, help="Without a RUN: the claimed epsilon."),
    click.option("--delta", type=float, default=1e-5, show_default=True, help="Without a RUN: delta of the claim."),
    click.option("--scores", type=InputPath(".csv", DATA_LIMIT), help="Without a RUN: a .csv, .parquet or .npz of score and member."),
    click.option("--audit", type=InputPath(".json"), help="Without a RUN: the JSON of dpaudit audit."),
    click.option("--attack", type=InputPath(".json"), help="Without a RUN: the JSON of dpaudit attack."),
    click.option("--conformance", type=InputPath(".json"), help="Without a RUN: the JSON of dpaudit conformance."),
    format_option(*FORMATS),
    OUTPUT,
)
# fmt: on


@click.command("gate", cls=Command)
@with_options(GATE_OPTIONS)
@click.pass_context
def gate_command(ctx: click.Context, /, **options: Any) -> None:
    """Evaluate the policy on a run or on measurements.

    Exit code: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 usage error, 4 a file of the run is missing
    or altered. If GITHUB_STEP_SUMMARY is set, a table is added to that file. One file may be
    -, standard input; scores are CSV then.

    \b
    dpaudit gate runs/mnist --baseline baseline.json
    dpaudit gate runs/mnist --format sarif -o dpaudit.sarif
    dpaudit gate --scores scores.csv --claim-epsilon 4 --delta 1e-5
    dpaudit audit --scores scores.csv --format json | \\
      dpaudit gate --audit - --claim-epsilon 4
    """
    from dpaudit.report.verdicts import VERDICT_FORMATS as WRITERS
    from dpaudit.report.verdicts.gate_result import GateResult
    from dpaudit.workflow.gate.run_evaluation import RuleTimer

    _say_what_variables_set(ctx)
    judge = _run if options["run"] is not None else _files
    timer = RuleTimer()
    verdict, loaded = judge(ctx, options, timer)
    judged = GateResult(verdict, loaded, durations=timer.durations())
    write_result(
        WRITERS[options["format_"]](judged),
        options["output"],
        mode=PRIVATE,
        outcomes=options["format_"] == "text",
    )
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        from dpaudit.report.verdicts.github import append_job_summary

        append_job_summary(Path(summary), WRITERS["markdown"](judged))
    ctx.exit(verdict.exit_code)


VerdictAndPolicy = tuple["Verdict", "LoadedPolicy"]


def _run(ctx: click.Context, options: dict[str, Any], timer: RuleTimer) -> VerdictAndPolicy:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.gate.policy_sources import load_policy
    from dpaudit.workflow.gate.run_evaluation import evaluate_run

    given = [name for name in EXTERNAL_EVIDENCE_OPTIONS if was_given(ctx, name)]
    if given:
        raise click.UsageError(f"a RUN has its own: leave out {option_name(given[0])}")
    run = open_run(options["run"])
    loaded = load_policy(
        options["policy"],
        options["assignments"],
        assignment_source=_assigner(ctx),
        path_name=_policy_name(ctx),
    )
    return evaluate_run(run, _judging(ctx, loaded, options, timer), options["history"]), loaded


def _files(ctx: click.Context, options: dict[str, Any], timer: RuleTimer) -> VerdictAndPolicy:
    from dpaudit.gate.evidence import DeclaredClaim
    from dpaudit.gate.policy_layers import LoadedPolicy
    from dpaudit.workflow.gate.policy_sources import is_policy_configured, load_policy
    from dpaudit.workflow.gate.verification import (
        DEFAULT_POLICY,
        MeasurementFiles,
        evidence_of_files,
    )

    names = ("scores", "audit", "attack", "conformance")
    if options["claim_epsilon"] is None or not any(options[name] for name in names):
        raise click.UsageError(
            "give a RUN, or --claim-epsilon with --scores, --audit, --attack or --conformance"
        )
    if options["history"] is not None:
        raise click.UsageError("--history records runs: give a RUN")
    if was_given(ctx, "policy") or options["assignments"] or is_policy_configured():
        loaded = load_policy(
            options["policy"],
            options["assignments"],
            assignment_source=_assigner(ctx),
            path_name=_policy_name(ctx),
        )
    else:
        loaded = LoadedPolicy(DEFAULT_POLICY, {})
        print_message(
            "dpaudit: no policy found: the only rule is that no measurement contradicts the claim"
        )
    measured = MeasurementFiles(**{name: options[name] for name in names})
    claim = DeclaredClaim(options["claim_epsilon"], options["delta"])
    judging = _judging(ctx, loaded, options, timer)
    return judging.verdict(evidence_of_files(claim, measured, loaded.policy)), loaded


def _judging(
    ctx: click.Context, loaded: LoadedPolicy, options: dict[str, Any], timer: RuleTimer
) -> GateSettings:
    from dpaudit.vocabulary.verdict import InconclusiveHandling
    from dpaudit.workflow.gate.baselines import read_baseline
    from dpaudit.workflow.gate.run_evaluation import GateSettings, PolicyProvenance

    warn_of_overrides(loaded)
    path = options["baseline"]
    return GateSettings(
        loaded.policy,
        None if path is None else read_baseline(path, loaded.policy),
        InconclusiveHandling(options["inconclusive"]),
        sources=PolicyProvenance.of(loaded, tuple(_options_set(ctx))),
        watch=timer.watch,
    )


def _policy_name(ctx: click.Context) -> str | None:
    path = ctx.params["policy"]
    return None if path is None else input_name(ctx, path)


def _assigner(ctx: click.Context) -> str:
    """Return what gave the assignments: the option, or a variable of the environment."""
    source = ctx.get_parameter_source("assignments")
    by_environment = source is not None and source.name == "ENVIRONMENT"
    return "$DPAUDIT_GATE_ASSIGNMENTS" if by_environment else "--set"


def _options_set(ctx: click.Context) -> Iterator[PolicyOverride]:
    """Yield the options that can change the verdict and that the user or a variable set."""
    from dpaudit.vocabulary.verdict import PolicyOverride

    for name in RECORDED_OPTIONS:
        source = ctx.get_parameter_source(name)
        if was_given(ctx, name) and source is not None:
            variable = f"$DPAUDIT_GATE_{name.upper()}"
            by = variable if source.name == "ENVIRONMENT" else "command line"
            yield PolicyOverride(option_name(name), input_name(ctx, ctx.params[name]), by)


def warn_of_overrides(loaded: LoadedPolicy) -> None:
    """Name every key of the policy that a variable or an option sets, on standard error."""
    for key, origin in sorted(loaded.overriding_keys().items()):
        print_message(f"dpaudit: {key} is set by {origin}")


def _say_what_variables_set(ctx: click.Context) -> None:
    """Name every option that the environment sets: it may loosen the gate."""
    for name, value in ctx.params.items():
        source = ctx.get_parameter_source(name)
        if source is not None and source.name == "ENVIRONMENT":
            variable = f"$DPAUDIT_GATE_{name.upper()}"
            print_message(f"dpaudit: {option_name(name)} is {value} by {variable}")


# ``dpaudit config``, ``init`` and ``baseline``: policies and baselines of the gate.


@click.group(cls=Group)
def config() -> None:
    """Print or check the policy in force."""


@config.command()
@with_options(POLICY_OPTIONS)
@click.option("--origin", is_flag=True, help="Print where each key was set.")
@OUTPUT
def show(
    policy: Path | None, assignments: tuple[str, ...], origin: bool, output: Path | None
) -> None:
    """Print all keys of the policy in force, with defaults."""
    from dpaudit.report.verdicts.text import policy_text, policy_with_origins
    from dpaudit.workflow.gate.policy_sources import load_policy

    loaded = load_policy(policy, assignments)
    write_result((policy_with_origins if origin else policy_text)(loaded), output)


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
    """Check that the policy is valid and no waiver has expired.

    SETTINGS are configuration files of dpaudit train, with or without --federated. The epsilon of
    each plan is computed
    and compared with the policy; nothing is trained. Exit code 1 if a plan fails the policy.
    """
    from dpaudit.cli.train import plan_of_file
    from dpaudit.report.verdicts.text import plan_verdict_text
    from dpaudit.workflow.gate.policy_authoring import check_policy
    from dpaudit.workflow.gate.policy_sources import load_policy

    plans = {str(path): plan_of_file(path) for path in settings}
    loaded = load_policy(policy, assignments)
    warn_of_overrides(loaded)
    verdict = check_policy(loaded.policy, plans)
    if verdict.rules:
        print_text(plan_verdict_text(verdict), outcomes=True)
        ctx.exit(verdict.exit_code)
    print_text("the policy is valid")
    ctx.exit(ExitCode.PASS)


def print_plan_verdict(ctx: click.Context, plan: PrivacySettings | FederatedConfig) -> None:
    """Print the verdict on a plan and exit with it, if the policy in force has a claim.

    Args:
        ctx: The context of the command.
        plan: The privacy settings of a run, or the settings of a federation.
    """
    from dpaudit.report.verdicts.text import plan_verdict_text
    from dpaudit.workflow.gate.policy_authoring import check_policy
    from dpaudit.workflow.gate.policy_sources import is_policy_configured, load_policy

    if not is_policy_configured():
        return
    loaded = load_policy(None)
    warn_of_overrides(loaded)
    if loaded.policy.claim is None:
        return
    verdict = check_policy(loaded.policy, {"the plan": plan})
    print_text(f"\n{plan_verdict_text(verdict)}", outcomes=True)
    ctx.exit(verdict.exit_code)


@config.command()
@OUTPUT
def schema(output: Path | None) -> None:
    """Print the JSON Schema of the policy, for editors."""
    from importlib.resources import files

    shipped = files("dpaudit.vocabulary") / "schemas" / "policy.json"
    write_result(shipped.read_text(encoding="utf-8").rstrip(), output)


# ``dpaudit init``: draft a policy from a run.


@click.command(cls=Command)
@RUN
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    default=Path("dpaudit.toml"),
    show_default=True,
    help="New file; an existing one is not replaced.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    help="Also write a baseline of RUN here, and require that later runs are no worse.",
)
def init(run: Path, output: Path, baseline: Path | None) -> None:
    """Write a first policy that RUN passes.

    It is a draft: check every line. With --baseline, the policy compares later
    runs with RUN; RUN itself has nothing to be compared with.
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.gate.policy_authoring import write_policy_draft

    write_policy_draft(open_run(run), output, baseline)
    print_text(
        f"wrote {printable_path(output)}"
        + ("" if baseline is None else f" and {printable_path(baseline)}")
    )


# ``dpaudit baseline``: results of a run that later runs are compared with.


@click.group(cls=Group)
def baseline() -> None:
    """Write a baseline that later runs are compared with."""


@baseline.command()
@RUN
@with_options(POLICY_OPTIONS)
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    default=Path("baseline.json"),
    show_default=True,
    help="An existing baseline is replaced; another file is not.",
)
def write(run: Path, policy: Path | None, assignments: tuple[str, ...], output: Path) -> None:
    """Write claim and measurements of RUN as a baseline.

    Use it with dpaudit gate --baseline. The claim is computed at the delta and by the
    accountant of the policy, if there is one. Measurements are computed from the training
    records and are not covered by any claim.
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.runs.file_io import read_optional_json
    from dpaudit.vocabulary.verdict import Outcome, Verdict
    from dpaudit.workflow.gate.baselines import baseline_of_run, write_baseline
    from dpaudit.workflow.gate.policy_sources import is_policy_configured, load_policy

    directory = open_run(run)
    asked = None
    if policy is not None or assignments or is_policy_configured():
        asked = load_policy(policy, assignments).policy
    write_baseline(output, baseline_of_run(directory, asked))
    verdict = read_optional_json(directory.verdict, Verdict)
    said = "not evaluated" if verdict is None else verdict.outcome.value
    if said != Outcome.PASS.value:
        print_message(f"dpaudit: the run of this baseline is {said}: dpaudit gate {run}")
    print_text(f"wrote {printable_path(output)}")
