"""``dpaudit train``: DP-SGD from a data file to a sealed and claimed run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.options import option_name, was_given, with_options
from dpaudit.cli.printing import named, say
from dpaudit.cli.train_options import TRAIN_OPTIONS

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from dpaudit.runs.directory import RunDirectory
    from dpaudit.trainer.observations import Observation
    from dpaudit.trainer.run import OnStep
    from dpaudit.vocabulary.settings import PrivacySettings, RunConfig
    from dpaudit.workflow.asked import Asked, Layer

Options = dict[str, Any]

SECTIONS = {
    "data": ("data", "label", "feature_range", "test_fraction", "split_seed"),
    "privacy": (
        *(
            "target_epsilon",
            "noise_multiplier",
            "delta",
            "clip_norm",
            "seed",
            "leaves_out",
            "noise",
        ),
        *("sampling_rate", "steps", "expected_batch_size"),
        *("dataset_size", "batch_size", "epochs"),
    ),
    "model": (
        *("model", "optimizer", "learning_rate", "momentum"),
        *("learning_rate_schedule", "average_decay"),
    ),
    "canaries": ("canaries", "input_canaries", "canary_directions"),
    "speed": ("physical_batch_size", "checkpoint_every", "device"),
}
"""The options that a configuration file can hold, by its sections."""

KEYS = {
    "data": "source",
    "canaries": "gradient",
    "input_canaries": "inputs",
    "canary_directions": "directions",
}
"""What an option is called there, where it is not called the same."""


@click.command()
@with_options(TRAIN_OPTIONS)
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
    """Train a model with DP-SGD; write the run directory with its ledger and its claim.

    CONFIG is a TOML file like a run's own config.toml; what it leaves out is as below. Options
    stand above it, and it above a preset.

    \b
    dpaudit train --target-epsilon 3 --canaries 500
    dpaudit train --data mnist.npz --preset mnist-scattering
    dpaudit train settings.toml --clip-norm 0.2
    dpaudit train --resume --out runs/mnist
    torchrun --nproc-per-node 2 -m dpaudit train settings.toml
    """
    from dpaudit.report.words import claim_in_words
    from dpaudit.runs.directory import require_absent
    from dpaudit.trainer import run as runs
    from dpaudit.workflow.asked import config_of
    from dpaudit.workflow.training import heldout_accuracy, write_claim

    begin: Callable[[runs.Prepared, Path, OnStep], RunDirectory]
    if options["if_exists"] == "resume":
        _refuse_settings(ctx)
        out = _out(options["out"], options["data"])
        prepared, begin = runs.prepare_resume(out), runs.resume
    else:
        asked = _asked(ctx, options)
        out = _out(options["out"], asked.source)
        begin = runs.train_over if options["if_exists"] == "overwrite" else runs.train
        if begin is runs.train:
            require_absent(out)
        prepared = runs.prepare(config_of(asked))
    privacy = prepared.config.privacy
    if prepared.ranks.rank != 0:  # the first one speaks
        begin(prepared, out, _say_nothing)
        return
    watch = partial(_watched, options["stop_when_refuted"], out, prepared.config)
    run = _with_progress(privacy, lambda on_step: begin(prepared, out, watch(on_step)))
    say(claim_in_words(write_claim(run, privacy.delta)))
    say(f"held-out accuracy {heldout_accuracy(run, prepared.split):.1%}")
    say(f"wrote {named(run.path)}")


def settings_of(config: Path) -> RunConfig:
    """Return the settings of ``dpaudit train CONFIG``, whose defaults are the options'."""
    from dpaudit.workflow.asked import config_of

    # With the variables that stand above the file when it is trained.
    context = train.make_context("train", [str(config)], auto_envvar_prefix="DPAUDIT_TRAIN")
    return config_of(_asked(context, context.params))


def _out(asked: Path | None, source: str) -> Path:
    return asked or Path("runs") / Path(source).name.split(".")[0]


def _refuse_settings(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name not in {"if_exists", "out", "stop_when_refuted"} and was_given(ctx, name):
            spelled = name.upper() if isinstance(parameter, click.Argument) else option_name(name)
            raise click.UsageError(f"--resume takes the run's own settings: leave out {spelled}")


def _asked(ctx: click.Context, options: Options) -> Asked:
    """Return what preset, file and command line ask for, on top of the options' defaults."""
    from dpaudit.workflow.asked import asked_for, read_file

    file = None if options["config"] is None else read_file(options["config"])
    given = {name for name in options if was_given(ctx, name)}
    by_default = _layer(options, options.keys() - given)
    return asked_for(by_default, options["preset"], file, _layer(options, given))


def _layer(options: Options, names: Set[str]) -> Layer:
    """Return the settings that the options called ``names`` hold, by section and key."""
    layer = {
        section: {KEYS.get(name, name): options[name] for name in members if name in names}
        for section, members in SECTIONS.items()
    }
    source = layer["data"].get("source", "digits")
    if source != "digits":
        layer["data"]["source"] = os.path.abspath(source)
    return layer


def _watched(confidence: float | None, out: Path, config: RunConfig, on_step: OnStep) -> OnStep:
    from dpaudit.workflow.watching import watched

    return on_step if confidence is None else watched(out, config, confidence, on_step)


def _with_progress(privacy: PrivacySettings, run: Callable[[OnStep], RunDirectory]) -> RunDirectory:
    """Run with a bar on standard error that shows epsilon so far; no bar without a terminal."""
    from dpaudit.report.words import spent_in_words
    from dpaudit.workflow.plans import spent_so_far

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

        def show(done: int, seen: Observation) -> None:
            bar.update(done - bar.pos)

        return run(show)


def _say_nothing(done: int, seen: Observation) -> None:
    pass
