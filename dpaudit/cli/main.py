"""The ``dpaudit`` command: dispatch, and one line for every error."""

from __future__ import annotations

import sys
import traceback

import click

import dpaudit
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
from dpaudit.vocabulary.errors import DpauditError, ExitCode


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


def main() -> None:
    """Run the command; exit codes are those of ``dpaudit.vocabulary.errors.ExitCode``."""
    sys.exit(_run())


def _run() -> int:
    try:
        return cli.main(prog_name="dpaudit", standalone_mode=False) or 0
    except click.ClickException as error:
        _say(error.format_message())
        return ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 141  # as a shell says of what SIGPIPE ended
    except DpauditError as error:
        _say(str(error))
        return error.exit_code
    except Exception:
        traceback.print_exc()
        _say("this is a bug of dpaudit; please report it with the lines above")
        return ExitCode.BUG


def _say(message: str) -> None:
    click.echo(f"dpaudit: {' '.join(message.split())}", err=True)
