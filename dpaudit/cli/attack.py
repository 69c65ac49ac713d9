"""``dpaudit attack``: membership inference attacks."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.commands import Choice, Command
from dpaudit.cli.language_models import (
    TEXT_ATTACKS,
    TEXT_OPTIONS,
    attacks_text,
    require_text_options,
    text_outcome,
)
from dpaudit.cli.options import (
    SCORE_COLUMN_OPTIONS,
    TRUST_MODEL_CODE,
    InputPath,
    OutputPath,
    format_option,
    option_name,
    score_columns,
    was_given,
    with_options,
)
from dpaudit.cli.policy_warnings import warn_of_low_confidence
from dpaudit.cli.printing import print_text, progress_bars, warn_written
from dpaudit.files.regular_files import DATA_LIMIT
from dpaudit.vocabulary.audit import REFERENCE_ATTACKS
from dpaudit.vocabulary.errors import ExitCode

if TYPE_CHECKING:
    from dpaudit.workflow.attack.attack_settings import AttackSettings
    from dpaudit.workflow.attack.score_evaluation import AttackOutcome

ATTACKS = (
    *("loss", "calibrated", "lira-online", "lira-offline", "rmia-online", "rmia-offline"),
    *("informia-online", "informia-offline", "base-online", "base-offline"),
    *("label-only", "quantile", "classifier"),
)
DEFAULT_ATTACKS = ATTACKS[:6]
REFERENCE_FREE_ATTACKS = frozenset(ATTACKS) - REFERENCE_ATTACKS
PATH = click.Path(path_type=Path)

# fmt: off
ATTACK_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    click.option("--data", help="Records: targets and references are trained on halves of them; with --checkpoint, its training and test records; with --language-model, a table (.csv, .parquet, .jsonl) of text and member."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--task", type=Choice(("classification", "regression")), default="classification", show_default=True, help="Kind of the models, with --data alone; the labels of regression are real values.", metavar="[classification|regression]"),
    click.option("--checkpoint", type=PATH, help="Model to attack: .safetensors or a state_dict in .pt (both with --model), .onnx, .skops, or a program (.pt, .pt2; --trust-model-code)."),
    TRUST_MODEL_CODE,
    click.option("--scores", type=InputPath(".csv", DATA_LIMIT), help="Scores to evaluate, .csv, .parquet or .npz, or - for CSV from standard input: score, member 0 or 1, optional id, step. With a RUN, scores of its model; the result is written into RUN."),
    *SCORE_COLUMN_OPTIONS,
    click.option("--attack", "attacks", multiple=True, metavar="ATTACK", type=Choice((*ATTACKS, *TEXT_ATTACKS[1:], "all")), help=f"{', '.join(ATTACKS)}, or all. Repeatable.  [default: the first {len(DEFAULT_ATTACKS)}] On texts: {', '.join(TEXT_ATTACKS)}.  [default: those that are possible]"),
    click.option("--references", type=int, default=16, show_default=True, help="Number of reference models to train."),
    click.option("--reference-training", type=Choice(("plain", "dp-sgd")), default="plain", show_default=True, help="How references of a RUN are trained: without noise, or by DP-SGD with the run's settings, stacked where that is faster."),
    click.option("--targets", type=int, default=4, show_default=True, help="Number of models to attack, with --data alone."),
    click.option("--model", default="mlp", show_default=True, help="linear, mlp, cnn, or package.module:factory, called with the shape of a record and the number of classes. Not with a RUN, which has a model."),
    click.option("--epochs", type=int, default=30, show_default=True, help="Epochs of each reference."),
    click.option("--batch-size", type=int, help="Batch size of each reference.  [default: 64, or a 64th of its records]"),
    click.option("--learning-rate", type=float, default=0.005, show_default=True, help="Learning rate of each reference (Adam)."),
    click.option("--records", type=int, help="Number of records of --data to use, drawn at random.  [default: all]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of halves, models and attacks."),
    click.option("--workers", type=int, default=1, show_default=True, help="Number of processes that train references."),
    click.option("--confidence", type=float, default=0.95, show_default=True, help="Confidence of each interval."),
    click.option("--by", metavar="COLUMN", help="Also evaluate each slice of the records: class, or a column of --scores, or of a table in --data. Intervals hold in all slices together."),
    click.option("--queries", type=int, default=1, show_default=True, help="Queries per record: the record and altered copies, whose scores are averaged (loss, calibrated, LiRA, RMIA, InfoRMIA, BASE)."),
    click.option("--without-labels", is_flag=True, help="The attacker does not know the labels: classes that the target predicts take their place."),
    click.option("--infer", multiple=True, metavar="label|INDEX", help="Also infer the label, or the feature of this index, and compare with guesses without the model. Repeatable."),
    click.option("--record-risk", type=OutputPath(), metavar="FILE", help="Write how often each record is detected, over reference models that trained on it, with intervals: .csv, .parquet or .npz."),
    click.option("--plot", type=PATH, help="Write a plot of the ROC curves: .png, .svg or .pdf."),
    click.option("--histograms", type=PATH, help="Write histograms of the scores: .png, .svg or .pdf."),
    click.option("-o", "--output", type=OutputPath(), help="Write all scores: .csv, .parquet or .npz."),
    *TEXT_OPTIONS,
    format_option("text", "json"),
)
# fmt: on


TRAINING_OPTIONS = (
    "attacks",
    "references",
    "epochs",
    "batch_size",
    "learning_rate",
    "records",
    "workers",
    *("queries", "without_labels", "infer", "record_risk", "task"),
)
UNUSED_OPTIONS = {
    "run": ("model", "label", "targets", "task"),
    "scores": (*TRAINING_OPTIONS, "reference_training", "model", "label", "targets", "seed"),
    "checkpoint": ("targets", "task"),
    "data": ("reference_training",),
}
"""Options that would be ignored, by what is attacked."""

SETTINGS_OF_THE_RUN = ("epochs", "batch_size", "learning_rate")
"""Options of references that DP-SGD takes from the run."""


@click.command("attack", cls=Command)
@with_options(ATTACK_OPTIONS)
@click.pass_context
def attack_command(ctx: click.Context, /, **options: Any) -> None:
    """Run membership inference attacks on a model, or on scores.

    The model is that of RUN, that of --checkpoint, or models trained on --data. Exit code 3
    if an attack is inconclusive. The results are computed from the training records and are
    not covered by any claim.

    \b
    dpaudit attack runs/mnist --attack lira-online --references 32 \\
                   --plot roc.png -o scores.csv
    dpaudit attack --data location30.npz --references 32 --targets 8
    dpaudit attack --data mine.npz --checkpoint model.onnx --attack loss
    dpaudit attack --scores scores.csv
    dpaudit attack --scores losses.csv --score-column loss --member-column split \\
                   --smaller-means-member --by hospital
    dpaudit attack runs/mine --scores scores.csv
    dpaudit attack --language-model models/mine --data texts.jsonl
    dpaudit attack --token-logprobs logprobs.jsonl --suffix-tokens 50
    """
    from dpaudit.report.attack_text import attack_text
    from dpaudit.report.text import as_json

    _require_one_source(ctx, options)
    require_text_options(ctx, options)
    _require_writable(options)
    found = _found(options)
    _write(found, options)
    report = found.report
    if options["format_"] == "json":
        print_text(as_json(report))
    else:
        print_text(attack_text(report), outcomes=True)
    if any(one.inconclusive for one in report.membership):
        ctx.exit(ExitCode.INCONCLUSIVE)


def _require_one_source(ctx: click.Context, options: dict[str, Any]) -> None:
    if options["language_model"] is not None or options["token_logprobs"] is not None:
        return
    given = [name for name in ("run", "scores", "data") if options[name] is not None]
    if len(given) != 1 and given != ["run", "scores"]:
        raise click.UsageError(
            "give one of RUN, --data or --scores, or a RUN with its --scores; or --token-logprobs"
        )
    if options["checkpoint"] is not None and given != ["data"]:
        raise click.UsageError("--checkpoint goes with --data, its training and test records")
    for source, unused in UNUSED_OPTIONS.items():
        for name in unused if options[source] is not None else ():
            if was_given(ctx, name):
                spelled = option_name(name.removesuffix("s") if name == "attacks" else name)
                raise click.UsageError(f"leave out {spelled}: it has no effect with {source}")
    _require_used_reference_options(ctx, options)
    score_columns(options)


def _require_used_reference_options(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuse options for references that the attacks or the way of training would ignore."""
    if not was_given(ctx, "reference_training"):
        return
    attacks = set(options["attacks"] or DEFAULT_ATTACKS)
    if attacks <= REFERENCE_FREE_ATTACKS and options["record_risk"] is None:
        raise click.UsageError(
            f"leave out --reference-training: {', '.join(sorted(attacks))} needs no references"
        )
    for name in SETTINGS_OF_THE_RUN if options["reference_training"] == "dp-sgd" else ():
        if was_given(ctx, name):
            raise click.UsageError(
                f"leave out {option_name(name)}: --reference-training dp-sgd takes it from the RUN"
            )


