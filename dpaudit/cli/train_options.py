"""The options of ``dpaudit train``, read as a table: one option a line."""

from __future__ import annotations

from pathlib import Path

import click

# fmt: off
TRAIN_OPTIONS = (
    click.option("--data", default="digits", show_default=True, help="digits; a .npz, .csv or .parquet file; IDX files; or a folder of images by class."),
    click.option("--label", help="Column of the label in a table.  [default: label, else the last]"),
    click.option("--feature-range", type=(float, float), help="Public least and greatest feature value, scaled to 0 and 1."),
    click.option("--test-fraction", type=float, default=0.2, show_default=True, help="Share held out, unless the data have a test set."),
    click.option("--split-seed", type=int, default=0, show_default=True, help="Seed of the held-out split."),
    click.option("--model", default="auto", show_default=True, help="auto, linear, mlp, cnn, or package.module:factory."),
    click.option("--optimizer", type=click.Choice(["sgd", "adam"]), default="sgd", show_default=True),
    click.option("--learning-rate", type=float, help="[default: 1 for linear, 2 for others; 0.01 for adam]"),
    click.option("--momentum", type=float, default=0.9, show_default=True),
    click.option("--target-epsilon", type=float, help="Use the least noise that keeps epsilon at most this."),
    click.option("--noise-multiplier", type=float, help="Noise's standard deviation / clip norm."),
    click.option("--delta", type=float, default=1e-5, show_default=True),
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
    click.option("--input-canaries", type=int, help="Mislabelled training records.  [default: one for 20 canaries]"),
    click.option("--physical-batch-size", type=int, default=128, show_default=True, help="Records in memory at once; a matter of speed alone."),
    click.option("--checkpoint-every", type=int, default=100, show_default=True, help="Steps between checkpoints."),
    click.option("--out", type=click.Path(path_type=Path), help="Run directory to make.  [default: runs/NAME of the data]"),
    click.option("--overwrite", "if_exists", flag_value="overwrite", help="Replace the run directory."),
    click.option("--resume", "if_exists", flag_value="resume", help="Go on with an interrupted run, by its own settings."),
)
# fmt: on
