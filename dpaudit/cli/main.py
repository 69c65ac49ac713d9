"""The ``dpaudit`` command: dispatch, and one line for every error."""

from __future__ import annotations

import os
import sys
import traceback

import click
from click.shell_completion import shell_complete

import dpaudit
from dpaudit.cli import printing
from dpaudit.cli.attack import attack
from dpaudit.cli.audit import audit
from dpaudit.cli.baseline import baseline
from dpaudit.cli.canaries import canaries
from dpaudit.cli.compare import compare
from dpaudit.cli.completion import completion
from dpaudit.cli.config import config
from dpaudit.cli.conformance import conformance
from dpaudit.cli.delta import delta
from dpaudit.cli.epsilon import epsilon
from dpaudit.cli.export import export
from dpaudit.cli.finish import finish
from dpaudit.cli.gate import gate
from dpaudit.cli.history import history
from dpaudit.cli.init import init
from dpaudit.cli.noise import noise
from dpaudit.cli.report import report
from dpaudit.cli.tradeoff import tradeoff
from dpaudit.cli.train import train
from dpaudit.cli.watch import watch
from dpaudit.files.user_code import REMEDY, cause, raised_by_user_code
from dpaudit.vocabulary.errors import (
    ClosedPipe,
    DpauditError,
    ExitCode,
    InputOutputError,
    InvalidArgument,
    MissingExtra,
    UserCodeError,
)


# Every option can be set by a variable, too: DPAUDIT_TRAIN_DELTA, DPAUDIT_GATE_POLICY ...
@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DPAUDIT"}
)
@click.version_option(dpaudit.__version__, prog_name="dpaudit")
def cli() -> None:
    """Train under differential privacy, account for it, attack it, and gate on the result."""


for _command in (
    train,
    finish,
    watch,
    epsilon,
    delta,
    noise,
    tradeoff,
    audit,
    attack,
    canaries,
    conformance,
    gate,
    baseline,
    compare,
    config,
    init,
    report,
    history,
    export,
    completion,
):
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

COMPLETE = "_DPAUDIT_COMPLETE"


def main() -> None:
    """Run the command; exit codes are those of ``dpaudit.vocabulary.errors.ExitCode``."""
    code = _run()
    try:
        printing.flush()
    except DpauditError as error:
        code = _said(error) if code == ExitCode.HOLDS else code
        printing.discard()
    sys.exit(code)


def _run() -> int:
    with printing.prepared():
        try:
            return _invoked(sys.argv[1:])
        except BaseException as error:
            return _code_of(error)


def _invoked(arguments: list[str]) -> int:
    """Run a command; click's own ``main`` would make exit code 1 of a closed pipe."""
    if instruction := os.environ.get(COMPLETE):
        return shell_complete(cli, {}, "dpaudit", COMPLETE, instruction)
    try:
        with cli.make_context("dpaudit", list(arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    return ExitCode.HOLDS


def _code_of(error: BaseException) -> int:
    """Say what went wrong, in one line; return the exit code."""
    match error:
        case DpauditError():
            return _said(error)
        case click.ClickException():
            printing.warn(f"dpaudit: {error.format_message()}")
            return ExitCode.USAGE
        case click.Abort() | KeyboardInterrupt() | EOFError():
            printing.warn("dpaudit: interrupted")
            return ExitCode.INTERRUPTED
        case BrokenPipeError():
            return _said(ClosedPipe("the reader of the output ended"))
        case ModuleNotFoundError() if (extra := _extra(error)) is not None:
            return _said(extra)
        case SystemExit():  # click's own is another class: only other code calls sys.exit
            return _said(_exited(error))
    typed = _typed(error)
    return _bug(error) if typed is None else _said(typed)


def _said(error: DpauditError) -> int:
    if isinstance(error, ClosedPipe):
        printing.discard()
    else:
        printing.warn(f"dpaudit: {error}")
    return error.exit_code


def _extra(error: ModuleNotFoundError) -> MissingExtra | None:
    library = (error.name or "").partition(".")[0]
    return MissingExtra(library, EXTRAS[library]) if library in EXTRAS else None


def _exited(error: SystemExit) -> UserCodeError:
    """Return what to say of code that ends the process, whatever exit code it asked for."""
    found = raised_by_user_code(error)
    return found or UserCodeError("code that dpaudit called", cause(error), REMEDY)


def _typed(error: BaseException) -> DpauditError | None:
    """Return the error of ours that an error of Python stands for; None for a bug."""
    found = raised_by_user_code(error)
    if found is not None:
        return found
    if isinstance(error, OSError) and printing.is_disk_failure(error):
        return InputOutputError(str(error.filename or "a file"), error.strerror or str(error))
    if isinstance(error, OSError) and error.filename is not None:
        return InvalidArgument("path", str(error.filename), f"usable ({error.strerror})")
    return None


def _bug(error: BaseException) -> int:
    printing.warn_lines("".join(traceback.format_exception(error)))
    printing.warn("dpaudit: this is a bug of dpaudit; please report it with the lines above")
    return ExitCode.BUG
