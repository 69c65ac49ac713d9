"""The errors that dpaudit raises on purpose: their codes, exit codes and remedies.

Every class has a stable ``code``, which the command line prints with the message, and an
``exit_code``. Each docstring says when the error is raised and what to do; docs/errors.md is
generated from them by ``tools/make_errors_page.py``.

The first digit of a code is its group: 0 internal, 1 arguments and settings, 2 files and
formats, 3 ledgers and runs, 4 training, 5 audits, 6 environment, 7 accounting. A code is never
given to another class; the code of a class that is removed stays unused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import IntEnum
from numbers import Integral, Real
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """The exit code of the ``dpaudit`` process."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    INTEGRITY = 4
    IO = 5
    BUG = 70
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class DpauditError(Exception):
    """Base class of every error that dpaudit raises on purpose.

    It is never raised itself: catch it to catch all of them. The command line prints its code
    for an exception that no part of dpaudit expected, after the traceback.

    Exit code: 70.

    Remedy: Report the traceback as a bug of dpaudit, with the command and the versions of
    Python and of dpaudit.

    Attributes:
        code: The stable code of the class, such as ``DPA101``.
        exit_code: The exit code of the command line for this error.
    """

    code: ClassVar[str] = "DPA000"
    exit_code: ClassVar[ExitCode] = ExitCode.BUG


class InvalidArgument(DpauditError, ValueError):
    """An argument, option or setting has a value that is not allowed.

    The message names the argument, the allowed values and the given value.

    Exit code: 2.

    Remedy: Give a value that the message allows. ``dpaudit COMMAND --help`` describes the
    options of a command.

    Attributes:
        name: The argument.
    """

    code = "DPA101"
    exit_code = ExitCode.USAGE

    def __init__(self, name: str, value: object, allowed: str) -> None:
        """Build the message ``NAME must be ALLOWED, got VALUE``.

        Args:
            name: The argument.
            value: What was given.
            allowed: What is allowed, as it follows "must be".
        """
        # The text of other libraries may have many lines: a message of ours has one.
        super().__init__(" ".join(f"{name} must be {allowed}, got {value_in_words(value)}".split()))
        self.name = name


class CommandLineError(DpauditError):
    """The command line cannot be used as it was given.

    An option is unknown, missing or repeated, its text cannot be converted, or options
    contradict each other. Only the ``dpaudit`` command raises it.

    Exit code: 2.

    Remedy: Correct the option that the message names. ``dpaudit COMMAND --help`` lists the
    options of a command.
    """

    code = "DPA102"
    exit_code = ExitCode.USAGE


class InvalidPolicy(InvalidArgument):
    """A policy is missing, is not valid TOML, or has a key or value that is not allowed.

    The policy may come from a file, a ``DPAUDIT_GATE_*`` variable or ``--set KEY=VALUE``.

    Exit code: 2.

    Remedy: Correct the key that the message names, or write a new policy with
    ``dpaudit init RUN``. ``dpaudit config show`` prints the policy in force and where each key
    comes from.
    """

    code = "DPA103"

    @classmethod
    def of(cls, error: InvalidArgument) -> InvalidPolicy:
        """Return an error with the message and the argument name of another one."""
        return cls.with_text(error.name, str(error))

    @classmethod
    def with_text(cls, name: str, text: str) -> InvalidPolicy:
        """Return an error with a message of its own.

        Args:
            name: The key of the policy, such as ``claim.max_epsilon``.
            text: The message.

        Returns:
            The error, not raised.
        """
        found = cls.__new__(cls)
        ValueError.__init__(found, text)
        found.name = name
        return found


class UserCodeError(DpauditError):
    """A function, model or trainer of the user raised an exception or ended the process.

    The message names it, with the type and the text of its exception.

    Exit code: 2.

    Remedy: Correct the code that the message names, or name another function. In Python, the
    original exception is the ``__cause__`` of this one, where there is one.
    """

    code = "DPA104"
    exit_code = ExitCode.USAGE

    def __init__(self, name: str, cause: str, remedy: str) -> None:
        super().__init__(" ".join(f"{name} raised {cause}: {remedy}".split()))


