"""Commands that train a run, finish it, and watch it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.commands import Choice, Command
from dpaudit.cli.federated import (
    FEDERATED_OPTIONS,
    config_of_layers,
    federated_layers,
    print_federated_plan,
    require_fitting_options,
    resume_federated,
    train_federated,
)
from dpaudit.cli.options import RUN, option_name, was_given, with_options
from dpaudit.cli.printing import print_text, printable_path, shows_progress, warn
from dpaudit.vocabulary.settings import (
    CANARY_DIRECTIONS,
    DEVICES,
    LEARNING_RATE_SCHEDULES,
    NOISE_DISTRIBUTIONS,
    OPTIMIZERS,
    PRESETS,
)

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

    from dpaudit.gate.policy import Policy
    from dpaudit.report.run_status import RunStatus
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.trainer.canaries.run_canaries import Observation
    from dpaudit.trainer.run import StepCallback
    from dpaudit.vocabulary.federation import FederatedConfig
    from dpaudit.vocabulary.settings import PrivacySettings, RunConfig
    from dpaudit.workflow.train.settings_layers import RequestedSettings, SettingsLayer
    from dpaudit.workflow.watch import Observer


# The options of ``dpaudit train``, read as a table: one option a line. An option made by
# ``_setting`` is a field of the settings; nothing else lists it.


class Setting(click.Option):
    """An option that is a field of a section of the settings.

    Args:
        *args: As for ``click.Option``.
        section: Name of the section in config.toml, such as ``privacy``.
        key: Name of the field; by default that of the option.
        **kwargs: As for ``click.Option``.
    """

    def __init__(self, *args: Any, section: str, key: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section, self.key = section, key or str(self.name)


def _refuse_both_names(
    ctx: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Refuse the option's variable under both its old and its present name: one would be lost."""
    names = ("DPAUDIT_TRAIN_LEAVES_OUT", "DPAUDIT_TRAIN_UNACCOUNTED")
    if all(name in os.environ for name in names):
        raise click.BadParameter(f"both ${names[0]} and ${names[1]} set it: keep the latter")
    return value


def _setting(section: str, *names: str, key: str | None = None, **kwargs: Any) -> Any:
    return click.option(*names, cls=Setting, section=section, key=key, **kwargs)


