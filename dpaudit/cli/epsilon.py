"""``dpaudit epsilon``: what a run, or a plan for one, costs."""

from __future__ import annotations

from pathlib import Path

import click

from dpaudit.cli.options import (
    OUTPUT,
    emit,
    format_option,
    option_name,
    required,
    was_given,
)
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.ledger import Sampling

PLAN = (
    "sampling_rate",
    "noise_multiplier",
    "steps",
    "dataset_size",
    "batch_size",
    "epochs",
    "sampling",
    "adjacency",
)
"""The options that a run answers by itself."""


@click.command()
@click.argument("run", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--sampling-rate", type=float, help="Probability that a record joins a step.")
@click.option("--noise-multiplier", type=float, help="Noise's standard deviation / clip norm.")
@click.option("--steps", type=int, help="Number of noisy steps.")
@click.option("--dataset-size", type=int, help="Number of records N, taken as public.")
@click.option("--batch-size", type=int, help="Batch size B: the rate is B/N.")
@click.option("--epochs", type=float, help="Epochs E: the steps are ceil(E N/B).")
@click.option("--delta", type=float, help="Delta of the statement; that of RUN by default.")
@click.option(
    "--sampling",
    type=click.Choice([sampling.value for sampling in Sampling]),
    default=Sampling.POISSON.value,
    show_default=True,
    help="How batches were drawn; shuffled batches earn no amplification.",
)
@click.option(
    "--adjacency",
    type=click.Choice([adjacency.value for adjacency in Adjacency]),
    default=Adjacency.ADD_OR_REMOVE_ONE.value,
    show_default=True,
    help="Which data sets count as neighbours.",
)
@click.option(
    "--accountant",
    type=click.Choice(["all", "pld", "rdp", "naive"]),
    default="all",
    show_default=True,
    help="Who computes.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def epsilon(
    ctx: click.Context,
    run: Path | None,
    sampling_rate: float | None,
    noise_multiplier: float | None,
    steps: int | None,
    dataset_size: int | None,
    batch_size: int | None,
    epochs: float | None,
    delta: float | None,
    sampling: str,
    adjacency: str,
    accountant: str,
    format_: str,
    output: Path | None,
) -> None:
    """Say what RUN, or a plan for a run, costs: epsilon by every accountant, side by side.

    \b
    dpaudit epsilon --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 --delta 1e-5
    dpaudit epsilon --dataset-size 60000 --batch-size 256 --epochs 60 \\
                    --noise-multiplier 1.1 --delta 1e-5
    dpaudit epsilon runs/digits
    """
    # Heavy imports stay inside the command that needs them.
    from dpaudit.report import text
    from dpaudit.workflow import questions

    given = [name for name in PLAN if was_given(ctx, name)]
    if run is not None:
        if given:
            raise click.UsageError(
                f"RUN has its own {option_name(given[0])}: give one or the other"
            )
        question = questions.question_of_run(run, delta)
    else:
        question = questions.question_of_plan(
            rate=_rate_and_steps(sampling_rate, steps, dataset_size, batch_size, epochs, sampling),
            noise_multiplier=required("noise_multiplier", noise_multiplier),
            sampling=Sampling(sampling),
            adjacency=Adjacency(adjacency),
            delta=required("delta", delta),
        )
    answers = questions.answer(question, accountant)
    if not question.finished:
        click.echo("the run is not finished: this is what it has spent so far", err=True)
    if format_ == "text":
        shown = text.epsilon_text(question.mechanism, question.sampling, answers)
    elif accountant == "all":
        shown = text.as_json(text.EpsilonAnswers(answers, question.mechanism))
    else:
        shown = text.as_json(answers[0])
    emit(shown, output)


def _rate_and_steps(
    sampling_rate: float | None,
    steps: int | None,
    dataset_size: int | None,
    batch_size: int | None,
    epochs: float | None,
    sampling: str,
) -> tuple[float, int]:
    from dpaudit.workflow.questions import rate_and_steps

    by_sizes = {"dataset_size": dataset_size, "batch_size": batch_size, "epochs": epochs}
    if all(value is None for value in by_sizes.values()):
        if sampling == Sampling.FULL_BATCH.value and sampling_rate is None:
            sampling_rate = 1.0
        return required("sampling_rate", sampling_rate), required("steps", steps)
    if sampling_rate is not None or steps is not None:
        raise click.UsageError(
            "give --sampling-rate and --steps, or --dataset-size, --batch-size and --epochs"
        )
    size, batch, passes = (required(name, value) for name, value in by_sizes.items())
    return rate_and_steps(int(size), int(batch), float(passes))