class UnreadableFile(InvalidArgument):
    """A file that an argument names cannot be read.

    It does not exist, its permissions forbid it, it is a folder, a device or a pipe, it is
    larger than the limit for its kind, or its format is broken.

    Exit code: 2.

    Remedy: Name a regular file that exists and can be read. Write the output of another
    program to a file first.
    """

    code = "DPA201"


class UnwritableFile(InvalidArgument):
    """A file or folder that an argument names cannot be written.

    Its folder does not exist, its permissions forbid it, or its name is not allowed by the
    operating system.

    Exit code: 2.

    Remedy: Name a file in a folder that exists and can be written.
    """

    code = "DPA202"


class InvalidData(InvalidArgument):
    """A file of records or scores can be read, but its content cannot be used.

    A column is missing, a label or a score is missing or not finite, a class is empty, or
    shapes or types differ.

    Exit code: 2.

    Remedy: Correct the file as the message says, or name another one.
    """

    code = "DPA203"


class IntegrityError(DpauditError):
    """A file of a run is missing, incomplete or altered.

    A hash does not match, two files contradict each other, a ledger is torn, or a file does
    not have the format that its name says.

    Exit code: 4.

    Remedy: Restore the file that the message names from a copy. A run whose process died is
    completed with ``dpaudit finish RUN`` or ``dpaudit train --resume``. An old measurement is
    replaced by a new ``dpaudit audit`` or ``dpaudit attack``. Do not publish the model of a
    run whose files were altered.
    """

    code = "DPA301"
    exit_code = ExitCode.INTEGRITY


class StaleVerdict(IntegrityError):
    """A verdict is older than a measurement of its run.

    The run was audited, attacked or tested after ``dpaudit gate``, or a measurement was changed
    or removed. ``dpaudit history`` exits with 3 if nothing else is wrong.

    Exit code: 4.

    Remedy: ``dpaudit gate RUN`` evaluates the run again.
    """

    code = "DPA304"


class UnsupportedVersion(IntegrityError):
    """A file has a format version that this version of dpaudit does not support.

    Exit code: 4.

    Remedy: Read the file with the version of dpaudit that wrote it, or with a newer one.
    """

    code = "DPA204"


class RunExists(DpauditError):
    """A run or another file is in the place where a new one was to be written.

    Also raised if a finished run was to be resumed.

    Exit code: 2.

    Remedy: Choose another folder with ``--out``, continue the run with ``--resume``, or
    replace it with ``--overwrite``.
    """

    code = "DPA302"
    exit_code = ExitCode.USAGE


class RunLocked(RunExists):
    """Another process, or another session of this process, is writing the ledger of a run.

    A ledger has one writer at a time.

    Exit code: 2.

    Remedy: Wait until the other process has ended, or end it, then try again. To follow a run
    while it trains, use ``dpaudit watch RUN``, which needs no lock.
    """

    code = "DPA303"


class ForkedSession(DpauditError):
    """A session, key stream or ledger was used in a forked process, copied or pickled.

    Two copies would use the same noise twice, or record one release for two.

    Exit code: 2.

    Remedy: Call ``make_private`` in each process, with a ledger of its own, after the fork.
    """

    code = "DPA401"
    exit_code = ExitCode.USAGE


class NoiseReused(DpauditError, RuntimeError):
    """The noise of one step was requested twice, or two threads share one session.

    The difference of two releases with the same noise contains no noise.

    Exit code: 2.

    Remedy: Take the steps of a session one after another, in one thread, and request the noise
    of each step once.
    """

    code = "DPA402"
    exit_code = ExitCode.USAGE


class UnrecordedChange(DpauditError):
    """A model was changed outside of its recorded steps.

    Its weights are not the result of the recorded steps, so the claim would not cover them.

    Exit code: 4.

    Remedy: Change the model through the private steps alone. Record a change that does not
    depend on the private records with ``private.declare_change``.
    """

    code = "DPA403"
    exit_code = ExitCode.INTEGRITY