def _require_writable(options: dict[str, Any]) -> None:
    """Refuse what could not be written before models are trained for it."""
    from dpaudit.runs.file_io import require_new_file

    for name in ("plot", "histograms", "output", "record_risk"):
        if options[name] is not None:
            _require_kind(name, options[name])
            require_new_file(name, options[name])
    _require_different_files(options)


def _require_different_files(options: dict[str, Any]) -> None:
    """Refuse one file for two results, of which the second would replace the first."""
    names: dict[Path, str] = {}
    for name in ("plot", "histograms", "output", "record_risk"):
        if options[name] is None:
            continue
        first = names.setdefault(options[name].resolve(), name)
        if first != name:
            raise click.UsageError(
                f"{option_name(name)} and {option_name(first)} name the same file: {options[name]}"
            )


def _require_kind(name: str, path: Path) -> None:
    if name in ("output", "record_risk"):
        from dpaudit.attacks.membership.score_file import require_score_file_suffix

        require_score_file_suffix(name, path)
    else:
        from dpaudit.report.membership_figures import require_plot_suffix

        require_plot_suffix(name, path)


def _found(options: dict[str, Any]) -> AttackOutcome:
    from dpaudit.runs.directory import open_run
    from dpaudit.vocabulary.settings import DataSettings

    if attacks_text(options):
        return text_outcome(options)
    if options["scores"] is not None:
        from dpaudit.workflow.attack.score_evaluation import attack_scores, attack_scores_of_run

        given = {
            "confidence": options["confidence"],
            "columns": score_columns(options),
            "by": options["by"],
        }
        if options["run"] is None:
            return attack_scores(options["scores"], **given)
        run = open_run(options["run"])
        warn_of_low_confidence(options["confidence"])
        return attack_scores_of_run(run, options["scores"], **given)
    import dpaudit.trainer  # noqa: F401  names the extra where torch is missing
    from dpaudit.workflow.attack import model_attacks

    asked = _asked(options)
    with progress_bars() as progress:
        if options["run"] is not None:
            run = open_run(options["run"])
            warn_of_low_confidence(options["confidence"])
            return model_attacks.attack_run(
                run,
                asked,
                reference_training=options["reference_training"],
                progress=progress,
            )
        data = DataSettings(source=options["data"], label=options["label"])
        if options["checkpoint"] is not None:
            return model_attacks.attack_checkpoint(
                options["checkpoint"],
                data,
                asked,
                trust_model_code=options["trust_model_code"],
                progress=progress,
            )
        if options["task"] == "regression":
            from dpaudit.workflow.attack.regression_attacks import attack_regression

            return attack_regression(data, asked, progress=progress)
        return model_attacks.attack_data(data, asked, progress=progress)


