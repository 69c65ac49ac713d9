"""Commands that audit a run or a trainer, and that make canaries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.commands import Choice, Command, Group
from dpaudit.cli.language_models import LANGUAGE_MODEL, TOKEN_LOGPROBS, TOKENIZER
from dpaudit.cli.options import (
    OUTPUT,
    SCORE_COLUMN_OPTIONS,
    TRUST_MODEL_CODE,
    FileOrCount,
    InputPath,
    OutputPath,
    format_option,
    option_name,
    require_option,
    score_columns,
    was_given,
    with_options,
    write_result,
)
from dpaudit.cli.policy_warnings import warn_of_low_confidence
from dpaudit.cli.printing import (
    Verbosity,
    print_message,
    print_text,
    printable_path,
    progress_bars,
    verbosity,
    warn_written,
)
from dpaudit.cli.unused_options import require_used_audit_options, require_used_canary_options
from dpaudit.files.regular_files import DATA_LIMIT, PRIVATE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dpaudit.vocabulary.audit import AuditReport
    from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
    from dpaudit.workflow.audit.external_scores import ScoreAuditSettings
    from dpaudit.workflow.audit.final_model_settings import FinalModelSettings
    from dpaudit.workflow.audit.run_canary_files import CanaryScoring


# ruff: noqa: E501  the options are read as a table: one option a line


PATH = click.Path(path_type=Path)
VIEWS = ("every-step", "final-iterate")
TARGET_KINDS = ("blank", "mislabelled", "crafted", "optimized")
INITIAL_WEIGHTS = ("own", "worst-case")
FINAL_OUTPUTS = ("logits", "labels")

# fmt: off
AUDIT_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    click.option("--canaries", type=PATH, help="Canary file of dpaudit canaries make; with --scores or --checkpoint, or with a RUN and --scores or --model."),
    click.option("--scores", type=InputPath(".csv", DATA_LIMIT), help="Scores, .csv, .parquet or .npz, or - for CSV from standard input: id and score of every canary; without --canaries, score and member."),
    *SCORE_COLUMN_OPTIONS,
    click.option("--checkpoint", type=PATH, help="Model whose losses score the canaries: .safetensors or a state_dict in .pt (both with --model), .onnx, .skops, or a program (.pt, .pt2; --trust-model-code)."),
    TRUST_MODEL_CODE,
    LANGUAGE_MODEL,
    TOKENIZER,
    TOKEN_LOGPROBS,
    click.option("--model", help="package.module:factory for the weights in --checkpoint or in RUN."),
    click.option("--delta", type=float, default=1e-5, show_default=True, help="Delta of the bounds. Not with a RUN, which has a delta."),
    click.option("--claim-epsilon", type=float, help="Claimed epsilon to compare with the bounds. Not with a RUN, which has a claim.  [default: none]"),
    click.option("--view", type=Choice(VIEWS), default=VIEWS[0], show_default=True, help="Observations of the gradient canaries of a RUN: all steps, or their sum, which an attacker sees if only the last model of plain SGD with a constant learning rate is released."),
    click.option("--confidence", type=float, default=0.95, show_default=True, help="Joint confidence of all lower bounds."),
    click.option("--black-box", is_flag=True, help="Train models with and without one target record, and bound epsilon from their final outputs. An interrupted audit resumes."),
    click.option("--models", type=int, default=200, show_default=True, help="Number of models of --black-box, half of them with the target record."),
    click.option("--trainer", default="own", show_default=True, help="Trainer of --black-box: own, the trainer of RUN; stacked, its settings with many models at once; or, without a RUN, package.module:function, called with (with_record, seed), which returns logits."),
    click.option("--target-record", type=Choice(TARGET_KINDS), default="blank", show_default=True, help="Target record of --black-box with a RUN; crafted optimizes the query, optimized the record."),
    click.option("--initial-weights", type=Choice(INITIAL_WEIGHTS), default="own", show_default=True, help="Initial weights of --black-box with a RUN: own, or worst-case, trained without noise on half of the records; the other half is audited."),
    click.option("--outputs", type=Choice(FINAL_OUTPUTS), default="logits", show_default=True, help="What --black-box reads of each model."),
    click.option("--records", type=int, help="Number of training records of --black-box with a RUN, the first ones.  [default: all]"),
    click.option("--stop-when-refuted", is_flag=True, help="Stop --black-box as soon as the claim is refuted; one bound, valid at any stopping time, is reported."),
    click.option("--target-label", type=int, help="Class of the target record of your own --trainer."),
    click.option("--folder", type=PATH, help="Folder of the outputs of your own --trainer, where an interrupted audit resumes."),
    click.option("--trainer-data", type=PATH, multiple=True, help="File or folder that your own --trainer reads. Its digest is kept in --folder: an audit does not resume with other data. Repeatable."),
    click.option("--plot", type=PATH, help="Write a plot of the bounds and the claim: .svg."),
    format_option("text", "json"),
    OUTPUT,
)
# fmt: on

BLACK_BOX_OPTIONS = (
    *("models", "trainer", "target_record", "initial_weights", "outputs", "records"),
    *("stop_when_refuted", "target_label", "folder", "trainer_data"),
)
OWN_TRAINER_OPTIONS = ("target_label", "folder", "trainer_data")
RUN_ONLY_OPTIONS = ("target_record", "initial_weights", "records")


@click.command("audit", cls=Command)
@with_options(AUDIT_OPTIONS)
@click.pass_context
def audit_command(ctx: click.Context, /, **options: Any) -> None:
    """Compute lower bounds on epsilon from canaries or scores.

    With a RUN, runs membership inference and evaluates the canaries of the run. Without a
    RUN, evaluates canaries that another framework was trained with, or scores alone. The
    results are computed from the training records and are not covered by any claim.
    A lower bound above the claim is named in the first line, and on standard error.
    The exit code is 0 even then: dpaudit gate gives the verdict by a policy.

    \b
    dpaudit audit runs/mnist
    dpaudit audit runs/mine --canaries canaries.npz --scores scores.csv
    dpaudit audit runs/mine --canaries canaries.npz --model net:make
    dpaudit audit --canaries canaries.npz --scores scores.csv --claim-epsilon 3
    dpaudit audit --canaries canaries.npz --checkpoint model.safetensors \\
                  --model net:make
    dpaudit audit --scores scores.csv --claim-epsilon 4
    dpaudit audit --canaries canaries.npz --language-model models/mine
    dpaudit audit runs/mnist --black-box --models 200 --initial-weights worst-case
    dpaudit audit --black-box --trainer mine:train_one --target-label 3 \\
                  --folder audits/mine --claim-epsilon 4
    """
    from dpaudit.report import text
    from dpaudit.report.descriptions import contradiction_in_words

    _require_black_box_options(ctx, options)
    require_used_audit_options(ctx, options)
    report, claimed, further = _audited(options)
    if options["plot"] is not None:
        _plot(report, claimed, options)
    said = text.as_json(report) if options["format_"] == "json" else text.audit_text(report)
    found = None if claimed is None else contradiction_in_words(report.bounds, claimed)
    first = [] if found is None else [f"CONTRADICTED: {found}"]
    whole = "\n".join([*first, said, *further]) if options["format_"] == "text" else said
    write_result(whole, options["output"], mode=PRIVATE)
    if found is not None:
        print_message(f"dpaudit: warning: {found}; dpaudit gate gives the verdict by a policy")


AuditOutput = tuple["AuditReport", float | None, list[str]]
"""The report, the claimed epsilon, and further lines of text."""


def _audited(options: dict[str, Any]) -> AuditOutput:
    if options["run"] is not None:
        return _run(options)
    return _own_trainer(options) if options["black_box"] else _others(options)


def _require_black_box_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options that would be ignored."""
    given = [name for name in BLACK_BOX_OPTIONS if was_given(ctx, name)]
    if not options["black_box"]:
        if given:
            raise click.UsageError(f"{option_name(given[0])} goes with --black-box")
        return
    unused = OWN_TRAINER_OPTIONS if options["run"] is not None else RUN_ONLY_OPTIONS
    for name in given:
        if name in unused:
            what = "your own --trainer, without a RUN" if name in OWN_TRAINER_OPTIONS else "a RUN"
            raise click.UsageError(f"{option_name(name)} goes with {what}")
    if options["models"] < 4 or options["models"] % 2:
        raise click.UsageError("--models is an even number of at least 4")


