"""``dpaudit train``: DP-SGD from a data file to a sealed and claimed run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import option_name, required, was_given

if TYPE_CHECKING:
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.vocabulary.settings import PrivacySettings, RunConfig

Options = dict[str, Any]


@click.command()
@click.option("--data", default="digits", show_default=True, help="digits; a .npz, .csv or .parquet file; IDX files; or a folder of images by class.")  # fmt: skip
@click.option("--label", help="Column of the label in a table.  [default: label, else the last]")
@click.option("--feature-range", type=(float, float), help="Public least and greatest feature value, scaled to 0 and 1.")  # fmt: skip
@click.option("--test-fraction", type=float, default=0.2, show_default=True, help="Share held out, unless the data have a test set.")  # fmt: skip
@click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of the held-out split.")  # fmt: skip
@click.option("--model", default="auto", show_default=True, help="auto, linear, mlp, cnn, or package.module:factory.")  # fmt: skip
@click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True)
@click.option("--learning-rate", type=float, help="[default: 1 for linear, 2 for others; 0.01 for adam]")  # fmt: skip
@click.option("--momentum", type=float, default=0.9, show_default=True)
@click.option("--target-epsilon", type=float, help="Use the least noise that keeps epsilon at most this.")  # fmt: skip
@click.option("--noise-multiplier", type=float, help="Noise's standard deviation / clip norm.")
@click.option("--delta", type=float, default=1e-5, show_default=True)
@click.option("--clip-norm", type=float, default=0.5, show_default=True, help="Largest L2 norm of one record's gradient.")  # fmt: skip
@click.option("--sampling-rate", type=float, default=0.1, show_default=True, help="Probability that a record joins a step.")  # fmt: skip
@click.option("--steps", type=int, default=100, show_default=True)
@click.option("--expected-batch-size", type=float, help="Public number that the noisy sum is divided by.  [default: from a noisy record count, booked]")  # fmt: skip
@click.option("--dataset-size", type=int, help="Public number of records N; with --batch-size and --epochs.")  # fmt: skip
@click.option("--batch-size", type=int, help="Expected batch size B: rate B/N, normaliser B.")
@click.option("--epochs", type=float, help="Epochs E: ceil(E N/B) steps.")
@click.option("--seed", type=int, help="Reproducible noise, for tests; no claim from it passes a gate.")  # fmt: skip
@click.option("--leaves-out", multiple=True, help="Name what else touched the records and is not in the claim, e.g. hyperparameter-tuning.")  # fmt: skip
@click.option("--canaries", type=int, default=0, show_default=True, help="Gradient-space canaries, scored at every step.")  # fmt: skip
@click.option("--input-canaries", type=int, help="Mislabelled training records.  [default: one for 10 canaries]")  # fmt: skip
@click.option("--physical-batch-size", type=int, default=256, show_default=True, help="Records in memory at once; a matter of speed alone.")  # fmt: skip
@click.option("--checkpoint-every", type=int, default=100, show_default=True, help="Steps between checkpoints.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Run directory to make.  [default: runs/NAME of the data]")  # fmt: skip
@click.option("--overwrite", "if_exists", flag_value="overwrite", help="Replace the run directory.")
@click.option("--resume", "if_exists", flag_value="resume", help="Go on with an interrupted run, by its own settings.")  # fmt: skip
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a model with DP-SGD; write the run directory with its ledger and its claim.

    \b
    dpaudit train --target-epsilon 3 --canaries 500
    dpaudit train --data mnist.npz --target-epsilon 3
    dpaudit train --resume --out runs/mnist
    """
    from dpaudit.report.words import claim_in_words
    from dpaudit.runs.directory import require_absent
    from dpaudit.trainer import run as runs
    from dpaudit.workflow.training import heldout_accuracy, write_claim

    out = _out(options)
    if options["if_exists"] == "resume":
        _refuse_settings(ctx)
        prepared = runs.prepare_resume(out)
        begin = runs.resume
    else:
        if options["if_exists"] is None:
            require_absent(out)
        prepared = runs.prepare(_config(ctx, options))
        begin = runs.train_over if options["if_exists"] == "overwrite" else runs.train
    privacy = prepared.config.privacy
    run = _with_progress(privacy, lambda on_step: begin(prepared, out, on_step))
    click.echo(claim_in_words(write_claim(run, privacy.delta)))
    click.echo(f"held-out accuracy {heldout_accuracy(run, prepared.split):.1%}")
    click.echo(f"wrote {run.path}")