def _asked(options: dict[str, Any]) -> AttackSettings:
    from dpaudit.workflow.attack.attack_settings import AttackSettings

    attacks = dict.fromkeys(options["attacks"] or DEFAULT_ATTACKS)
    names = ("references", "targets", "model", "epochs", "batch_size", "learning_rate", "records")
    more = ("seed", "workers", "confidence", "queries", "by", "infer")
    return AttackSettings(
        attacks=ATTACKS if "all" in attacks else tuple(attacks),
        labels_known=not options["without_labels"],
        record_risk=options["record_risk"] is not None,
        **{name: options[name] for name in (*names, *more)},
    )


def _write(found: AttackOutcome, options: dict[str, Any]) -> None:
    if options["output"] is not None:
        from dpaudit.attacks.membership.score_file import write_scores

        write_scores(found.scores, options["output"])
        warn_written(options["output"])
    if options["record_risk"] is not None and found.risks is not None:
        from dpaudit.attacks.membership.score_file import write_scores

        write_scores(found.risks, options["record_risk"])
        warn_written(options["record_risk"])
    if options["plot"] is not None or options["histograms"] is not None:
        _draw(found, options["plot"], options["histograms"])


def _draw(found: AttackOutcome, plot: Path | None, histograms: Path | None) -> None:
    from dpaudit.report.membership_figures import write_roc_plot, write_score_histograms
    from dpaudit.workflow.attack.score_evaluation import scores_by_attack

    if plot is not None:
        write_roc_plot(found.report.membership, plot)
        warn_written(plot)
    if histograms is not None:
        scores = scores_by_attack(found).items()
        write_score_histograms(
            {name: (one.members, one.nonmembers) for name, one in scores}, histograms
        )
        warn_written(histograms)
