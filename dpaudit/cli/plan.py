"""Options that say what is to be priced: a run, another library's file, or a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpaudit.cli.options import option_name, required, was_given, with_options
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.ledger import Sampling

if TYPE_CHECKING:
    from dpaudit.workflow.questions import Question

Command = TypeVar("Command", bound=Callable[..., Any])

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

FOREIGN = tuple(name for name in PLAN if name != "adjacency")
"""The options that another library's file answers by itself."""

NOISE = click.option(
    "--noise-multiplier", type=float, help="Noise's standard deviation / clip norm."
)

PLANNED = (Sampling.POISSON, Sampling.FULL_BATCH, Sampling.SHUFFLED)
SCHEDULE = (
    click.option("--sampling-rate", type=float, help="Probability that a record joins a step."),
    click.option("--steps", type=int, help="Number of noisy steps."),
    click.option("--dataset-size", type=int, help="Number of records N, taken as public."),
    click.option("--batch-size", type=int, help="Batch size B: the rate is B/N."),
    click.option("--epochs", type=float, help="Epochs E: the steps are ceil(E N/B)."),
    click.option(
        "--sampling",
        type=click.Choice([sampling.value for sampling in PLANNED]),
        default=Sampling.POISSON.value,
        show_default=True,
        help="How batches were drawn; shuffled batches earn no amplification.",
    ),
    click.option(
        "--adjacency",
        type=click.Choice([adjacency.value for adjacency in Adjacency]),
        default=Adjacency.ADD_OR_REMOVE_ONE.value,
        show_default=True,
        help="Which data sets count as neighbours.",
    ),
)

SOURCE = (
    click.argument("run", metavar="[RUN|FILE]", required=False, type=click.Path(path_type=Path)),
    click.option(
        "--from",
        "source",
        type=click.Choice(["opacus", "dp-event"]),
        help="Read FILE, the JSON of an Opacus history or of a dp_accounting event.",
    ),
    click.option(
        "--noise-set-for",
        type=click.Choice([Adjacency.ADD_OR_REMOVE_ONE.value, Adjacency.REPLACE_ONE.value]),
        default=Adjacency.ADD_OR_REMOVE_ONE.value,
        show_default=True,
        help="Neighbours whose sensitivity a dp-event's noise multipliers are relative to.",
    ),
)


def priced_options(command: Command) -> Command:
    """Add the options that say what is priced: a run, a file, or a plan with its noise."""
    return with_options([*SOURCE, NOISE, *SCHEDULE])(command)


def scheduled_options(command: Command) -> Command:
    """Add the options of a plan whose noise is still to be found."""
    return with_options(SCHEDULE)(command)


def question_of(ctx: click.Context, *, delta: float | None) -> Question:
    """Return the question that the options pose; ``delta`` None: the run's own."""
    from dpaudit.workflow import questions

    given: dict[str, Any] = ctx.params
    run, source = given["run"], given["source"]
    if was_given(ctx, "noise_set_for") and source != "dp-event":
        raise click.UsageError("--noise-set-for is for --from dp-event")
    if source is not None:
        _refuse_given(ctx, "FILE", FOREIGN)
        if run is None:
            raise click.UsageError(f"--from {source} needs a FILE")
        return questions.question_of_file(
            questions.Source(source),
            run,
            adjacency=Adjacency(given["adjacency"]),
            noise_set_for=Adjacency(given["noise_set_for"]),
            delta=required("delta", delta),
        )
    if run is not None:
        _refuse_given(ctx, "RUN", PLAN)
        return questions.question_of_run(run, delta)
    return questions.question_of_plan(
        rate=rate_and_steps(ctx),
        noise_multiplier=required("noise_multiplier", given["noise_multiplier"]),
        sampling=Sampling(given["sampling"]),
        adjacency=Adjacency(given["adjacency"]),
        delta=required("delta", delta),
    )


def rate_and_steps(ctx: click.Context) -> tuple[float, int]:
    """Return the sampling rate and the number of steps, given or from sizes and epochs."""
    from dpaudit.workflow import questions

    given: dict[str, Any] = ctx.params
    sampling_rate, steps = given["sampling_rate"], given["steps"]
    by_sizes = {name: given[name] for name in ("dataset_size", "batch_size", "epochs")}
    if all(value is None for value in by_sizes.values()):
        if given["sampling"] == Sampling.FULL_BATCH.value and sampling_rate is None:
            sampling_rate = 1.0
        return required("sampling_rate", sampling_rate), required("steps", steps)
    if sampling_rate is not None or steps is not None:
        raise click.UsageError(
            "give --sampling-rate and --steps, or --dataset-size, --batch-size and --epochs"
        )
    size, batch, passes = (required(name, value) for name, value in by_sizes.items())
    return questions.rate_and_steps(int(size), int(batch), float(passes))


def _refuse_given(ctx: click.Context, what: str, options: tuple[str, ...]) -> None:
    given = [name for name in options if name in ctx.params and was_given(ctx, name)]
    if given:
        raise click.UsageError(f"{what} has its own {option_name(given[0])}: give one or the other")
