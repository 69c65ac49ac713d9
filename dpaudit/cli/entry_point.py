"""The ``dpaudit`` command: dispatch, and one line for every error."""

from __future__ import annotations

import os
import sys
import traceback

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete, shell_complete

import dpaudit
from dpaudit.cli import printing
from dpaudit.cli.account import delta, epsilon, noise, tradeoff
from dpaudit.cli.attack import attack_command
from dpaudit.cli.audit import audit_command, canaries_group, conformance_command
from dpaudit.cli.commands import HELP_NAMES, Choice, Command, Group
from dpaudit.cli.gate import baseline, config, gate_command, init
from dpaudit.cli.printing import print_text
from dpaudit.cli.report import compare, export, history, report_command, run_group
from dpaudit.cli.split import split
from dpaudit.cli.sweep import sweep
from dpaudit.cli.train import finish_command, train_command, watch_command
from dpaudit.files.user_code import REMEDY, describe_cause, describe_user_error
from dpaudit.vocabulary.errors import (
    ClosedPipe,
    CommandLineError,
    DpauditError,
    ExitCode,
    InputOutputError,
    MissingExtra,
    UnreadableFile,
    UserCodeError,
)
from dpaudit.vocabulary.mechanism_words import refusal_in_words

# ``dpaudit completion``: the script by which a shell completes commands and options.

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(cls=Command)
@click.argument("shell", type=Choice(list(SHELLS)))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    dpaudit completion bash >> ~/.bashrc
    dpaudit completion zsh >> ~/.zshrc
    dpaudit completion fish > ~/.config/fish/completions/dpaudit.fish
    """
    script = SHELLS[shell](ctx.find_root().command, {}, "dpaudit", "_DPAUDIT_COMPLETE")
    print_text(script.source())


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Train": (train_command, finish_command, watch_command),
    "Account": (epsilon, delta, noise, split, tradeoff, sweep),
    "Audit": (audit_command, attack_command, canaries_group, conformance_command),
    "Gate": (gate_command, init, config, baseline),
    "Report": (report_command, run_group, compare, history, export),
    "Other": (completion,),
}
"""The commands in the order of help."""


# Every option can be set by a variable, too: DPAUDIT_TRAIN_DELTA, DPAUDIT_GATE_POLICY ...
@click.group(
    cls=Group,
    sections={
        heading: [str(command.name) for command in commands]
        for heading, commands in SECTIONS.items()
    },
    context_settings={"help_option_names": HELP_NAMES, "auto_envvar_prefix": "DPAUDIT"},
)
@click.version_option(dpaudit.__version__, prog_name="dpaudit")
def cli() -> None:
    """Train with differential privacy, compute epsilon, audit models, check a policy."""


for _commands in SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)


EXTRAS = {
    "torch": "train",
    "safetensors": "train",
    "sklearn": "train",
    "joblib": "train",
    "cryptography": "train",
    "tomli_w": "train",
    "PIL": "train",
    "pandas": "scores",
    "pyarrow": "scores",
    "jinja2": "report",
    "matplotlib": "report",
    "onnxruntime": "onnx",
    "skops": "skops",
    "rich": "watch",
    "mlflow": "mlflow",
    "tensorboardX": "tensorboard",
    "opacus": "bench",
}
"""Which extra brings a library, for an import that names none itself."""

COMPLETION_VARIABLE = "_DPAUDIT_COMPLETE"


def main() -> None:
    """Run the command; exit codes are those of ``dpaudit.vocabulary.errors.ExitCode``."""
    code = _run()
    try:
        printing.flush_output()
    except DpauditError as error:
        code = _said(error) if code == ExitCode.PASS else code
        printing.discard_output()
    sys.exit(code)


def _run() -> int:
    with printing.safe_streams():
        try:
            return _invoked(sys.argv[1:])
        except BaseException as error:
            return _code_of(error)


def _invoked(arguments: list[str]) -> int:
    """Run a command; click's own ``main`` would make exit code 1 of a closed pipe."""
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        return shell_complete(cli, {}, "dpaudit", COMPLETION_VARIABLE, instruction)
    try:
        with cli.make_context("dpaudit", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    return ExitCode.PASS


def _code_of(error: BaseException) -> int:
    """Print an error as one line, with -v after its traceback; return the exit code."""
    if printing.verbosity() is printing.Verbosity.VERBOSE and not isinstance(
        error, (click.ClickException, click.Abort, KeyboardInterrupt, BrokenPipeError, ClosedPipe)
    ):
        printing.print_lines("".join(traceback.format_exception(error)))
    match error:
        case DpauditError():
            return _said(error)
        case click.UsageError() if type(error).__name__ == "NoArgsIsHelpError" and error.ctx:
            printing.print_lines(error.ctx.get_help())
            return ExitCode.USAGE
        case click.MissingParameter(param=click.Parameter() as missing):
            return _said(CommandLineError(_missing(missing, error.ctx)))
        case click.ClickException():
            return _said(CommandLineError(error.format_message()))
        case click.Abort() | KeyboardInterrupt() | EOFError():
            printing.print_message("dpaudit: interrupted")
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            return _said(ClosedPipe("the reader of the output ended"))
        case ModuleNotFoundError() if (extra := _extra(error)) is not None:
            return _said(extra)
        case SystemExit():  # click's own is another class: only other code calls sys.exit
            return _said(_exited(error))
    typed = _typed(error)
    return _bug(error) if typed is None else _said(typed)


def _missing(parameter: click.Parameter, ctx: click.Context | None) -> str:
    """Return what is missing, as it is spelled on the command line."""
    if isinstance(parameter, click.Argument) and ctx is not None:
        return f"missing argument {parameter.make_metavar(ctx)}"
    return f"missing option {max(parameter.opts, key=len)}"


def _said(error: DpauditError) -> int:
    if isinstance(error, ClosedPipe):
        printing.discard_output()
    else:
        printing.print_error(error.code, refusal_in_words(error))
    return error.exit_code


def _extra(error: ModuleNotFoundError) -> MissingExtra | None:
    library = (error.name or "").partition(".")[0]
    return MissingExtra(library, EXTRAS[library]) if library in EXTRAS else None


def _exited(error: SystemExit) -> UserCodeError:
    """Return what to say of code that ends the process, whatever exit code it asked for."""
    found = describe_user_error(error)
    return found or UserCodeError("code that dpaudit called", describe_cause(error), REMEDY)


def _typed(error: BaseException) -> DpauditError | None:
    """Return the error of ours that an error of Python stands for; None for a bug."""
    found = describe_user_error(error)
    if found is not None:
        return found
    if isinstance(error, OSError) and printing.is_disk_failure(error):
        return InputOutputError(str(error.filename or "a file"), error.strerror or str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return UnreadableFile("path", str(error.filename), f"usable ({error.strerror})")
    return None


def _bug(error: BaseException) -> int:
    if printing.verbosity() is not printing.Verbosity.VERBOSE:  # or it was printed already
        printing.print_lines("".join(traceback.format_exception(error)))
    printing.print_error(
        DpauditError.code, "this is a bug of dpaudit; please report it with the lines above"
    )
    return ExitCode.BUG
