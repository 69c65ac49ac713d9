"""``dpaudit epsilon``, ``delta``, ``noise`` and ``tradeoff``: accounting of runs and plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpaudit.cli.commands import Choice, Command
from dpaudit.cli.number_types import Count, LargestRate, Rate, Rates
from dpaudit.cli.options import (
    OUTPUT,
    InputPath,
    format_option,
    option_name,
    require_option,
    was_given,
    with_options,
    write_result,
)
from dpaudit.cli.printing import print_message
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.privacy_terms import ACCOUNTANTS, SAMPLING_ACCOUNTANTS, Adjacency

if TYPE_CHECKING:
    from dpaudit.workflow.account import PricingRequest


# Options that name the mechanism: a run, another library's file, or a plan.

Function = TypeVar("Function", bound=Callable[..., Any])

PLAN_OPTIONS = (
    "sampling_rate",
    "noise_multiplier",
    "steps",
    "dataset_size",
    "batch_size",
    "epochs",
    "sampling",
    "adjacency",
)
"""The options that a run has values for."""

FILE_OPTIONS = tuple(name for name in PLAN_OPTIONS if name != "adjacency")
"""The options that another library's file has values for."""

NOISE_OPTION = click.option(
    "--noise-multiplier",
    type=float,
    help="Standard deviation of the noise divided by the clip norm.",
)

PLANNED_SAMPLING = (Sampling.POISSON, Sampling.FULL_BATCH, Sampling.SHUFFLED)
SCHEDULE_OPTIONS = (
    click.option(
        "--sampling-rate",
        type=Rate(),
        help="Probability that a record is in a batch, as 0.01, 1% or 256/60000.",
    ),
    click.option("--steps", type=Count(), help="Number of noisy steps, as 10000 or 1e4."),
    click.option("--dataset-size", type=Count(), help="Number of records N, assumed to be public."),
    click.option("--batch-size", type=Count(), help="Batch size B: the sampling rate is B/N."),
    click.option(
        "--epochs",
        type=float,
        help="Number of epochs E, in place of --steps: the number of steps is ceil(E N/B).",
    ),
    click.option(
        "--sampling",
        type=Choice([sampling.value for sampling in PLANNED_SAMPLING]),
        default=Sampling.POISSON.value,
        show_default=True,
        help="How batches are drawn; shuffled batches get no amplification.",
    ),
    click.option(
        "--adjacency",
        type=Choice([adjacency.value for adjacency in Adjacency]),
        default=Adjacency.ADD_OR_REMOVE_ONE.value,
        show_default=True,
        help="Which data sets are neighbors.",
    ),
)

SOURCE_OPTIONS = (
    click.argument("run", metavar="[RUN|FILE]", required=False, type=InputPath(".json")),
    click.option(
        "--from",
        "source",
        type=Choice(["dpaudit", "opacus", "dp-event", "flower", "tf-privacy", "jax-privacy"]),
        help="Format of FILE, if its content is not enough: a mechanism, answer or plan of "
        "dpaudit, an Opacus history or checkpoint (.pt), a dp_accounting event, the state of a "
        "Flower accountant, a ledger of TensorFlow Privacy, or a plan of JAX Privacy. FILE may "
        "be -, standard input.",
    ),
    click.option(
        "--noise-set-for",
        type=Choice([Adjacency.ADD_OR_REMOVE_ONE.value, Adjacency.REPLACE_ONE.value]),
        default=Adjacency.ADD_OR_REMOVE_ONE.value,
        show_default=True,
        help="Neighbors whose sensitivity the noise multipliers of a dp-event refer to.",
    ),
)


def pricing_options(command: Function) -> Function:
    """Add the options that name the mechanism: a run, a file, or a plan with its noise."""
    return with_options([*SOURCE_OPTIONS, NOISE_OPTION, *SCHEDULE_OPTIONS])(command)


def schedule_options(command: Function) -> Function:
    """Add the options of a plan without a noise multiplier."""
    return with_options(SCHEDULE_OPTIONS)(command)