def print_presets(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the presets, and end the command."""
    if not asked or ctx.resilient_parsing:
        return
    from dpaudit.report.descriptions import presets_in_words

    print_text(presets_in_words(PRESETS))
    ctx.exit()


# fmt: off
TRAIN_OPTIONS = (
    click.argument("config", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path)),
    click.option("--preset", type=Choice(list(PRESETS)), metavar="NAME", help="Settings tuned on a benchmark, as --list-presets prints them. The privacy cost of tuning is not in the claim. CONFIG and options override them."),
    click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=print_presets, help="Print every preset and its source, and exit."),
    _setting("data", "--data", key="source", default="digits", show_default=True, help="digits; a .npz, .csv or .parquet file; IDX files; a folder of images by class; or a .txt or .bytes file, cut into token sequences."),
    _setting("data", "--label", help="Column of the label in a table.  [default: label, else the last]"),
    _setting("data", "--feature-range", type=(float, float), help="Public minimum and maximum of the features, scaled to 0 and 1."),
    _setting("data", "--text", help="Column of a table whose texts are the records, as token sequences."),
    _setting("data", "--tokenizer", help="Local folder with a Hugging Face tokenizer.json, for text.  [default: bytes as tokens]"),
    _setting("data", "--sequence-length", type=int, default=128, show_default=True, help="Number of tokens of a record of text."),
    _setting("data", "--test-fraction", type=float, default=0.2, show_default=True, help="Fraction of records held out, unless the data have a test set."),
    _setting("data", "--split-seed", type=int, default=0, show_default=True, help="Seed of the held-out split."),
    _setting("model", "--model", default="auto", show_default=True, help="linear, mlp, cnn, scattering, wrn-16-4; auto: cnn for images with sides of 16 or more, else linear; or package.module:factory, which is called with (shape, classes): the shape of a record and the number of classes. For text: gpt2-tiny, a local folder with config.json and safetensors weights, or a factory, called with ((length,), vocabulary)."),
    _setting("model", "--lora", key="lora_rank", type=int, metavar="RANK", help="Freeze the model and train adapters of this rank beside its linear layers."),
    _setting("model", "--freeze-body", is_flag=True, help="Train the last linear layer alone."),
    _setting("model", "--views", type=int, default=1, show_default=True, help="Views of each image, shifted and mirrored at random, whose losses are averaged before clipping."),
    _setting("model", "--optimizer", type=Choice(OPTIMIZERS), default="sgd", show_default=True, help="Optimizer of the noisy gradients."),
    _setting("model", "--learning-rate", type=float, help="Learning rate.  [default: 1 for linear, 2 for other models, 0.5 for text; 0.01 for Adam variants, 0.003 for text]"),
    _setting("model", "--momentum", type=float, default=0.9, show_default=True, help="Momentum of sgd."),
    _setting("model", "--learning-rate-schedule", type=Choice(LEARNING_RATE_SCHEDULES), default="constant", show_default=True, help="Learning rate over the steps."),
    _setting("model", "--average-decay", type=float, help="Save an exponential moving average of the weights with this decay, e.g. 0.99.  [default: the last weights]"),
    _setting("privacy", "--target-epsilon", type=float, help="Use the smallest noise multiplier whose epsilon is at most this."),
    _setting("privacy", "--noise-multiplier", type=float, help="Standard deviation of the noise divided by the clip norm."),
    _setting("privacy", "--delta", type=float, default=1e-5, show_default=True, help="Delta of the claim."),
    _setting("privacy", "--noise", type=Choice(NOISE_DISTRIBUTIONS), default="auto", show_default=True, help="Noise distribution; grid: rounded to a grid, so that the floats of the noise leak nothing; auto: grid on a CPU with the compiled kernels, else normal."),
    _setting("privacy", "--clip-norm", type=float, default=0.5, show_default=True, help="Largest L2 norm of one record's gradient."),
    _setting("privacy", "--sampling-rate", type=float, default=0.1, show_default=True, help="Probability that a record is in a batch."),
    _setting("privacy", "--steps", type=int, default=100, show_default=True, help="Number of noisy steps."),
    _setting("privacy", "--expected-batch-size", type=float, help="Public number that the noisy sum is divided by.  [default: from a noisy record count, recorded in the ledger]"),
    _setting("privacy", "--dataset-size", type=int, help="Public number of records N; with --batch-size and --epochs."),
    _setting("privacy", "--batch-size", type=int, help="Expected batch size B; the sampling rate is B/N."),
    _setting("privacy", "--epochs", type=float, help="Number of epochs E; the number of steps is ceil(E N/B)."),
    _setting("privacy", "--seed", type=int, help="Seed of reproducible noise, for tests; no claim from it passes a gate."),
    _setting("privacy", "--unaccounted", "--leaves-out", "unaccounted", envvar="DPAUDIT_TRAIN_LEAVES_OUT", callback=_refuse_both_names, multiple=True, help="Another use of the records that the claim does not cover, e.g. hyperparameter-tuning. Repeatable."),
    _setting("canaries", "--canaries", key="gradient", type=int, default=0, show_default=True, help="Number of gradient-space canaries, scored at every step."),
    _setting("canaries", "--canary-directions", key="directions", type=Choice(CANARY_DIRECTIONS), default="own", show_default=True, help="own: extra coordinates beside the parameters, which do not interfere with records; dirac: one parameter each; orthogonal: disjoint sets of parameters."),
    _setting("canaries", "--input-canaries", key="inputs", type=int, help="Number of mislabelled training records; on text, of sequences that end with a token of their own.  [default: one per 20 canaries; 0 on text]"),
    _setting("canaries", "--canary-file", key="file", metavar="FILE", help="File of dpaudit canaries make (records, secrets or synthetic sentences), whose included canaries are added to the training records. Train on data without them."),
    click.option("--stop-when-refuted", type=float, metavar="CONFIDENCE", help="Stop with exit code 1 when the canaries refute the claim at this confidence; tested after every step."),
    _setting("speed", "--physical-batch-size", type=int, default=128, show_default=True, help="Number of records in memory at once; affects speed only."),
    _setting("speed", "--checkpoint-every", type=int, default=100, show_default=True, help="Number of steps between checkpoints."),
    _setting("speed", "--device", type=Choice(DEVICES), default="auto", show_default=True, help="Device that trains; auto: a GPU if there is one, else the CPU."),
    *FEDERATED_OPTIONS,
    click.option("--out", type=click.Path(path_type=Path), help="Run directory to create.  [default: runs/NAME of the data]"),
    click.option("--dry-run", is_flag=True, help="Print settings with their origins, epsilon and the policy's verdict on the plan; train and write nothing."),
    click.option("--overwrite", "if_exists", flag_value="overwrite", help="Replace the run directory."),
    click.option("--resume", "if_exists", flag_value="resume", help="Continue an interrupted run with its own settings."),
)
# fmt: on


Options = dict[str, Any]
RESUME_OPTIONS = frozenset({"if_exists", "out", "stop_when_refuted"})
"""Options that --resume takes; all others are settings of the interrupted run."""


@click.command("train", cls=Command)
@with_options(TRAIN_OPTIONS)
@click.pass_context
def train_command(ctx: click.Context, /, **options: Any) -> None:
    """Train a model or a federation and write its run directory.

    A classifier learns the classes of records; a language model predicts the tokens of text.

    CONFIG is a TOML file like the config.toml of a run; keys that it does not set have the
    defaults below. Options override CONFIG, and CONFIG overrides a preset.

    \b
    dpaudit train --target-epsilon 3 --canaries 500
    dpaudit train --data mnist.npz --preset mnist-scattering
    dpaudit train --data notes.parquet --text body --model models/gpt2 \\
        --tokenizer models/gpt2 --lora 8 --target-epsilon 3
    dpaudit train settings.toml --clip-norm 0.2 --dry-run
    dpaudit train --resume --out runs/mnist
    dpaudit train --federated fedavg settings.toml --target-epsilon 4
    torchrun --nproc-per-node 2 -m dpaudit train settings.toml
    """
    if _is_federated(ctx, options):
        _train_federation(ctx, options)
        return
    if options["dry_run"] and options["if_exists"] != "resume":
        _print_plan(ctx, options)
        return
    from dpaudit.report.descriptions import claim_in_words
    from dpaudit.runs.directory import require_absent
    from dpaudit.trainer import run as runs
    from dpaudit.workflow.train.accuracy import evaluate_heldout
    from dpaudit.workflow.train.finish import finish_and_read_claim
    from dpaudit.workflow.train.settings_layers import build_run_config

    begin: Callable[[runs.PreparedRun, Path, StepCallback], RunDirectory]
    if options["if_exists"] == "resume":
        _refuse_settings(ctx)
        out = _out(options["out"], options["data"])
        prepared, begin = runs.prepare_resume(out), runs.resume_run
    else:
        asked = _asked(ctx, options)
        _name_preset(ctx, asked)
        out = _out(options["out"], asked.source)
        begin = runs.replace_run if options["if_exists"] == "overwrite" else runs.train_run
        if begin is runs.train_run:
            require_absent(out)
        prepared = runs.prepare_run(build_run_config(asked))
    privacy = prepared.config.privacy
    if prepared.ranks.rank != 0:  # only the first one prints
        begin(prepared, out, _say_nothing)
        return
    watch = partial(_watched, options["stop_when_refuted"], out, prepared.config)
    run = _with_progress(privacy, lambda on_step: begin(prepared, out, watch(on_step)))
    print_text(claim_in_words(finish_and_read_claim(run, privacy.delta)))
    print_text(str(evaluate_heldout(run, prepared.split)))
    print_text(f"wrote {printable_path(run.path)}")


def _is_federated(ctx: click.Context, options: Options) -> bool:
    """Return whether the command is for a federation; refuse options of the other kind."""
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.runs.file_io import has_table

    resumed = options["if_exists"] == "resume"
    federated = options["federated"] is not None
    if resumed:
        config = RunDirectory(_out(options["out"], options["data"])).config
        federated = config.is_file() and has_table(config, "federation")
    given = {name for name in options if was_given(ctx, name)}
    if not resumed:  # a resumed run refuses every setting, by its own message
        require_fitting_options(ctx.command, given, federated=federated)
    return federated


def _train_federation(ctx: click.Context, options: Options) -> None:
    if options["if_exists"] == "resume":
        _refuse_settings(ctx)
        resume_federated(_out(options["out"], options["data"]))
        return
    layers = _federated_layers(ctx, options)
    if options["dry_run"]:
        new = options["if_exists"] is None
        print_federated_plan(ctx, layers, options["out"], new=new)
        return
    train_federated(config_of_layers(layers), options["out"], options["if_exists"])


def _federated_layers(ctx: click.Context, options: Options) -> list[tuple[str, SettingsLayer]]:
    sources = {name: _SOURCE_NAMES.get(_source(ctx, name)) for name in options}
    given = {name: source for name, source in sources.items() if source is not None}
    return federated_layers(ctx.command, options, given)


def plan_of_file(config: Path) -> PrivacySettings | FederatedConfig:
    """Return the settings of ``dpaudit train [--federated] CONFIG`` that its epsilon follows from.

    Args:
        config: A configuration file.

    Returns:
        The privacy settings of a run of one trainer, or all settings of a federation.
    """
    from dpaudit.workflow.train.settings_layers import is_federated_file

    if not is_federated_file(config):
        return settings_of_file(config).privacy
    context = train_command.make_context("train", [str(config)], auto_envvar_prefix="DPAUDIT_TRAIN")
    return config_of_layers(_federated_layers(context, context.params))


def settings_of_file(config: Path) -> RunConfig:
    """Return the settings of ``dpaudit train CONFIG``, whose defaults are the options'."""
    from dpaudit.workflow.train.settings_layers import build_run_config

    # With the variables that override the file in training.
    context = train_command.make_context("train", [str(config)], auto_envvar_prefix="DPAUDIT_TRAIN")
    return build_run_config(_asked(context, context.params))


def _print_plan(ctx: click.Context, options: Options) -> None:
    """Print what a run would do; exit with the verdict of the policy on it, if there is one."""
    from dpaudit.cli.gate import print_plan_verdict
    from dpaudit.report.verdicts.text import training_plan_text
    from dpaudit.runs.directory import require_absent
    from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, planned_claim
    from dpaudit.workflow.train.settings_layers import build_run_config, setting_origins

    asked = _asked(ctx, options)
    _name_preset(ctx, asked)
    out = _out(options["out"], asked.source)
    if options["if_exists"] is None:
        require_absent(out)
    settings = build_run_config(asked)
    _require_data(settings)
    origins = setting_origins(settings, _named_layers(ctx, options, settings.preset))
    origins["preset"] = _SOURCE_NAMES.get(_source(ctx, "preset"), str(options["config"]))
    claim = planned_claim(settings.privacy, settings.privacy.delta, CLAIM_ACCOUNTANT)
    print_text(training_plan_text(settings, origins, claim))
    print_text(f"dry run: nothing was trained; the run would be {printable_path(out)}")
    print_plan_verdict(ctx, settings.privacy)


def _name_preset(ctx: click.Context, asked: RequestedSettings) -> None:
    """Name the preset for the records in a line on standard error, if no model was chosen."""
    from dpaudit.vocabulary.settings import preset_for

    name = preset_for(asked.source)
    if name is None or asked.preset is not None or asked.sections["model"]["model"] != "auto":
        return
    known = PRESETS[name]
    warn(
        f"dpaudit: hint: --preset {name} is for records of this name ({known.figure}, at epsilon "
        f"{known.target_epsilon:g} and delta {known.delta:g})"
    )


def _require_data(settings: RunConfig) -> None:
    """Refuse data or a canary file that do not exist; nothing is read."""
    from dpaudit.vocabulary.errors import UnreadableFile

    source = settings.data.source
    if source != "digits" and not os.path.exists(source):
        raise UnreadableFile("data", source, "digits, or a file or folder that exists")
    canaries = settings.canaries.file
    if canaries is not None and not os.path.isfile(canaries):
        raise UnreadableFile("canary_file", canaries, "a file that exists")


_SOURCE_NAMES = {"ENVIRONMENT": "variable", "COMMANDLINE": "command line"}


def _named_layers(
    ctx: click.Context, options: Options, preset: str | None
) -> list[tuple[str, SettingsLayer]]:
    """Return the layers of settings with their names; the last one overrides the others."""
    from dpaudit.workflow.train.settings_layers import read_config_file

    layers: list[tuple[str, SettingsLayer]] = []
    if preset is not None:
        layers.append((f"preset {preset}", PRESETS[preset].settings))
    if options["config"] is not None:
        layers.append((str(options["config"]), read_config_file(options["config"]).layer))
    for source, name in _SOURCE_NAMES.items():
        given = {one for one in options if _source(ctx, one) == source}
        layers.append((name, _layer(options, given)))
    return layers


def _source(ctx: click.Context, parameter: str) -> str:
    source = ctx.get_parameter_source(parameter)
    return "" if source is None else source.name


def _out(asked: Path | None, source: str) -> Path:
    return asked or Path("runs") / Path(source).name.split(".")[0]


def _refuse_settings(ctx: click.Context) -> None:
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name not in RESUME_OPTIONS and was_given(ctx, name):
            spelled = name.upper() if isinstance(parameter, click.Argument) else option_name(name)
            raise click.UsageError(f"--resume takes the run's own settings: leave out {spelled}")


def _asked(ctx: click.Context, options: Options) -> RequestedSettings:
    """Merge the options' defaults, the preset, the file and the command line."""
    from dpaudit.workflow.train.settings_layers import merge_settings, read_config_file

    file = None if options["config"] is None else read_config_file(options["config"])
    given = {name for name in options if was_given(ctx, name)}
    by_default = _layer(options, options.keys() - given)
    return merge_settings(by_default, options["preset"], file, _layer(options, given))


def _layer(options: Options, names: Set[str]) -> SettingsLayer:
    """Return the settings that the options called ``names`` hold, by section and key."""
    from dpaudit.workflow.train.settings_layers import with_absolute_paths

    settings = [one for one in train_command.params if isinstance(one, Setting)]
    layer: dict[str, dict[str, Any]] = {one.section: {} for one in settings}
    for one in settings:
        if one.name in names:
            layer[one.section][one.key] = options[one.name]
    return with_absolute_paths(layer, Path())


def _watched(
    confidence: float | None, out: Path, config: RunConfig, on_step: StepCallback
) -> StepCallback:
    from dpaudit.workflow.train.stop_when_refuted import with_refutation_check

    return (
        on_step if confidence is None else with_refutation_check(out, config, confidence, on_step)
    )


def _with_progress(
    privacy: PrivacySettings, run: Callable[[StepCallback], RunDirectory]
) -> RunDirectory:
    """Run with a bar on standard error that shows epsilon so far; no bar without a terminal."""
    from dpaudit.report.descriptions import spent_epsilon_in_words
    from dpaudit.workflow.run_claims import epsilon_progress

    if not shows_progress():
        return run(_say_nothing)
    spent = epsilon_progress(privacy)
    bar: ProgressBar[int] = click.progressbar(
        length=privacy.steps,
        label="training",
        file=sys.stderr,
        item_show_func=lambda _: spent_epsilon_in_words(spent(bar.pos)) if bar.pos else None,
    )
    with bar:

        def show(done: int, seen: Observation) -> None:
            bar.update(done - bar.pos)

        return run(show)


def _say_nothing(done: int, seen: Observation) -> None:
    pass


# ``dpaudit finish``: complete a run whose process died after its last step.


@click.command("finish", cls=Command)
@RUN
@click.option(
    "--delta", type=float, help="Delta of the claim.  [default: that of the settings of RUN]"
)
def finish_command(run: Path, delta: float | None) -> None:
    """Complete a run whose process died after its last step.

    Writes the missing claim and the seal of the ledger if the files of RUN prove that
    training has ended. Trains nothing; resume a run that has steps left.

    \b
    dpaudit finish runs/mnist
    dpaudit finish runs/own-loop --delta 1e-5
    """
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.train import finish

    done = finish.finish_run(open_run(run), delta)
    print_text(f"{printable_path(run)} {done.value}")


# ``dpaudit watch``: progress of a run while it trains.


@click.command("watch", cls=Command)
@RUN
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="Policy whose limit is shown.  [default: the one in force, if there is a dpaudit.toml]",
)
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Seconds between two readings.",
)
@click.option("--once", is_flag=True, help="Print the state once and exit.")
def watch_command(run: Path, policy: Path | None, every: float, once: bool) -> None:
    """Show the progress of a run while it trains.

    Shows epsilon spent and left, steps, accuracy and the projected end. Only reads, and exits
    when the run is finished. If standard output is no terminal, prints one line per reading.

    \b
    dpaudit watch runs/mnist
    dpaudit watch runs/mnist --once
    """
    from dpaudit.report.run_status import status_line, status_text
    from dpaudit.runs.directory import open_run
    from dpaudit.workflow.watch import Observer

    run_observer = Observer(open_run(run), _policy(policy), time.time)
    if not once and run_observer.read_status().finished:
        warn(
            f"dpaudit: {printable_path(run)} is finished, so there is nothing to wait for; "
            f"dpaudit run show prints more of it"
        )
    if once:
        print_text(status_text(run_observer.read_status()))
    elif sys.stdout.isatty():
        from dpaudit.report.live_screen import show_live

        show_live(_looks(run_observer, every))
    else:
        for seen in _looks(run_observer, every):
            print_text(status_line(seen))


def _looks(run_observer: Observer, every: float) -> Iterator[RunStatus]:
    """Yield the state every few seconds until the run is finished."""
    while True:
        seen = run_observer.read_status()
        yield seen
        if seen.finished:
            return
        time.sleep(every)


def _policy(path: Path | None) -> Policy | None:
    """Return the given policy, or the one in force if the working directory has one."""
    from dpaudit.workflow.gate.policy_sources import POLICY_FILE, load_policy, read_policy

    if path is not None:
        return read_policy(path)
    return load_policy(None).policy if Path(POLICY_FILE).is_file() else None