def _own_trainer(options: dict[str, Any]) -> AuditOutput:
    from dpaudit.attacks.final_model import OutputView
    from dpaudit.files.user_code import call_user_function, import_object
    from dpaudit.workflow.audit.external_scores import ScoreAuditSettings
    from dpaudit.workflow.audit.final_model import audit_final_model

    if options["stop_when_refuted"] and options["claim_epsilon"] is None:
        raise click.UsageError("--stop-when-refuted goes with --claim-epsilon, the claim to refute")
    name = options["trainer"]
    function = import_object("trainer", name, "package.module:function, without a RUN")
    asked = ScoreAuditSettings(options["delta"], options["confidence"], options["claim_epsilon"])

    def train(with_record: bool, seed: int) -> Any:
        return call_user_function(name, function, with_record, seed)

    with progress_bars() as progress:
        report = audit_final_model(
            train,
            target_label=require_option("target-label", options["target_label"]),
            folder=require_option("folder", options["folder"]),
            models=options["models"],
            delta=asked.delta,
            confidence=asked.confidence,
            claim_epsilon=asked.claimed_epsilon,
            outputs=OutputView(options["outputs"]),
            stop_when_refuted=options["stop_when_refuted"],
            settings={"trainer": name},
            trainer_data=options["trainer_data"],
            progress=progress,
        )
    return report, asked.claimed_epsilon, _against_claim(report, asked)