class InvalidUpdate(DpauditError, ValueError):
    """An update that a participant sent to the server of a federation cannot be used.

    It lacks a parameter, has an unknown one, has another shape or type than the model, or holds
    NaN or infinity. The message names the participant and the reason. The server leaves the
    update out of the sum, records why, and ends the round.

    Exit code: 2.

    Remedy: Correct the participant that the message names. Its model must be that of the
    server, and its training must not diverge.

    Attributes:
        participant: Number of the participant, from 0.
        reason: What is wrong with the update.
    """

    code = "DPA404"
    exit_code = ExitCode.USAGE

    def __init__(self, participant: int, reason: str) -> None:
        """Build the message ``participant NUMBER: REASON``.

        Args:
            participant: Number of the participant.
            reason: What is wrong with the update.
        """
        super().__init__(" ".join(f"participant {participant}: {reason}".split()))
        self.participant, self.reason = participant, reason


class GradientsDisagree(DpauditError):
    """A spot check found gradients that differ from those of the records' own losses.

    Or it found that one record changes the loss of another. The step was not released. Earlier
    steps may be wrong in the same way, so a claim of the run lists this as not covered.

    Exit code: 1.

    Remedy: If the message says that records are mixed, remove the operation that mixes them.
    Otherwise report the model: a rule of the gradient engine is wrong for it.
    """

    code = "DPA405"
    exit_code = ExitCode.FAIL


class ProtocolViolation(DpauditError, ValueError):
    """A message of secure aggregation is malformed, oversized, unexpected or contradictory.

    The message names the sender and what is wrong. Nothing is answered to such a message.

    Exit code: 2.

    Remedy: Run the same version and the same settings on the server and on every participant.
    Restart the participant that the message names.
    """

    code = "DPA411"
    exit_code = ExitCode.USAGE


class TooFewParticipants(DpauditError):
    """Fewer participants than the threshold are left in a round of secure aggregation.

    The sum of the round cannot be unmasked, and is not released.

    Exit code: 3.

    Remedy: Start a new round with more participants. Allow more dropouts in the settings before
    the first round, at the cost of more noise per participant.

    Attributes:
        left: Number of participants that are left.
        threshold: Number that is needed.
    """

    code = "DPA412"
    exit_code = ExitCode.INCONCLUSIVE

    def __init__(self, phase: str, left: int, threshold: int) -> None:
        """Build the message from the two numbers.

        Args:
            phase: The phase of the protocol.
            left: Number of participants that are left.
            threshold: Number that is needed.
        """
        super().__init__(
            f"{left} participants are left in the phase {phase!r}; the sum needs at least "
            f"{threshold}: start a new round with more participants"
        )
        self.left, self.threshold = left, threshold


class ReplayedRound(NoiseReused):
    """A round of secure aggregation was requested twice, or keys of one round came again.

    The difference of two inputs under the same masks has no mask.

    Exit code: 2.

    Remedy: Give every round a new, larger number. Give every participant a key of its own, and
    restart it without a copy of its state.
    """

    code = "DPA413"


class UnmaskingRefused(ProtocolViolation):
    """A participant was asked for shares that together unmask one update.

    The server asked for the self mask and for the mask key of the same participant, or twice.

    Exit code: 2.

    Remedy: Do not continue with this server. Report each participant as either a survivor or
    a dropout, once in a round.
    """

    code = "DPA414"


class Refuted(DpauditError):
    """A run was stopped because its own canaries contradict its claim.

    Raised with ``stop_when_refuted`` alone. With probability ``1 - confidence`` at most, a
    correct run is stopped.

    Exit code: 1.

    Remedy: Do not publish the weights. Find the step that is wrong with
    ``dpaudit conformance RUN``.
    """

    code = "DPA501"
    exit_code = ExitCode.FAIL


class MissingExtra(DpauditError, ImportError):
    """A library of an optional extra is not installed.

    Exit code: 2.

    Remedy: Install the extra that the message names.
    """

    code = "DPA601"
    exit_code = ExitCode.USAGE

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'dpaudit[{extra}]'")