def _out(options: Options) -> Path:
    if isinstance(options["out"], Path):
        return options["out"]
    return Path("runs") / Path(str(options["data"])).name.split(".")[0]


def _refuse_settings(ctx: click.Context) -> None:
    allowed = {"if_exists", "out"}
    for parameter in ctx.params:
        if parameter not in allowed and was_given(ctx, parameter):
            raise click.UsageError(
                f"--resume takes the run's own settings: leave out {option_name(parameter)}"
            )


def _config(ctx: click.Context, options: Options) -> RunConfig:
    """Return the run's settings; the types of ``dpaudit.vocabulary.settings`` check each value."""
    from dpaudit.vocabulary.settings import (
        CanarySettings,
        DataSettings,
        ModelSettings,
        RunConfig,
        SpeedSettings,
    )

    source = options["data"]
    if source != "digits":
        source = str(Path(source).resolve())
    canaries, inputs = options["canaries"], options["input_canaries"]
    return RunConfig(
        data=DataSettings(
            source,
            options["label"],
            options["feature_range"],
            options["test_fraction"],
            options["split_seed"],
        ),
        privacy=_privacy(ctx, options),
        model=ModelSettings(
            options["model"], options["optimizer"], options["learning_rate"], options["momentum"]
        ),
        canaries=CanarySettings(canaries, canaries // 10 if inputs is None else inputs),
        speed=SpeedSettings(options["physical_batch_size"], options["checkpoint_every"]),
    )


def _privacy(ctx: click.Context, options: Options) -> PrivacySettings:
    from dpaudit.vocabulary.settings import PrivacySettings
    from dpaudit.workflow.training import calibrated

    target, noise = options["target_epsilon"], options["noise_multiplier"]
    if (target is None) == (noise is None):
        raise click.UsageError("give one of --target-epsilon and --noise-multiplier")
    rate, steps, normaliser = _schedule(ctx, options)
    privacy = PrivacySettings(
        sampling_rate=rate,
        noise_multiplier=1.0 if noise is None else noise,
        clip_norm=options["clip_norm"],
        steps=steps,
        delta=options["delta"],
        expected_batch_size=normaliser,
        seed=options["seed"],
        leaves_out=tuple(options["leaves_out"]),
    )
    return privacy if target is None else calibrated(privacy, target)


def _schedule(ctx: click.Context, options: Options) -> tuple[float, int, float | None]:
    """Return sampling rate, steps and public normaliser, from rates or from public sizes."""
    from dpaudit.workflow.questions import rate_and_steps

    sizes = ("dataset_size", "batch_size", "epochs")
    if all(options[name] is None for name in sizes):
        return options["sampling_rate"], options["steps"], options["expected_batch_size"]
    for name in ("sampling_rate", "steps", "expected_batch_size"):
        if was_given(ctx, name):
            raise click.UsageError(
                f"--dataset-size, --batch-size, --epochs set {option_name(name)}"
            )
    size, batch, epochs = (required(name, options[name]) for name in sizes)
    rate, steps = rate_and_steps(size, batch, epochs)
    return rate, steps, float(batch)


def _with_progress(
    privacy: PrivacySettings, run: Callable[[Callable[[int], None]], RunDirectory]
) -> RunDirectory:
    """Run with a bar on standard error that shows epsilon so far; no bar without a terminal."""
    from dpaudit.report.words import spent_in_words
    from dpaudit.workflow.training import spent_so_far

    stream = click.get_text_stream("stderr")
    if not stream.isatty():
        return run(lambda done: None)
    spent = spent_so_far(privacy)
    with click.progressbar(
        length=privacy.steps,
        label="training",
        file=stream,
        item_show_func=lambda done: spent_in_words(spent(done)) if done else None,
    ) as bar:
        return run(lambda done: bar.update(done - bar.pos, done))
