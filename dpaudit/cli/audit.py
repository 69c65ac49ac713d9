"""``dpaudit audit``: what a run, or any model with canaries, really gives away."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import OUTPUT, TRUST_MODEL_CODE, emit, format_option, with_options
from dpaudit.files.writing import PRIVATE

if TYPE_CHECKING:
    from dpaudit.vocabulary.audit import AuditReport
    from dpaudit.workflow.auditing_planted import Scored
    from dpaudit.workflow.auditing_scores import ScoreAudit

PATH = click.Path(path_type=Path)
VIEWS = ("every-step", "final-iterate")

# fmt: off
AUDIT_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    click.option("--canaries", type=PATH, help="Made by dpaudit canaries make; with --scores or --checkpoint, of a RUN --scores or --model."),
    click.option("--scores", type=PATH, help="A .csv, .parquet or .npz: id and score of every canary; without --canaries, score and member."),
    click.option("--checkpoint", type=PATH, help="Score the canaries by this model's losses: .safetensors or a state_dict in .pt (both with --model), .onnx, .skops, or a program (.pt, .pt2; --trust-model-code)."),
    TRUST_MODEL_CODE,
    click.option("--model", help="package.module:factory of the weights in --checkpoint, or of a RUN's model."),
    click.option("--delta", type=float, default=1e-5, show_default=True, help="A RUN has its own."),
    click.option("--claim-epsilon", type=float, help="The claim that scores are held against.  [default: none; a RUN has its own]"),
    click.option("--view", type=click.Choice(VIEWS), default=VIEWS[0], show_default=True, help="What of a RUN's gradient canaries is read: all steps, or their sum, as plain SGD at one learning rate ships it."),
    click.option("--confidence", type=float, default=0.95, show_default=True, help="Probability with which all lower bounds hold together."),
    click.option("--plot", type=PATH, help="Draw the bounds against the claim into this .svg."),
    format_option("text", "json"),
    OUTPUT,
)
# fmt: on


@click.command()
@with_options(AUDIT_OPTIONS)
def audit(**options: Any) -> None:
    """Attack RUN: membership inference, and lower bounds on epsilon from its canaries.

    Without a RUN: canaries that another framework trained on, or scores alone. What is found
    comes from the training records and is not covered by any claim.

    \b
    dpaudit audit runs/mnist
    dpaudit audit runs/mine --canaries canaries.npz --scores scores.csv
    dpaudit audit runs/mine --canaries canaries.npz --model net:make
    dpaudit audit --canaries canaries.npz --scores scores.csv --claim-epsilon 3
    dpaudit audit --canaries canaries.npz --checkpoint model.safetensors --model net:make
    dpaudit audit --scores scores.csv --claim-epsilon 4
    """
    from dpaudit.report import text

    report, claimed, further = _run(options) if options["run"] is not None else _others(options)
    if options["plot"] is not None:
        _plot(report, claimed, options)
    said = text.as_json(report) if options["format_"] == "json" else text.audit_text(report)
    whole = "\n".join([said, *further]) if options["format_"] == "text" else said
    emit(whole, options["output"], mode=PRIVATE)


Found = tuple["AuditReport", float | None, list[str]]
"""The report, what was claimed, and what else is to be said in text."""


def _run(options: dict[str, Any]) -> Found:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.auditing import audit_run, claimed_epsilon

    run = open_run(options["run"])
    report = audit_run(
        run, confidence=options["confidence"], view=options["view"], planted=_scored(options)
    )
    return report, claimed_epsilon(run), []


def _scored(options: dict[str, Any]) -> Scored | None:
    """Return the canaries beside a RUN's own, and what scores them; None where none are given."""
    from dpaudit.workflow.auditing_planted import Scored

    canaries, scores = options["canaries"], options["scores"]
    checkpoint, model = options["checkpoint"], options["model"]
    by_model = checkpoint is not None or model is not None
    if canaries is None:
        if scores is not None or by_model:
            raise click.UsageError("with a RUN, give --canaries beside --scores or --model")
        return None
    if (scores is not None) == by_model:
        raise click.UsageError(
            "a RUN's --canaries go with one of --scores and --model, the factory of its model"
        )
    return Scored(canaries, scores, model, checkpoint)


def _others(options: dict[str, Any]) -> Found:
    from dpaudit.workflow import auditing_scores
    from dpaudit.workflow.auditing_scores import ScoreAudit

    asked = ScoreAudit(options["delta"], options["confidence"], options["claim_epsilon"])
    scores, canaries, checkpoint = (options[n] for n in ("scores", "canaries", "checkpoint"))
    further: list[str] = []
    if canaries is None:
        if scores is None or checkpoint is not None:
            raise click.UsageError("give a RUN, --scores, or --canaries with scores or a model")
        report = auditing_scores.audit_score_file(scores, asked)
    elif (scores is None) == (checkpoint is None):
        raise click.UsageError("--canaries goes with one of --scores and --checkpoint")
    elif scores is not None:
        report = auditing_scores.audit_canary_scores(canaries, scores, asked)
        further += _exposed(canaries, scores)
    else:
        report = auditing_scores.audit_canary_model(
            canaries,
            checkpoint,
            options["model"],
            asked,
            trust_model_code=options["trust_model_code"],
        )
    return report, asked.claimed_epsilon, [*_against_claim(report, asked), *further]


def _against_claim(report: AuditReport, asked: ScoreAudit) -> list[str]:
    from dpaudit.report.words import against_claim_in_words

    if asked.claimed_epsilon is None:
        return []
    return [against_claim_in_words(report.bounds[0], asked.claimed_epsilon)]


def _exposed(canaries: Path, scores: Path) -> list[str]:
    from dpaudit.workflow.auditing_scores import exposures

    bits = exposures(canaries, scores)
    if bits is None:
        return []
    return [
        f"exposure of the included secrets: {bits.mean():.2f} bits on average, {bits.max():.2f} at most; chance gives 1.44"
    ]


def _plot(report: AuditReport, claimed: float | None, options: dict[str, Any]) -> None:
    from dpaudit.files.writing import write_output
    from dpaudit.report.figures import alone, audit_bounds
    from dpaudit.vocabulary.errors import InvalidArgument

    if options["plot"].suffix != ".svg":
        raise InvalidArgument("plot", str(options["plot"]), "a file of kind .svg")
    if not report.bounds:
        raise InvalidArgument("plot", "no lower bound", "for an audit with canaries")
    delta = report.bounds[0].delta
    drawn = audit_bounds(report.bounds, claimed, delta, label="lower bounds on epsilon")
    write_output(options["plot"], alone(drawn).encode(), PRIVATE, "plot")