class InputOutputError(DpauditError, OSError):
    """The disk or device that holds a file is full or fails.

    A ledger ends with its last whole line; an output file is unchanged.

    Exit code: 5.

    Remedy: Free space, or repair the disk, then run the command again. Resume a run that was
    training.
    """

    code = "DPA602"
    exit_code = ExitCode.IO

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} cannot be read or written ({why}): free space or repair the disk, "
            "then run the command again"
        )


class ClosedPipe(DpauditError, BrokenPipeError):
    """The program that reads the output ended before all of it was written.

    The command line prints nothing for it, as is usual after ``| head``.

    Exit code: 141.

    Remedy: None is needed if the reader was to end early. Do not take the exit code as the
    verdict of a gate.
    """

    code = "DPA603"
    exit_code = ExitCode.CLOSED_PIPE


class UnsupportedMechanism(InvalidArgument):
    """An accountant has no valid bound for a mechanism under the adjacency in force.

    The message names the mechanism and the reason.

    Exit code: 2.

    Remedy: Use another accountant, or an adjacency that the message names.
    """

    code = "DPA701"

    def __init__(self, mechanism: object, why: str) -> None:
        ValueError.__init__(self, f"{value_in_words(mechanism)}: {why}")
        self.name = "mechanism"
        self.mechanism, self.why = mechanism, why


class AccountingError(DpauditError, ArithmeticError):
    """No privacy bound can be computed that is certainly true.

    Raised instead of printing a number, for example where a result is NaN or infinite.

    Exit code: 3.

    Remedy: Add noise, take fewer steps, or ask for a larger delta. Another accountant may give
    a bound.
    """

    code = "DPA702"
    exit_code = ExitCode.INCONCLUSIVE


class Unresolvable(AccountingError):
    """One method cannot resolve a question in floating point; another method may.

    Exit code: 3.

    Remedy: Ask for a larger delta or epsilon, or use another accountant: its bound may be
    wider.
    """

    code = "DPA703"


class BudgetExceeded(AccountingError):
    """A release costs more than the rest of a privacy budget.

    Exit code: 3.

    Remedy: Stop training: the releases that are recorded stay within the budget. A larger
    budget has to be set before the first release.
    """

    code = "DPA704"


class ImpossibleConversion(InvalidArgument):
    """One notion of privacy implies no guarantee of another one, or none is known.

    The message names both notions and the reason.

    Exit code: 2.

    Remedy: Convert to a notion that the message names, or compute the guarantee of the mechanism
    itself.
    """

    code = "DPA705"

    def __init__(self, source: str, result: str, why: str) -> None:
        """Build the message ``RESULT does not follow from SOURCE: WHY``.

        Args:
            source: The notion that was given.
            result: The notion that was wanted.
            why: The reason, and what to do.
        """
        ValueError.__init__(self, f"{result} does not follow from {source}: {why}")
        self.name = "conversion"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests the known word closest to an unknown one.

    Args:
        word: The word that was given.
        known: The words that are allowed.

    Returns:
        Text such as ``; did you mean max_epsilon?``; empty if no word is close.

    Example:
        >>> did_you_mean("max_epsilom", ["max_epsilon", "delta"])
        '; did you mean max_epsilon?'
    """
    from difflib import get_close_matches  # noqa: PLC0415  for a message only

    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


MOST_COUNT = 10**18

# Written so that NaN is refused too: every comparison with NaN is false. Text, None or a list
# cannot be compared with numbers, and are refused for the same reason.


def is_number(value: object) -> bool:
    """Return whether a value is a real number that a double can hold; no Boolean is one."""
    if type(value) is float:  # the most frequent type: the abstract class takes ten times as long
        return True
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _is_inside(value: float, inside: Callable[[float], bool]) -> bool:
    """Return whether a value is a number in a range; no Boolean is a number."""
    return is_number(value) and inside(value)


def to_python_number(value: Any) -> Any:
    """Return a number of NumPy, or a fraction, as a number of Python; anything else unchanged.

    Args:
        value: Any value. A number of another library has no place in JSON.

    Returns:
        An ``int`` where the value is of an integral type, a ``float`` for other real types.
    """
    if type(value) in {int, float, bool} or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def value_in_words(value: object) -> str:
    """Return a value as Python writes it; classes, functions and unknown objects in words.

    Args:
        value: What was given.

    Returns:
        Text without addresses and without names of modules.

    Example:
        >>> value_in_words(0.5), value_in_words(len), value_in_words(float)
        ('0.5', 'a function', 'the class float')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType):
        return "a function"
    if type(value).__repr__ is object.__repr__:
        return f"an object of the class {type(value).__name__}"
    return repr(to_python_number(value))


