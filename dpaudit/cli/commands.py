"""Classes of all commands: groups in help, suggestions for misspelt words, -q and -v."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import click

from dpaudit.cli.printing import Verbosity, set_verbosity
from dpaudit.vocabulary.errors import did_you_mean

if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # generic since click 8.2 only
    _Choice = click.Choice

HELP_NAMES = ["-h", "--help"]


class Choice(_Choice):
    """One of several words; a misspelt one gets a suggestion."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word that ``value`` is.

        Args:
            value: Text of the command line, of a variable, or a default.
            param: The option or argument.
            ctx: The context of the command.

        Returns:
            One of ``choices``.

        Raises:
            BadParameter: If ``value`` is none of the choices.
        """
        words = [str(word) for word in self.choices]
        if value not in words:
            suggestion = did_you_mean(str(value), words)
            self.fail(f"{value!r} is not one of {', '.join(words)}{suggestion}", param, ctx)
        return value


def _verbosity_option(*names: str, level: Verbosity, text: str) -> click.Option:
    def apply(ctx: click.Context, _: click.Parameter, given: bool) -> None:
        if given and not ctx.resilient_parsing:
            set_verbosity(level)

    # Not settable by a variable: an environment must not hide what loosens a gate.
    return click.Option(
        list(names),
        is_flag=True,
        is_eager=True,
        expose_value=False,
        allow_from_autoenv=False,
        callback=apply,
        help=text,
    )


VERBOSITY_OPTIONS = (
    _verbosity_option(
        *("-q", "--quiet"),
        level=Verbosity.QUIET,
        text="Print errors and overrides of a policy only.",
    ),
    _verbosity_option(
        *("-v", "--verbose"),
        level=Verbosity.VERBOSE,
        text="Print files read, times, and tracebacks of errors, too.",
    ),
)
"""Accepted by ``dpaudit`` itself and by each command."""


class _Suggesting(click.Command):
    """A command with -q and -v, which suggests an option for an unknown one."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters of the command, -q, -v and the help option.

        Args:
            ctx: The context of the command.

        Returns:
            All parameters, in the order in which help lists them.
        """
        found = super().get_params(ctx)
        own = len(self.params)
        return [*found[:own], *VERBOSITY_OPTIONS, *found[own:]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words after the name of the command.

        Args:
            ctx: The context of the command.
            args: The words; they are consumed.

        Returns:
            The words that are left.

        Raises:
            UsageError: If an option is unknown; the message suggests one.
        """
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [name for one in self.get_params(ctx) for name in one.opts]
            named = _usual_option(error.option_name, known)
            message = named or _unknown("option", error.option_name, known)
            raise click.UsageError(message, ctx) from error


class Command(_Suggesting):
    """One command of ``dpaudit``."""


class Group(_Suggesting, click.Group):
    """A command with subcommands, listed under headings if it has sections.

    Args:
        *args: As for ``click.Group``.
        sections: Names of subcommands by heading; without sections, one plain list.
        **kwargs: As for ``click.Group``.
    """

    command_class = Command
    group_class = type

    def __init__(self, *args: Any, sections: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sections: dict[str, Sequence[str]] = dict(sections or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands in the order of the sections.

        Args:
            ctx: The context of the group.

        Returns:
            Each name once.
        """
        listed = [name for names in self.sections.values() for name in names]
        return listed or super().list_commands(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the first word names.

        Args:
            ctx: The context of the group.
            args: The words after the group.

        Returns:
            Name, command and the words after it.

        Raises:
            UsageError: If there is no such subcommand; the message suggests one.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            raise click.UsageError(_unknown("command", name, known), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of subcommands, with a heading for each section.

        Args:
            ctx: The context of the group.
            formatter: Receives the text.
        """
        sections = self.sections or {"Commands": self.list_commands(ctx)}
        width = max(len(name) for names in sections.values() for name in names)
        for heading, names in sections.items():
            found = [(name.ljust(width), self.commands[name]) for name in names]
            with formatter.section(heading):
                # The width of the terminal does not cut a line: each summary is short.
                formatter.write_dl([(name, one.get_short_help_str(80)) for name, one in found])


FEW = 8
"""Number of words that an error lists if none of them is close to the given one."""


USUAL_NAMES = {
    "sigma": ("noise-multiplier",),
    "noise": ("noise-multiplier",),
    "z": ("noise-multiplier",),
    "rate": ("sampling-rate",),
    "q": ("sampling-rate",),
    "sample-rate": ("sampling-rate",),
    "sampling-probability": ("sampling-rate",),
    "n": ("dataset-size", "steps"),
    "N": ("dataset-size",),
    "num-samples": ("dataset-size",),
    "b": ("batch-size",),
    "lot-size": ("batch-size",),
    "t": ("steps",),
    "T": ("steps",),
    "iterations": ("steps",),
    "rounds": ("steps",),
    "e": ("epsilon", "target-epsilon", "epochs"),
    "eps": ("epsilon", "target-epsilon"),
    "epsilon": ("target-epsilon",),
    "d": ("delta",),
    "target-delta": ("delta",),
    "alpha": ("fpr", "at-fpr"),
    "advantage": ("target-advantage",),
    "tpr": ("target-tpr",),
}
"""What papers and other libraries call an option: ours, by their name without dashes."""


def _usual_option(word: str, known: Collection[str]) -> str | None:
    """Return the message for an option under its usual name elsewhere; None for other words."""
    ours = [f"--{name}" for name in USUAL_NAMES.get(word.lstrip("-").replace("_", "-"), ())]
    found = [name for name in ours if name in known]
    return f"no such option {word}; use {' or '.join(found)}" if found else None


def _unknown(kind: str, word: str, known: Collection[str]) -> str:
    listed = f"; there are {', '.join(known)}" if len(known) <= FEW else ""
    return f"no such {kind} {word}{did_you_mean(word, known) or listed}"
