"""``dpaudit attack``: who can be told to have been in the training data."""

# ruff: noqa: E501  the options are read as a table: one option a line

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import (
    TRUST_MODEL_CODE,
    format_option,
    option_name,
    was_given,
    with_options,
)
from dpaudit.cli.printing import say
from dpaudit.vocabulary.errors import ExitCode

if TYPE_CHECKING:
    from dpaudit.workflow.attacking import AttackSettings
    from dpaudit.workflow.scoring import Attacked

ATTACKS = (
    *("loss", "calibrated", "lira-online", "lira-offline", "rmia-online", "rmia-offline"),
    *("label-only", "quantile", "classifier"),
)
BY_DEFAULT = ATTACKS[:6]
PATH = click.Path(path_type=Path)

# fmt: off
ATTACK_OPTIONS = (
    click.argument("run", metavar="[RUN]", required=False, type=PATH),
    click.option("--data", help="Train targets and references on halves of these records; with --checkpoint, its training and test records."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--checkpoint", type=PATH, help="Attack this model: .safetensors or a state_dict in .pt (both with --model), .onnx, .skops, or a program (.pt, .pt2; --trust-model-code)."),
    TRUST_MODEL_CODE,
    click.option("--scores", type=PATH, help="Evaluate this .csv, .parquet or .npz: score, member 0 or 1, optional id, step. With a RUN: of its model; written into it."),
    click.option("--attack", "attacks", multiple=True, type=click.Choice((*ATTACKS, "all")), help=f"Repeatable.  [default: {', '.join(BY_DEFAULT)}]"),
    click.option("--references", type=int, default=16, show_default=True, help="Reference models to train."),
    click.option("--targets", type=int, default=4, show_default=True, help="Models to attack, with --data alone."),
    click.option("--model", default="mlp", show_default=True, help="linear, mlp, cnn, or package.module:factory, called with the shape of a record and the number of classes; a RUN has its own."),
    click.option("--epochs", type=int, default=30, show_default=True, help="Of each reference."),
    click.option("--batch-size", type=int, help="Of each reference.  [default: 64, or a 64th of its records]"),
    click.option("--learning-rate", type=float, default=0.005, show_default=True, help="Of each reference, by Adam."),
    click.option("--records", type=int, help="Use so many records of --data, drawn at random.  [default: all]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of halves, models and whatever an attack draws."),
    click.option("--workers", type=int, default=1, show_default=True, help="Processes that train references."),
    click.option("--confidence", type=float, default=0.95, show_default=True, help="Of each interval by itself."),
    click.option("--plot", type=PATH, help="Draw the ROC curves into this .png, .svg or .pdf."),
    click.option("--histograms", type=PATH, help="Draw the scores into this .png, .svg or .pdf."),
    click.option("-o", "--output", type=PATH, help="Write every score to this .csv, .parquet or .npz."),
    format_option("text", "json"),
)
# fmt: on


TRAINING = ("attacks", "references", "epochs", "batch_size", "learning_rate", "records", "workers")
UNUSED = {
    "run": ("model", "label", "targets"),
    "scores": (*TRAINING, "model", "label", "targets", "seed"),
    "checkpoint": ("targets",),
}
"""Options that would be ignored, by what is attacked."""


@click.command()
@with_options(ATTACK_OPTIONS)
@click.pass_context
def attack(ctx: click.Context, /, **options: Any) -> None:
    """Attack the model of RUN, a model file, models trained on --data, or read --scores.

    Exit code 3 where an attack says nothing either way. What is found comes from the training
    records and is covered by no claim.

    \b
    dpaudit attack runs/mnist --attack lira-online --references 32 --plot roc.png -o scores.csv
    dpaudit attack --data location30.npz --references 32 --targets 8
    dpaudit attack --data mine.npz --checkpoint model.onnx --attack loss
    dpaudit attack --scores scores.csv
    dpaudit attack runs/mine --scores scores.csv
    """
    from dpaudit.report.attack_table import attack_text
    from dpaudit.report.text import as_json

    _require_one_source(ctx, options)
    _require_writable(options)
    found = _found(options)
    _write(found, options)
    report = found.report
    say(as_json(report) if options["format_"] == "json" else attack_text(report))
    if any(one.inconclusive for one in report.membership):
        ctx.exit(ExitCode.INCONCLUSIVE)


def _require_one_source(ctx: click.Context, options: dict[str, Any]) -> None:
    given = [name for name in ("run", "scores", "data") if options[name] is not None]
    if len(given) != 1 and given != ["run", "scores"]:
        raise click.UsageError("give one of RUN, --data or --scores, or a RUN with its --scores")
    if options["checkpoint"] is not None and given != ["data"]:
        raise click.UsageError("--checkpoint goes with --data, its training and test records")
    for source, unused in UNUSED.items():
        for name in unused if options[source] is not None else ():
            if was_given(ctx, name):
                spelled = option_name(name.removesuffix("s") if name == "attacks" else name)
                raise click.UsageError(f"leave out {spelled}: it says nothing about {source}")


def _require_writable(options: dict[str, Any]) -> None:
    """Refuse what could not be written before models are trained for it."""
    from dpaudit.runs.files import require_new_file

    for name in ("plot", "histograms", "output"):
        if options[name] is not None:
            _require_kind(name, options[name])
            require_new_file(name, options[name])


def _require_kind(name: str, path: Path) -> None:
    if name == "output":
        from dpaudit.attacks.membership.score_file import require_suffix

        require_suffix(name, path)
    else:
        from dpaudit.report.attack_figures import require_figure

        require_figure(name, path)


def _found(options: dict[str, Any]) -> Attacked:
    from dpaudit.runs.directory import open_run
    from dpaudit.vocabulary.settings import DataSettings

    if options["scores"] is not None:
        from dpaudit.workflow.scoring import attack_scores, attack_scores_of_run

        if options["run"] is None:
            return attack_scores(options["scores"], confidence=options["confidence"])
        return attack_scores_of_run(
            open_run(options["run"]), options["scores"], confidence=options["confidence"]
        )
    import dpaudit.trainer  # noqa: F401  names the extra where torch is missing
    from dpaudit.workflow import attacking

    asked = _asked(options)
    if options["run"] is not None:
        return attacking.attack_run(open_run(options["run"]), asked)
    data = DataSettings(source=options["data"], label=options["label"])
    if options["checkpoint"] is not None:
        return attacking.attack_checkpoint(
            options["checkpoint"], data, asked, trust_model_code=options["trust_model_code"]
        )
    return attacking.attack_data(data, asked)


def _asked(options: dict[str, Any]) -> AttackSettings:
    from dpaudit.workflow.attacking import AttackSettings

    attacks = dict.fromkeys(options["attacks"] or BY_DEFAULT)
    names = ("references", "targets", "model", "epochs", "batch_size", "learning_rate", "records")
    more = ("seed", "workers", "confidence")
    return AttackSettings(
        attacks=ATTACKS if "all" in attacks else tuple(attacks),
        **{name: options[name] for name in (*names, *more)},
    )


def _write(found: Attacked, options: dict[str, Any]) -> None:
    if options["output"] is not None:
        from dpaudit.attacks.membership.score_file import write_scores

        write_scores(found.scores, options["output"])
    if options["plot"] is not None or options["histograms"] is not None:
        _draw(found, options["plot"], options["histograms"])


def _draw(found: Attacked, plot: Path | None, histograms: Path | None) -> None:
    from dpaudit.report.attack_figures import write_histograms, write_roc
    from dpaudit.workflow.scoring import scores_by_attack

    if plot is not None:
        write_roc(found.report.membership, plot)
    if histograms is not None:
        scores = scores_by_attack(found).items()
        write_histograms({name: (one.members, one.nonmembers) for name, one in scores}, histograms)