def _final_models(options: dict[str, Any]) -> FinalModelSettings | None:
    """Return the settings of the models to train; None if none are."""
    from dpaudit.attacks.final_model import OutputView
    from dpaudit.workflow.audit.final_model_settings import FinalModelSettings

    if not options["black_box"]:
        return None
    return FinalModelSettings(
        pairs=options["models"] // 2,
        target=options["target_record"],
        initial_weights=options["initial_weights"],
        outputs=OutputView(options["outputs"]),
        trainer=options["trainer"],
        records=options["records"],
        stops_early=options["stop_when_refuted"],
    )


def _run(options: dict[str, Any]) -> AuditOutput:
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.audit.run_audit import audit_run, claimed_epsilon
    from dpaudit.workflow.audit.run_canary_files import unscored_canaries_in_words

    _require_no_text_model(options, "without a RUN: its own model scores canaries that are texts")
    run = open_run(options["run"])
    canary_scoring = _scored(options)
    if options["black_box"]:  # an audit of hours
        warn_of_low_confidence(options["confidence"])
    with progress_bars() as progress:
        report = audit_run(
            run,
            confidence=options["confidence"],
            view=options["view"],
            canary_scoring=canary_scoring,
            final_models=_final_models(options),
            progress=progress,
        )
    if not options["black_box"]:  # after errors of a damaged run, which are one line
        warn_of_low_confidence(options["confidence"])
    unscored = unscored_canaries_in_words(run, report)
    return report, claimed_epsilon(run), [] if unscored is None else [unscored]


def _scored(options: dict[str, Any]) -> CanaryScoring | None:
    """Return the canary file and the source of its scores; None if no file is given."""
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.audit.run_canary_files import CanaryScoring

    canaries, scores = options["canaries"], options["scores"]
    checkpoint, model = options["checkpoint"], options["model"]
    columns = score_columns(options)
    by_model = checkpoint is not None or model is not None
    if canaries is None:
        if scores is not None or by_model:
            raise click.UsageError("with a RUN, give --canaries beside --scores or --model")
        return None
    if scores is None and not by_model and open_run(options["run"]).config.exists():
        return CanaryScoring(canaries)
    if (scores is not None) == by_model:
        raise click.UsageError(
            "a RUN's --canaries go with one of --scores and --model, the factory of its model"
        )
    return CanaryScoring(canaries, scores, model, checkpoint, columns)


