"""The options of ``dpaudit train``, read as a table: one option a line."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.printing import say
from dpaudit.vocabulary.presets import PRESETS
from dpaudit.vocabulary.settings import DEVICES, DIRECTIONS, NOISES, OPTIMIZERS, SCHEDULES


def print_presets(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the presets, and end the command."""
    if not asked or ctx.resilient_parsing:
        return
    from dpaudit.report.presets import presets_in_words

    say(presets_in_words(PRESETS))
    ctx.exit()


# fmt: off
TRAIN_OPTIONS = (
    click.argument("config", metavar="[CONFIG]", required=False, type=click.Path(path_type=Path)),
    click.option("--preset", type=click.Choice(list(PRESETS)), help="Settings tuned on a benchmark, which cost privacy that the claim leaves out; CONFIG and options stand above them."),
    click.option("--list-presets", is_flag=True, is_eager=True, expose_value=False, callback=print_presets, help="Show every preset and where it comes from."),
    click.option("--data", default="digits", show_default=True, help="digits; a .npz, .csv or .parquet file; IDX files; or a folder of images by class."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--feature-range", type=(float, float), help="Public least and greatest feature value, scaled to 0 and 1."),
    click.option("--test-fraction", type=float, default=0.2, show_default=True, help="Share held out, unless the data have a test set."),
    click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of the held-out split."),
    click.option("--model", default="auto", show_default=True, help="auto, linear, mlp, cnn, scattering, or package.module:factory."),
    click.option("--optimizer", type=click.Choice(OPTIMIZERS), default="sgd", show_default=True),
    click.option("--learning-rate", type=float, help="[default: 1 for linear, 2 for others; 0.01 for adam's kin]"),
    click.option("--momentum", type=float, default=0.9, show_default=True),
    click.option("--learning-rate-schedule", type=click.Choice(SCHEDULES), default="constant", show_default=True),
    click.option("--average-decay", type=float, help="Ship an exponential average of the weights, e.g. 0.99.  [default: the last weights]"),
    click.option("--target-epsilon", type=float, help="Use the least noise that keeps epsilon at most this."),
    click.option("--noise-multiplier", type=float, help="Noise's standard deviation / clip norm."),
    click.option("--delta", type=float, default=1e-5, show_default=True),
    click.option("--noise", type=click.Choice(NOISES), default="normal", show_default=True, help="grid: rounded on a grid, so that the noise's own floats leak nothing."),
    click.option("--clip-norm", type=float, default=0.5, show_default=True, help="Largest L2 norm of one record's gradient."),
    click.option("--sampling-rate", type=float, default=0.1, show_default=True, help="Probability that a record joins a step."),
    click.option("--steps", type=int, default=100, show_default=True),
    click.option("--expected-batch-size", type=float, help="Public number that the noisy sum is divided by.  [default: from a noisy record count, booked]"),
    click.option("--dataset-size", type=int, help="Public number of records N; with --batch-size and --epochs."),
    click.option("--batch-size", type=int, help="Expected batch size B: rate B/N, normaliser B."),
    click.option("--epochs", type=float, help="Epochs E: ceil(E N/B) steps."),
    click.option("--seed", type=int, help="Reproducible noise, for tests; no claim from it passes a gate."),
    click.option("--leaves-out", multiple=True, help="Name what else touched the records and is not in the claim, e.g. hyperparameter-tuning."),
    click.option("--canaries", type=int, default=0, show_default=True, help="Gradient-space canaries, scored at every step."),
    click.option("--canary-directions", type=click.Choice(DIRECTIONS), default="own", show_default=True, help="own: coordinates beside the parameters, which cannot interfere with records; dirac: one parameter each; orthogonal: all parameters, shared out."),
    click.option("--input-canaries", type=int, help="Mislabelled training records.  [default: one for 20 canaries]"),
    click.option("--stop-when-refuted", type=float, metavar="CONFIDENCE", help="Stop, exit code 1, once the canaries refute the claim at this confidence; looked at after every step."),
    click.option("--physical-batch-size", type=int, default=128, show_default=True, help="Records in memory at once; a matter of speed alone."),
    click.option("--checkpoint-every", type=int, default=100, show_default=True, help="Steps between checkpoints."),
    click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True),
    click.option("--out", type=click.Path(path_type=Path), help="Run directory to make.  [default: runs/NAME of the data]"),
    click.option("--overwrite", "if_exists", flag_value="overwrite", help="Replace the run directory."),
    click.option("--resume", "if_exists", flag_value="resume", help="Go on with an interrupted run, by its own settings."),
)
# fmt: on
