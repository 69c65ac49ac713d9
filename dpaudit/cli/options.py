"""Options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from dpaudit.cli.printing import say
from dpaudit.files.writing import PUBLIC, write_output
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


TRUST_MODEL_CODE = click.option(
    "--trust-model-code",
    is_flag=True,
    help="Run a --checkpoint that is a program (TorchScript, torch.export); it gets limits.",
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


def emit(text: str, output: Path | None, *, mode: int = PUBLIC) -> None:
    """Print ``text``, or write it to ``output``; ``mode`` is PRIVATE for what secrets are in."""
    if output is None:
        say(text)
        return
    _require_no_loss(output)
    write_output(output, f"{text}\n".encode(errors="backslashreplace"), mode)


def _require_no_loss(output: Path) -> None:
    """Refuse to write over a run's own file, a policy, or anything that was given to be read."""
    from dpaudit.runs.directory import RunDirectory

    context = click.get_current_context(silent=True)
    given = {} if context is None else {**context.params, "output": None}
    read = [value for value in given.values() if isinstance(value, Path)]
    place = Path(os.path.realpath(output))
    if os.path.exists(output) and any(_is_same(path, output) for path in read):
        raise InvalidArgument("output", str(output), "another file than those that are read")
    if place.name in POLICY_FILES and os.path.exists(place):
        raise InvalidArgument("output", str(output), "another file than a policy")
    run = RunDirectory(place.parent)
    if os.path.exists(run.ledger) and place in run.own_files:
        raise InvalidArgument("output", str(output), "another file than a run's own")


def _is_same(path: Path, output: Path) -> bool:
    return os.path.exists(path) and os.path.samefile(path, output)


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