def pricing_request(ctx: click.Context, *, delta: float | None) -> PricingRequest:
    """Return the request that the options describe; ``delta`` None: the run's own."""
    from dpaudit.workflow import account

    given: dict[str, Any] = ctx.params
    run, source = given["run"], given["source"]
    if was_given(ctx, "noise_set_for") and source != "dp-event":
        raise click.UsageError("--noise-set-for is for --from dp-event")
    if source is not None and run is None:
        raise click.UsageError(f"--from {source} needs a FILE")
    if run is not None and (source is not None or (run.exists() and not run.is_dir())):
        of_state = source == account.ExternalFormat.FLOWER.value
        _refuse_given(ctx, "FILE", PLAN_OPTIONS if of_state else FILE_OPTIONS)
        return account.request_for_file(
            None if source is None else account.ExternalFormat(source),
            run,
            adjacency=Adjacency(given["adjacency"]) if was_given(ctx, "adjacency") else None,
            noise_set_for=Adjacency(given["noise_set_for"]),
            delta=delta,
        )
    if run is not None:
        _refuse_given(ctx, "RUN", PLAN_OPTIONS)
        return account.request_for_run(run, delta)
    if not any(was_given(ctx, name) for name in PLAN_OPTIONS):
        raise click.UsageError(
            "nothing to compute from: give a RUN, a FILE, or a plan: "
            "--noise-multiplier with --sampling-rate and --steps, or with --dataset-size, "
            "--batch-size and --epochs"
        )
    return account.request_for_plan(
        rate=schedule_of_options(ctx),
        noise_multiplier=require_option("noise_multiplier", given["noise_multiplier"]),
        sampling=Sampling(given["sampling"]),
        adjacency=Adjacency(given["adjacency"]),
        delta=require_option("delta", delta),
    )


def schedule_of_options(ctx: click.Context) -> tuple[float, int]:
    """Return the sampling rate and the number of steps, given or from sizes and epochs."""
    from dpaudit.workflow import account

    given: dict[str, Any] = ctx.params
    sampling_rate, steps = given["sampling_rate"], given["steps"]
    by_sizes = {name: given[name] for name in ("dataset_size", "batch_size")}
    epochs = given["epochs"]
    if epochs is None and all(value is None for value in by_sizes.values()):
        if given["sampling"] == Sampling.FULL_BATCH.value and sampling_rate is None:
            sampling_rate = 1.0
        return require_option("sampling_rate", sampling_rate), require_option("steps", steps)
    if sampling_rate is not None or (steps is not None and epochs is not None):
        raise click.UsageError(
            "give --sampling-rate and --steps, or --dataset-size and --batch-size with --epochs "
            "or --steps"
        )
    size, batch = (int(require_option(name, value)) for name, value in by_sizes.items())
    if steps is not None:
        return account.rate_from_sizes(size, batch), int(steps)
    return account.schedule_from_sizes(size, batch, float(require_option("epochs", epochs)))


def _refuse_given(ctx: click.Context, what: str, options: tuple[str, ...]) -> None:
    given = [name for name in options if name in ctx.params and was_given(ctx, name)]
    if given:
        raise click.UsageError(f"{what} has its own {option_name(given[0])}: give one or the other")