def _others(options: dict[str, Any]) -> AuditOutput:
    from dpaudit.workflow.audit import external_scores
    from dpaudit.workflow.audit.external_scores import ScoreAuditSettings

    asked = ScoreAuditSettings(options["delta"], options["confidence"], options["claim_epsilon"])
    scores, canaries, checkpoint = (options[n] for n in ("scores", "canaries", "checkpoint"))
    columns = score_columns(options)
    further: list[str] = []
    if options["language_model"] is not None or options["token_logprobs"] is not None:
        report, further = _by_language_model(options, asked)
    elif canaries is None:
        if scores is None or checkpoint is not None:
            raise click.UsageError("give a RUN, --scores, or --canaries with scores or a model")
        report = external_scores.audit_score_file(scores, asked, columns)
    elif (scores is None) == (checkpoint is None):
        raise click.UsageError("--canaries goes with one of --scores and --checkpoint")
    elif scores is not None:
        report = external_scores.audit_canary_scores(canaries, scores, asked, columns)
        further += _exposed(external_scores.secret_exposures(canaries, scores, columns))
    else:
        report = external_scores.audit_canary_model(
            canaries,
            checkpoint,
            options["model"],
            asked,
            trust_model_code=options["trust_model_code"],
        )
    return report, asked.claimed_epsilon, [*_against_claim(report, asked), *further]


def _against_claim(report: AuditReport, asked: ScoreAuditSettings) -> list[str]:
    from dpaudit.report.descriptions import support_in_words

    if asked.claimed_epsilon is None:
        return []
    said = support_in_words(report.bounds, asked.claimed_epsilon)
    return [] if said is None else [said]


def _require_no_text_model(options: dict[str, Any], where: str) -> None:
    for name in ("language_model", "token_logprobs", "tokenizer"):
        if options[name] is not None:
            raise click.UsageError(f"give {option_name(name)} {where}")


def _by_language_model(
    options: dict[str, Any], asked: ScoreAuditSettings
) -> tuple[AuditReport, list[str]]:
    """Audit text canaries by a language model, or by log-probabilities of their tokens."""
    from dpaudit.workflow.audit import external_scores, text_canary_scores

    given = [options[name] is not None for name in ("language_model", "token_logprobs")]
    others = [name for name in ("scores", "checkpoint", "model") if options[name] is not None]
    if options["canaries"] is None or all(given) or others:
        raise click.UsageError(
            "--canaries goes with one of --language-model, --token-logprobs, --scores and "
            "--checkpoint"
        )
    auditor = external_scores.read_auditor_canaries(options["canaries"])
    if options["language_model"] is not None:
        by_id = text_canary_scores.scores_of_model_folder(
            auditor, options["language_model"], options["tokenizer"]
        )
    else:
        _require_no_tokenizer(options)
        by_id = text_canary_scores.scores_of_token_logprobs(auditor, options["token_logprobs"])
    report = external_scores.audit_scored_canaries(auditor, by_id, asked)
    return report, _exposed(external_scores.exposures_of_scores(auditor, by_id))


def _require_no_tokenizer(options: dict[str, Any]) -> None:
    if options["tokenizer"] is not None:
        raise click.UsageError("leave out --tokenizer: --token-logprobs holds everything")


def _exposed(bits: NDArray[np.float64] | None) -> list[str]:
    if bits is None:
        return []
    return [
        f"exposure of the included secrets: {bits.mean():.2f} bits on average, {bits.max():.2f} at most; chance gives 1.44"
    ]