def require_object(name: str, value: object, example: str) -> None:
    """Refuse a class where one of its objects is meant, as ``OnGrid`` for ``OnGrid()``."""
    if isinstance(value, type):
        raise InvalidArgument(name, f"the class {value.__name__}", f"an object, as {example}")


def require_above(name: str, value: float, bound: float) -> None:
    """Refuse anything but a finite number above ``bound``."""
    if not _is_inside(value, lambda number: bound < number < math.inf):
        raise InvalidArgument(name, value, f"above {bound:g} and finite")


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a finite number above 0."""
    if not _is_inside(value, lambda number: 0 < number < math.inf):
        raise InvalidArgument(name, value, "above 0 and finite")


LARGEST_DEVIATION = 1e30
"""Largest standard deviation of noise that sums and models of float32 hold, tails included."""


def require_noise_within_float32(clip_norm: float, noise_multiplier: float) -> None:
    """Refuse noise that sums of float32 cannot hold.

    Args:
        clip_norm: The sensitivity of the sum.
        noise_multiplier: Noise standard deviation over ``clip_norm``.

    Raises:
        InvalidArgument: If the product is NaN or above ``LARGEST_DEVIATION``.
    """
    if not clip_norm * noise_multiplier <= LARGEST_DEVIATION:
        limit = LARGEST_DEVIATION / noise_multiplier
        raise InvalidArgument(
            "clip_norm",
            clip_norm,
            f"at most {limit:g} at noise multiplier {noise_multiplier:g}: sums are float32",
        )


def require_sampling_rate(name: str, value: float) -> None:
    """Refuse anything but a probability above 0."""
    if not _is_inside(value, lambda number: 0 < number <= 1):
        raise InvalidArgument(name, value, "above 0 and at most 1")


def require_open_unit(name: str, value: float) -> None:
    """Refuse anything but a number strictly between 0 and 1."""
    if not _is_inside(value, lambda number: 0 < number < 1):
        raise InvalidArgument(name, value, "above 0 and below 1")


def require_delta(name: str, value: float) -> None:
    """Refuse anything but a delta that a double can share out among many releases."""
    if not _is_inside(value, lambda number: 1e-300 <= number < 1):
        raise InvalidArgument(name, value, "at least 1e-300 and below 1")


def require_count(name: str, value: int, *, least: int = 1) -> None:
    """Refuse anything but a whole number from ``least`` to ``MOST_COUNT``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgument(name, value, f"a whole number of at least {least}")
    if value > MOST_COUNT:
        raise InvalidArgument(name, float(min(value, 10**300)), f"at most {MOST_COUNT}")


def require_text(name: str, value: str) -> None:
    """Refuse text that no file in UTF-8 can hold, such as a path with other bytes."""
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidArgument(name, value, "text in UTF-8: rename the file or folder")


def require_not_negative(name: str, value: float) -> None:
    """Refuse anything but a finite number of at least 0."""
    if not _is_inside(value, lambda number: 0 <= number < math.inf):
        raise InvalidArgument(name, value, "at least 0 and finite")


def require_rate(name: str, value: float) -> None:
    """Refuse anything but a probability or a share: a number from 0 to 1."""
    if not _is_inside(value, lambda number: 0 <= number <= 1):
        raise InvalidArgument(name, value, "from 0 to 1")


def require_part(name: str, value: int, whole: int) -> None:
    """Refuse anything but a count of some of ``whole`` things."""
    require_count(name, value, least=0)
    if value > whole:
        raise InvalidArgument(name, value, f"at most the {whole} that there are")