@click.command(cls=Command)
@pricing_options
@click.option(
    "--delta",
    type=float,
    help="Delta of the guarantee; 0 for the epsilon of pure mechanisms.  [default: that of RUN, "
    "of a plan or of a Flower state]",
)
@click.option(
    "--accountant",
    type=Choice(["all", *ACCOUNTANTS]),
    default="all",
    show_default=True,
    help="Accountant; zcdp and gdp support no sampling.",
)
@click.option(
    "--explain", is_flag=True, help="Print the method of the interval and its error budget."
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def epsilon(
    ctx: click.Context,
    /,
    delta: float | None,
    accountant: str,
    explain: bool,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Compute epsilon of a run, a training plan or FILE.

    Prints a lower and an upper bound by each accountant; of a federated run, of each
    participant, too. FILE names a mechanism: an answer of dpaudit in JSON, a plan with
    [[release]] tables in TOML, or the history of another library.

    \b
    dpaudit epsilon --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 \\
                    --delta 1e-5
    dpaudit epsilon --dataset-size 60000 --batch-size 256 --epochs 60 \\
                    --noise-multiplier 1.1 --delta 1e-5
    dpaudit epsilon runs/digits
    dpaudit epsilon plan.toml --delta 1e-5
    dpaudit epsilon history.json --delta 1e-5
    """
    # Heavy imports stay inside the command that needs them.
    from dpaudit.report import text
    from dpaudit.workflow import account

    question = pricing_request(ctx, delta=delta)
    answers = account.epsilon_answers(question, accountant)
    if explain:
        answers = account.with_explanations(question, answers)
    if question.caveat is not None:
        print_message(question.caveat)
    for warning in account.delta_warnings(question, ctx.params["dataset_size"]):
        print_message(f"warning: {warning}")
    if format_ == "text":
        shown = text.epsilon_text(question.mechanism, question.sampling, answers)
        if question.federation is not None:
            shown += "\n\n" + text.participants_text(
                question.federation, answers, question.without_release, question.notes
            )
        if explain:
            shown += "\n\n" + text.guarantee_text(question.mechanism, answers)
    elif accountant == "all":
        shown = text.as_json(text.EpsilonAnswers(answers, question.mechanism))
    else:
        shown = text.as_json(answers[0])
    write_result(shown, output)


# ``dpaudit delta``: the delta at an epsilon.

GDP_SLACK = 1e-10
"""Amount by which the trade-off curve may fall below that of the printed mu."""

PLACEHOLDER_DELTA = 1e-5  # a request has one; delta and tradeoff do not use it


@click.command(cls=Command)
@pricing_options
@click.option("--epsilon", type=float, required=True, help="Epsilon of the guarantee, in nats.")
@click.option(
    "--explain", is_flag=True, help="Print the method of the interval and its error budget."
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def delta(
    ctx: click.Context,
    /,
    epsilon: float,
    explain: bool,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Compute delta for a given epsilon.

    Prints a lower and an upper bound by the PLD accountant, for a run, a training plan or
    FILE.

    \b
    dpaudit delta --sampling-rate 0.01 --noise-multiplier 1 --steps 1000 \\
                  --epsilon 2
    dpaudit delta runs/digits --epsilon 1
    """
    from dpaudit.report import text
    from dpaudit.workflow import account

    question = pricing_request(ctx, delta=PLACEHOLDER_DELTA)
    answer = account.delta_answer(question, epsilon)
    if question.caveat is not None:
        print_message(question.caveat)
    if format_ == "json":
        shown = text.as_json(answer)
    else:
        shown = text.delta_text(answer, question.sampling)
        if explain:
            shown += "\n\n" + text.explanation_text(answer.explanation)
    write_result(shown, output)


# ``dpaudit noise``: the smallest noise multiplier for a target epsilon.


RISK_GIVEN = {
    "target_tpr": ("tpr", "at_fpr"),
    "target_advantage": ("advantage", None),
    "target_bayes_risk": ("bayes-risk", "prior"),
    "target_reconstruction": ("reconstruction", "chance"),
}
"""The options of a target: the risk, and the option of what it is given."""

TARGET_OPTIONS = (
    click.option("--target-epsilon", type=float, help="Largest epsilon allowed, in nats."),
    click.option("--delta", type=float, help="Delta of --target-epsilon."),
    click.option(
        "--target-tpr", type=LargestRate(), help="Largest true-positive rate at --at-fpr."
    ),
    click.option("--at-fpr", type=Rate(), help="False-positive rate of --target-tpr."),
    click.option(
        "--target-advantage",
        type=LargestRate(),
        help="Largest difference of true- and false-positive rate.",
    ),
    click.option(
        "--target-bayes-risk",
        type=Rate(),
        help="Least error probability of the best guess of membership.",
    ),
    click.option("--prior", type=Rate(), help="Probability of membership for it.  [default: 0.5]"),
    click.option(
        "--target-reconstruction",
        type=LargestRate(),
        help="Largest success rate of reconstructing a record.",
    ),
    click.option("--chance", type=Rate(), help="Success rate of it without any release."),
)


@click.command(cls=Command)
@schedule_options
@with_options(TARGET_OPTIONS)
@click.option(
    "--accountant",
    type=Choice(SAMPLING_ACCOUNTANTS),
    default="pld",
    show_default=True,
    help="Accountant whose bound must meet the target; naive bounds epsilon alone.",
)
@format_option("text", "json")
@OUTPUT
@click.pass_context
def noise(
    ctx: click.Context,
    /,
    target_epsilon: float | None,
    delta: float | None,
    accountant: str,
    sampling: str,
    adjacency: str,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Compute the noise multiplier for a target epsilon or risk.

    The bound of the printed noise multiplier was computed and meets the target. A risk needs
    no delta.

    \b
    dpaudit noise --sampling-rate 0.01 --steps 1000 --target-epsilon 2 \\
                  --delta 1e-5
    dpaudit noise --dataset-size 60000 --batch-size 256 --epochs 60 \\
                  --target-epsilon 3 --delta 1e-5
    dpaudit noise --sampling-rate 0.01 --steps 1000 \\
                  --target-tpr 0.01 --at-fpr 0.001
    """
    from dpaudit.report import text
    from dpaudit.workflow import noise as calibration

    risk = _risk_of_options(ctx)
    schedule = calibration.Schedule(
        schedule_of_options(ctx), Sampling(sampling), Adjacency(adjacency)
    )
    as_json = format_ == "json"
    if risk is not None:
        kind, target, given = risk
        found = calibration.risk_noise_answer(
            schedule=schedule, risk=kind, target=target, given=given, accountant=accountant
        )
        write_result(text.as_json(found) if as_json else text.risk_noise_text(found), output)
        return
    answer = calibration.noise_answer(
        schedule=schedule,
        target_epsilon=require_option("target_epsilon", target_epsilon),
        delta=require_option("delta", delta),
        accountant=accountant,
    )
    write_result(text.as_json(answer) if as_json else text.noise_text(answer), output)


def _risk_of_options(ctx: click.Context) -> tuple[str, float, float | None] | None:
    """Return the risk, its limit and what it is given; None: the target is an epsilon."""
    values: dict[str, Any] = ctx.params
    names = [name for name in ("target_epsilon", *RISK_GIVEN) if values[name] is not None]
    if len(names) > 1:
        raise click.UsageError(f"give {option_name(names[0])} or {option_name(names[1])}")
    if not names:
        options = ", ".join(option_name(name) for name in ("target_epsilon", *RISK_GIVEN))
        raise click.UsageError(f"missing option: one of {options}")
    risk, with_option = RISK_GIVEN.get(names[0], (None, "delta"))
    for unread in ("delta", *(option for _, option in RISK_GIVEN.values() if option)):
        if unread != with_option and values[unread] is not None:
            raise click.UsageError(
                f"{option_name(unread)} has no meaning with {option_name(names[0])}"
            )
    if risk is None:
        return None
    given = None if with_option is None else values[with_option]
    if given is None and with_option not in (None, "prior"):
        given = require_option(str(with_option), given)
    return risk, values[names[0]], given


# ``dpaudit tradeoff``: bounds on any attacker.


@click.command(cls=Command)
@pricing_options
@click.option(
    "--fpr",
    multiple=True,
    type=Rates(),
    default=("0.001,0.01,0.1",),
    help="False-positive rates of the attacker, separated by commas. Repeatable.  "
    "[default: 0.001,0.01,0.1]",
)
@click.option("--gdp", is_flag=True, help="Print the least mu of Gaussian DP, and its regret.")
@format_option("text", "json")
@OUTPUT
@click.pass_context
def tradeoff(
    ctx: click.Context,
    /,
    fpr: tuple[tuple[float, ...], ...],
    gdp: bool,
    format_: str,
    output: Path | None,
    **_: Any,
) -> None:
    """Compute bounds on any membership-inference attacker.

    The attacker knows all records but one. Prints bounds on the true-positive rate at each
    false-positive rate, and upper bounds on advantage and accuracy.

    \b
    dpaudit tradeoff --sampling-rate 0.01 --noise-multiplier 1 --steps 1000
    dpaudit tradeoff runs/digits --fpr 0.0001,0.01 --gdp
    """
    from dpaudit.report import text
    from dpaudit.workflow import account

    question = pricing_request(ctx, delta=PLACEHOLDER_DELTA)
    rates = tuple(sorted({rate for several in fpr for rate in several}))
    answer = account.risk_answer(question, rates, GDP_SLACK if gdp else None)
    if question.caveat is not None:
        print_message(question.caveat)
    shown = text.as_json(answer) if format_ == "json" else text.risk_text(answer, question.sampling)
    write_result(shown, output)