def _plot(report: AuditReport, claimed: float | None, options: dict[str, Any]) -> None:
    from dpaudit.files.regular_files import write_output
    from dpaudit.report.privacy_figures import draw_audit_bounds
    from dpaudit.report.svg_figure import standalone_svg
    from dpaudit.vocabulary.errors import InvalidArgument

    if options["plot"].suffix != ".svg":
        raise InvalidArgument("plot", str(options["plot"]), "a file of kind .svg")
    if not report.bounds:
        raise InvalidArgument("plot", "no lower bound", "for an audit with canaries")
    delta = report.bounds[0].delta
    drawn = draw_audit_bounds(report.bounds, claimed, delta, label="lower bounds on epsilon")
    write_output(options["plot"], standalone_svg(drawn).encode(), PRIVATE, "plot")
    warn_written(options["plot"])


# ``dpaudit canaries``: canary files for any framework.

# ruff: noqa: E501  the options are read as a table: one option a line


CANARY_KINDS = (
    *("mislabelled", "blank", "out-of-distribution", "crafted"),
    *("secrets", "new-tokens", "synthetic", "dummy"),
)

# fmt: off
MAKE_OPTIONS = (
    click.option("--kind", type=Choice(CANARY_KINDS), metavar="KIND", default="mislabelled", show_default=True, help="Records: mislabelled, blank, out-of-distribution or crafted. Texts: secrets (sentences with one), new-tokens (sentences with a token of their own) or synthetic (drawn from a language model). Or dummy: indices of dummy parameters."),
    click.option("--count", type=int, help="Number of canaries, included and excluded.  [default: 1000, or all held-out records of --data if there are fewer]"),
    click.option("--data", default="digits", show_default=True, help="Records; canaries are made from held-out ones."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--checkpoint", type=PATH, help="Torch model that crafted canaries are optimized against."),
    TRUST_MODEL_CODE,
    click.option("--model", help="package.module:factory for the weights in --checkpoint."),
    click.option("--template", help="Sentence with {secret} and, optionally, {user}."),
    click.option("--references", type=int, default=1000, show_default=True, help="Number of further sentences, never trained on, to rank secrets among."),
    click.option("--text", type=PATH, help="Training text that canaries are mixed into, one record per line, or the column text of a .csv, .parquet or .jsonl file. Of new-tokens canaries, texts that they begin with are taken from it."),
    click.option("--language-model", type=PATH, metavar="FOLDER", help="Language model that synthetic canaries are drawn from. It must not have seen private data."),
    TOKENIZER,
    click.option("--prompt", multiple=True, help="Beginning of synthetic canaries. Repeatable: the prompts take turns."),
    click.option("--temperature", type=float, default=1.2, show_default=True, help="Sampling temperature of synthetic canaries; 0.8 or more."),
    click.option("--tokens", type=int, default=32, show_default=True, help="Number of tokens that are drawn after the prompt."),
    click.option("--training-file", type=PATH, help="Write all training records with the included canaries to this file: .npz for records, .csv (column text) or lines for texts."),
    click.option("-o", "--output", type=OutputPath(), default=Path("canaries.npz"), show_default=True, help="File of the trainer; the auditor's file is NAME.secret.npz beside it."),
)
# fmt: on


@click.group("canaries", cls=Group)
def canaries_group() -> None:
    """Make canary files for training in any framework."""


@canaries_group.command()
@with_options(MAKE_OPTIONS)
@click.pass_context
def make(ctx: click.Context, /, **options: Any) -> None:
    """Make canaries, each included with probability 1/2.

    The trainer's file holds the included canaries alone. Keep the auditor's file secret
    from the trainer. dpaudit audit evaluates them.

    \b
    dpaudit canaries make --kind mislabelled --data mnist.npz \\
                          --training-file train.npz
    dpaudit canaries make --kind secrets --text notes.csv \\
                          --training-file train.csv
    dpaudit audit --canaries canaries.npz --scores scores.csv --claim-epsilon 3
    """
    from dpaudit.workflow.audit.make_canaries import DEFAULT_COUNT

    require_used_canary_options(ctx, options)
    planted = _MAKERS.get(options["kind"], _inputs)(options)
    if options["count"] is None and len(planted.ids) < DEFAULT_COUNT:
        print_message(
            f"dpaudit: {len(planted.ids)} canaries, not {DEFAULT_COUNT}: the data have no more "
            "held-out records"
        )
    print_text(
        f"wrote {printable_path(options['output'])}: {int(planted.included.sum())} of {len(planted.ids)} "
        f"{planted.kind} canaries are included; all of them with their bits: {printable_path(_secret(options['output']))}"
    )


def _secret(path: Path) -> Path:
    from dpaudit.workflow.audit.external_scores import auditor_path_beside

    return auditor_path_beside(path)


def _inputs(options: dict[str, Any]) -> Any:
    from dpaudit.vocabulary.settings import DataSettings
    from dpaudit.workflow.audit.make_canaries import INPUT_CANARY_MAKERS, make_input_canaries

    data = DataSettings(source=options["data"], label=options["label"])
    if options["kind"] == "crafted":
        from dpaudit.workflow.audit.make_canaries import crafted_canary_maker

        make = crafted_canary_maker(
            require_option("checkpoint", options["checkpoint"]),
            options["model"],
            trust_model_code=options["trust_model_code"],
        )
    else:
        make = INPUT_CANARY_MAKERS[options["kind"]]
    return make_input_canaries(
        options["kind"],
        options["count"],
        data,
        options["output"],
        training_file=options["training_file"],
        make=make,
    )


def _secrets(options: dict[str, Any]) -> Any:
    from dpaudit.attacks.canaries import TEMPLATE
    from dpaudit.workflow.audit.make_canaries import DEFAULT_COUNT, make_secret_canaries

    return make_secret_canaries(
        DEFAULT_COUNT if options["count"] is None else options["count"],
        options["output"],
        references=options["references"],
        template=options["template"] or TEMPLATE,
        text=options["text"],
        training_file=options["training_file"],
    )


def _dummies(options: dict[str, Any]) -> Any:
    from dpaudit.workflow.audit.make_canaries import DEFAULT_COUNT, make_dummy_canaries

    count = DEFAULT_COUNT if options["count"] is None else options["count"]
    return make_dummy_canaries(count, options["output"])


def _new_tokens(options: dict[str, Any]) -> Any:
    from dpaudit.workflow.audit.make_canaries import DEFAULT_COUNT
    from dpaudit.workflow.audit.make_text_canaries import make_new_token_canaries

    return make_new_token_canaries(
        DEFAULT_COUNT if options["count"] is None else options["count"],
        options["output"],
        text=require_option("text", options["text"]),
        training_file=options["training_file"],
    )


def _synthetic(options: dict[str, Any]) -> Any:
    from dpaudit.workflow.audit.make_canaries import DEFAULT_COUNT
    from dpaudit.workflow.audit.make_text_canaries import SyntheticSettings, make_synthetic_canaries

    return make_synthetic_canaries(
        DEFAULT_COUNT if options["count"] is None else options["count"],
        options["output"],
        SyntheticSettings(
            require_option("language_model", options["language_model"]),
            options["tokenizer"],
            require_option("prompt", options["prompt"] or None),
            options["tokens"],
            options["temperature"],
        ),
        text=options["text"],
        training_file=options["training_file"],
    )


_MAKERS = {
    "secrets": _secrets,
    "new-tokens": _new_tokens,
    "synthetic": _synthetic,
    "dummy": _dummies,
}


# ``dpaudit conformance``: test a trainer against its claimed mechanism.


@click.command("conformance", cls=Command)
@click.argument("trainer", metavar="RUN|pkg.mod:FACTORY")
@click.option(
    "--kind",
    type=Choice(("trainer", "client", "server")),
    default="trainer",
    show_default=True,
    help="What FACTORY makes: a trainer from (records, seed), a client of a federation from "
    "(records, seed, participant), or its server from (seed).",
)
@click.option(
    "--claim",
    type=click.Path(path_type=Path),
    help="TOML file with the claimed parameters of each step.  [default: the settings of RUN]",
)
@click.option(
    "--records",
    type=click.Path(path_type=Path),
    help="Records for a trainer or client: an .npz file with the arrays x and y.",
)
@click.option(
    "--probes",
    type=FileOrCount(),
    help="N: replay N of the records besides the usual probes. FILE: an .npz file with the arrays "
    "x and y, records to replay instead, for example with gradients above the clip norm.",
)
@click.option(
    "--assume",
    type=Choice(("no-nan",)),
    multiple=True,
    help="Assume this instead of testing it; the result states it. no-nan: no record has NaN "
    "features or a NaN gradient.",
)
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    help="Run that make_trainer wrote: its ledger is tested against the claim, too, and the "
    "result is written into it, for dpaudit gate.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def conformance_command(
    ctx: click.Context,
    trainer: str,
    kind: str,
    claim: Path | None,
    records: Path | None,
    probes: Path | int | None,
    assume: tuple[str, ...],
    run: Path | None,
    format_: str,
    output: Path | None,
) -> None:
    """Test steps of a trainer, or rounds of a federation.

    Replays steps, and tests noise and sampling statistically. Of a federated RUN, the clients or
    the server are tested. The text is a summary; -v adds what each test observed, and its power.
    Exit code: 0 no deviation was detected, 1 the trainer deviates from its claim, 3 inconclusive.

    \b
    dpaudit conformance runs/mnist
    dpaudit conformance my_package.training:make_trainer --claim claim.toml \\
                        --records records.npz
    dpaudit conformance my_package.server:make_server --kind server \\
                        --claim claim.toml
    """
    result = _checked(trainer, kind, claim, records, probes, assume, run)
    said = _CONFORMANCE_FORMATS[format_](result)
    write_result(said, output, mode=PRIVATE, outcomes=format_ == "text")
    ctx.exit(result.exit_code)


