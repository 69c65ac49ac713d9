"""Options that several commands share."""

# ruff: noqa: E501  options are read as a table: one option a line

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dpaudit.cli.commands import Choice
from dpaudit.cli.printing import print_text, warn_written
from dpaudit.files.regular_files import DOCUMENT_LIMIT, MIB, PUBLIC, write_output
from dpaudit.vocabulary.errors import InvalidArgument

if TYPE_CHECKING:
    from dpaudit.attacks.membership.score_file import ScoreColumns

Function = TypeVar("Function", bound=Callable[..., Any])
T = TypeVar("T")

STANDARD_STREAM = "-"
"""Standard input or standard output, in place of a file."""

STANDARD_INPUT_FILE = "dpaudit.standard_input_file"
"""Key of the context's ``meta``: the temporary file that holds standard input."""

RUN = click.argument("run", metavar="RUN", type=click.Path(path_type=Path))

POLICY_FILES = ("dpaudit.toml", "pyproject.toml")

OUTPUT = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write to this file; - is standard output, the default.",
)


TRUST_MODEL_CODE = click.option(
    "--trust-model-code",
    is_flag=True,
    help="Run a --checkpoint that is a program (TorchScript, torch.export), with resource limits.",
)


# fmt: off
SCORE_COLUMN_OPTIONS = (
    click.option("--score-column", metavar="COLUMN", help="Column of the scores in --scores.  [default: score]"),
    click.option("--member-column", metavar="COLUMN", help="Column of the memberships in --scores: 0 and 1, -1 and 1, or words such as train and test.  [default: member]"),
    click.option("--smaller-means-member", is_flag=True, help="Smaller scores in --scores mean member, as for losses."),
)
# fmt: on
"""Options for score files with other columns, or with scores of the other direction."""


class FileOrCount(click.ParamType[Any]):
    """A file, or a number of at least 1.

    A number is read as one also where a file of that name exists: write ``./3`` for the file.
    """

    name = "FILE|N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | int:
        """Return the number, or the path.

        Args:
            value: Text of the command line or of a variable.
            param: The option or argument.
            ctx: The context of the command.

        Returns:
            The number or the path.

        Raises:
            click.UsageError: If the number is 0.
        """
        if not str(value).isdecimal():
            return Path(value)
        count = int(value)
        return count if count else self.fail("the number must be at least 1", param, ctx)


