"""Everything that dpaudit raises on purpose, and the exit code that each one becomes.

DpauditError
    InvalidArgument     a value that is not allowed          exit code 2
        UnsupportedMechanism   a question this accountant must not answer
    MissingExtra        an optional library is not installed exit code 2
    UserCodeError       the user's own code raised an error  exit code 2
    RunExists           a run would be overwritten           exit code 2
    ForkedSession       a session used in a fork or a copy   exit code 2
    NoiseReused         one noise for two releases           exit code 2
    UnrecordedChange    a model changed between its steps    exit code 4
    IntegrityError      a file is missing, torn or altered   exit code 4
    InputOutputError    a disk is full or fails              exit code 5
    ClosedPipe          the reader of the output has gone    exit code 141
    Refuted             a run gives away more than it claims  exit code 1
    AccountingError     no number that is certainly true     exit code 3
        Unresolvable    a method cannot tell; another might
        BudgetExceeded  a release that a filter's budget does not admit
"""

from __future__ import annotations

import math
from enum import IntEnum


class ExitCode(IntEnum):
    """What the ``dpaudit`` process says to the shell that called it."""

    HOLDS = 0
    VIOLATED = 1
    USAGE = 2
    INCONCLUSIVE = 3
    INTEGRITY = 4
    IO = 5
    BUG = 70
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class DpauditError(Exception):
    """Base of every error that dpaudit raises on purpose."""

    exit_code = ExitCode.BUG


class InvalidArgument(DpauditError, ValueError):
    """An argument is outside of what is allowed; the message names all three."""

    exit_code = ExitCode.USAGE

    def __init__(self, name: str, value: object, allowed: str) -> None:
        # What other libraries say may have many lines: an error of ours has one.
        super().__init__(" ".join(f"{name} must be {allowed}, got {value!r}".split()))
        self.name = name


class UnsupportedMechanism(InvalidArgument):
    """An accountant has no valid statement about this mechanism under this adjacency."""

    def __init__(self, mechanism: object, why: str) -> None:
        ValueError.__init__(self, f"{mechanism!r}: {why}")
        self.name = "mechanism"


class MissingExtra(DpauditError, ImportError):
    """A command needs libraries that the light core does not install."""

    exit_code = ExitCode.USAGE

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed: pip install 'dpaudit[{extra}]'")


class UserCodeError(DpauditError):
    """A factory, a model or a trainer of the user raised an error."""

    exit_code = ExitCode.USAGE

    def __init__(self, name: str, cause: str, remedy: str) -> None:
        super().__init__(" ".join(f"{name} raised {cause}: {remedy}".split()))


class RunExists(DpauditError):
    """A run directory would be overwritten without being asked to."""

    exit_code = ExitCode.USAGE


class IntegrityError(DpauditError):
    """A file of a run is missing, incomplete or not what its hashes say."""

    exit_code = ExitCode.INTEGRITY


class InputOutputError(DpauditError, OSError):
    """The disk, or the device, under a file is full or fails."""

    exit_code = ExitCode.IO

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} cannot be read or written ({why}): free space or repair the disk, "
            "then run the command again"
        )


class ClosedPipe(DpauditError, BrokenPipeError):
    """The program that read the output ended before it was all written."""

    exit_code = ExitCode.CLOSED_PIPE


class ForkedSession(DpauditError):
    """A session, key stream or ledger was used in a forked process, copied or pickled.

    Two of them would use the same noise twice, or record one release for two.
    """

    exit_code = ExitCode.USAGE


class NoiseReused(DpauditError, RuntimeError):
    """The noise of a step was asked for a second time."""

    exit_code = ExitCode.USAGE


class UnrecordedChange(DpauditError):
    """What would be released is not the result of the recorded steps."""

    exit_code = ExitCode.INTEGRITY


class Refuted(DpauditError):
    """A run was stopped, as its own canaries show more than its claim allows."""

    exit_code = ExitCode.VIOLATED


class AccountingError(DpauditError, ArithmeticError):
    """Raised where going on would print a privacy number that is not true."""

    exit_code = ExitCode.INCONCLUSIVE


class Unresolvable(AccountingError):
    """A method cannot resolve this question in floating point; a wider bound may stand in."""


class BudgetExceeded(AccountingError):
    """A release would cost, or has cost, more than a filter's budget has left."""


MOST_COUNT = 10**18

# Written so that NaN is refused too: every comparison with NaN is false.


def require_positive(name: str, value: float) -> None:
    """Refuse anything but a finite number above 0."""
    if not 0 < value < math.inf:
        raise InvalidArgument(name, value, "above 0 and finite")


def require_sampling_rate(name: str, value: float) -> None:
    """Refuse anything but a probability above 0."""
    if not 0 < value <= 1:
        raise InvalidArgument(name, value, "above 0 and at most 1")


def require_open_unit(name: str, value: float) -> None:
    """Refuse anything but a number strictly between 0 and 1."""
    if not 0 < value < 1:
        raise InvalidArgument(name, value, "above 0 and below 1")


def require_delta(name: str, value: float) -> None:
    """Refuse anything but a delta that a double can share out among many releases."""
    if not 1e-300 <= value < 1:
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
    if not 0 <= value < math.inf:
        raise InvalidArgument(name, value, "at least 0 and finite")


def require_rate(name: str, value: float) -> None:
    """Refuse anything but a probability or a share: a number from 0 to 1."""
    if not 0 <= value <= 1:
        raise InvalidArgument(name, value, "from 0 to 1")


def require_part(name: str, value: int, whole: int) -> None:
    """Refuse anything but a count of some of ``whole`` things."""
    require_count(name, value, least=0)
    if value > whole:
        raise InvalidArgument(name, value, f"at most the {whole} that there are")