def _conformance_json(result: ConformanceResult) -> str:
    from dpaudit.report.text import as_json

    return as_json(result)


def _conformance_text(result: ConformanceResult) -> str:
    """Return the summary; with -v, the details of each test, too."""
    from dpaudit.report.text import conformance_text

    if verbosity() is Verbosity.VERBOSE:
        return conformance_text(result)
    return f"{result}\ndetails of each test: -v, or --format json"


_CONFORMANCE_FORMATS = {"text": _conformance_text, "json": _conformance_json}


def _checked(
    trainer: str,
    kind: str,
    claim: Path | None,
    records: Path | None,
    probes: Path | int | None,
    assume: tuple[str, ...],
    run: Path | None,
) -> ConformanceResult:
    from dpaudit.runs.directory import open_run
    from dpaudit.vocabulary.conformance import Assumption
    from dpaudit.workflow.audit.conformance_check import (
        check_federated_factory,
        check_run_conformance,
        check_trainer_factory,
        read_step_claim,
    )

    assumed = tuple(Assumption(name) for name in assume)
    asked: StepClaim | None = None if claim is None else read_step_claim(claim)
    if kind != "trainer":
        if run is not None:
            raise click.UsageError(f"--run goes with a trainer, not with --kind {kind}")
        stated = require_option("claim", asked)
        with progress_bars() as progress:
            return check_federated_factory(
                trainer, kind, stated, records, probes, progress, assumed
            )
    if ":" in trainer and not Path(trainer).exists():
        made = None if run is None else open_run(run)
        stated = require_option("claim", asked)
        with progress_bars() as progress:
            return check_trainer_factory(trainer, stated, records, made, probes, progress, assumed)
    if run is not None:
        raise click.UsageError("--run goes with make_trainer: a RUN has its own trainer")
    with progress_bars() as progress:
        return check_run_conformance(open_run(Path(trainer)), asked, probes, progress, assumed)