class InputPath(click.Path):
    """A file to read; ``-`` is standard input, copied to a private temporary file first.

    Args:
        suffix: Suffix of the temporary file, which determines the format.
        limit: Largest size of standard input in bytes.
    """

    def __init__(self, suffix: str, limit: int = DOCUMENT_LIMIT) -> None:
        super().__init__(path_type=Path)
        self.suffix, self.limit = suffix, limit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the file.

        Args:
            value: Text of the command line or of a variable.
            param: The option or argument.
            ctx: The context of the command; the temporary file is removed when it closes.

        Returns:
            A ``Path``.

        Raises:
            BadParameter: If standard input is closed, too long, or read by another option.
        """
        if str(value) != STANDARD_STREAM or ctx is None or ctx.resilient_parsing:
            return super().convert(value, param, ctx)
        reader = ctx.meta.setdefault("dpaudit.standard_input", param)
        if reader is not param or sys.stdin is None:
            self.fail("standard input can be read once, and is not closed", param, ctx)
        folder = tempfile.TemporaryDirectory(prefix="dpaudit-")  # for its owner alone
        ctx.call_on_close(folder.cleanup)
        path = Path(folder.name) / f"standard-input{self.suffix}"
        rest = self.limit
        with path.open("xb") as file:
            while part := sys.stdin.buffer.read(min(MIB, rest + 1)):
                rest -= len(part)
                if rest < 0:
                    self.fail(f"standard input has more than {self.limit} bytes", param, ctx)
                file.write(part)
        ctx.meta[STANDARD_INPUT_FILE] = path
        return path


class OutputPath(click.Path):
    """A file to write; ``-`` is refused, as the command prints other text there."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path of the file.

        Args:
            value: Text of the command line or of a variable, or the default.
            param: The option.
            ctx: The context of the command.

        Returns:
            A ``Path``.

        Raises:
            BadParameter: If ``value`` is ``-``.
        """
        if str(value) == STANDARD_STREAM:
            self.fail("name a file: this command writes no file to standard output", param, ctx)
        return super().convert(value, param, ctx)


def format_option(*formats: str) -> Callable[[Function], Function]:
    """Return the option ``--format``, text by default."""
    return click.option(
        "--format",
        "format_",
        type=Choice(formats),
        default=formats[0],
        show_default=True,
        help="Format of the result.",
    )


def write_result(
    text: str, output: Path | None, *, mode: int = PUBLIC, outcomes: bool = False
) -> None:
    """Print a result on standard output, or write it to a file, which standard error names.

    Args:
        text: The result, without a newline at its end.
        output: The file; None or ``-`` for standard output.
        mode: Permissions of a new file: PRIVATE for results that contain secrets.
        outcomes: Whether PASS, FAIL and INCONCLUSIVE are coloured on a terminal.

    Raises:
        InvalidArgument: If ``output`` is a file that the command reads, or one of a run.
        InputOutputError: If the disk is full or fails.
    """
    if output is None or str(output) == STANDARD_STREAM:
        print_text(text, outcomes=outcomes)
        return
    _require_no_loss(output)
    write_output(output, f"{text}\n".encode(errors="backslashreplace"), mode)
    warn_written(output)


def write_bytes_result(content: bytes, output: Path, *, mode: int = PUBLIC) -> None:
    """Write a binary result to a file, which standard error names.

    Args:
        content: All bytes.
        output: The file.
        mode: Permissions of a new file.

    Raises:
        InvalidArgument: If ``output`` is a file that the command reads, or one of a run.
        InputOutputError: If the disk is full or fails.
    """
    _require_no_loss(output)
    write_output(output, content, mode)
    warn_written(output)


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
    if os.path.exists(run.ledger) and place in run.all_files:
        raise InvalidArgument("output", str(output), "another file than a run's own")


def _is_same(path: Path, output: Path) -> bool:
    return os.path.exists(path) and os.path.samefile(path, output)


def with_options(
    options: Sequence[Callable[[Function], Function]],
) -> Callable[[Function], Function]:
    """Return one decorator for many options, in the order in which help shows them."""

    def decorate(command: Function) -> Function:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def input_name(ctx: click.Context, value: object) -> str:
    """Return what a value of a parameter is called: a copy of standard input has no path."""
    copy = ctx.meta.get(STANDARD_INPUT_FILE)
    return "standard input" if copy is not None and value == copy else str(value)


def option_name(parameter: str) -> str:
    """Return how a parameter is spelled on the command line."""
    return "--" + parameter.replace("_", "-")


def was_given(ctx: click.Context, parameter: str) -> bool:
    """Return whether the user gave the parameter, rather than its default."""
    source = ctx.get_parameter_source(parameter)
    return source is not None and source.name in {"COMMANDLINE", "ENVIRONMENT"}


def require_option(parameter: str, value: T | None) -> T:
    """Return ``value``; raise a usage error that names the option if it is None."""
    if value is None:
        raise click.UsageError(f"missing option {option_name(parameter)}")
    return value


def score_columns(options: dict[str, Any]) -> ScoreColumns | None:
    """Return the columns of a score file that options of ``SCORE_COLUMN_OPTIONS`` name.

    Args:
        options: Values of the options of a command, with that of ``--scores``.

    Returns:
        The columns, and the direction of the scores; None without ``--scores``.

    Raises:
        UsageError: If an option is given without ``--scores``.
    """
    names = ("score_column", "member_column", "smaller_means_member")
    if options["scores"] is None:
        for name in names:
            if options[name]:
                raise click.UsageError(f"{option_name(name)} goes with --scores")
        return None
    from dpaudit.attacks.membership.score_file import ScoreColumns

    score, member, smaller = (options[name] for name in names)
    return ScoreColumns(score or "score", member or "member", smaller)
