"""``dpaudit train``: DP-SGD from a data file to a sealed and claimed run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import option_name, required, was_given, with_options
from dpaudit.cli.train_options import TRAIN_OPTIONS

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from dpaudit.runs.directory import RunDirectory
    from dpaudit.vocabulary.settings import PrivacySettings, RunConfig

Options = dict[str, Any]


@click.command()
@with_options(TRAIN_OPTIONS)
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
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
    begin: Callable[[runs.Prepared, Path, runs.OnStep], RunDirectory]
    if options["if_exists"] == "resume":
        _refuse_settings(ctx)
        prepared, begin = runs.prepare_resume(out), runs.resume
    elif options["if_exists"] == "overwrite":
        prepared, begin = runs.prepare(_config(ctx, options)), runs.train_over
    else:
        require_absent(out)
        prepared, begin = runs.prepare(_config(ctx, options)), runs.train
    privacy = prepared.config.privacy
    run = _with_progress(privacy, partial(begin, prepared, out))
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
        canaries=CanarySettings(canaries, canaries // 20 if inputs is None else inputs),
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

    if not sys.stderr.isatty():
        return run(_say_nothing)
    spent = spent_so_far(privacy)
    bar: ProgressBar[int] = click.progressbar(
        length=privacy.steps,
        label="training",
        file=sys.stderr,
        item_show_func=lambda _: spent_in_words(spent(bar.pos)) if bar.pos else None,
    )
    with bar:

        def show(done: int) -> None:
            bar.update(done - bar.pos)

        return run(show)


def _say_nothing(done: int) -> None:
    pass
