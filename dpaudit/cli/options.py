"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dpaudit.vocabulary.errors import InvalidArgument

Command = TypeVar("Command", bound=Callable[..., Any])
T = TypeVar("T")

RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))

POLICY_FILES = ("dpaudit.toml", "pyproject.toml")

OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write to this file instead of standard output.",
)


def format_option(*formats: str) -> Callable[[Command], Command]:
    """Return the option ``--format``, text by default."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(formats),
        default=formats[0],
        show_default=True,
        help="How to print the result.",
    )


def emit(text: str, output: Path | None) -> None:
    """Print ``text``, or write it to ``output``."""
    if output is None:
        click.echo(text)
        return
    _require_no_loss(output)
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidArgument("output", str(output), f"writable ({error.strerror})") from error


def _require_no_loss(output: Path) -> None:
    """Refuse to write over a run's own file, a policy, or anything that was given to be read."""
    from dpaudit.runs.directory import RunDirectory

    context = click.get_current_context(silent=True)
    given = {} if context is None else {**context.params, "output": None}
    read = [value for value in given.values() if isinstance(value, Path)]
    place = output.resolve()
    if output.exists() and any(path.exists() and path.samefile(output) for path in read):
        raise InvalidArgument("output", str(output), "another file than those that are read")
    if place.name in POLICY_FILES and place.exists():
        raise InvalidArgument("output", str(output), "another file than a policy")
    run = RunDirectory(place.parent)
    if run.ledger.exists() and place in run.own_files:
        raise InvalidArgument("output", str(output), "another file than a run's own")


def with_options(
    options: Sequence[Callable[[Command], Command]],
) -> Callable[[Command], Command]:
    """Return one decorator for many options, in the order in which help shows them."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def option_name(parameter: str) -> str:
    """Return how a parameter is spelled on the command line."""
    return "--" + parameter.replace("_", "-")


def was_given(ctx: click.Context, parameter: str) -> bool:
    """Return whether the user gave the parameter, rather than its default."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name in {"COMMANDLINE", "ENVIRONMENT"}


def required(parameter: str, value: T | None) -> T:
    """Return ``value``, or say which option is missing."""
    if value is None:
        raise click.UsageError(f"missing option {option_name(parameter)}")
    return value
