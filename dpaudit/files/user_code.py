"""Imports and calls the user's own Python code, and says when an error is its own."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, UserCodeError

_modules: set[str] = set()
"""Top-level packages that were imported because an argument named them."""

REMEDY = "correct it there, or give another one"


def imported(argument: str, name: str, allowed: str) -> Any:
    """Return what ``package.module:attribute`` names.

    The working directory is searched, too: an installed command does not look where it is
    called.

    Args:
        argument: The argument that names it.
        name: What was given.
        allowed: What is allowed, for the error.

    Raises:
        InvalidArgument: There is no such module or attribute.
        UserCodeError: The module raised an error, or ended the process, while it was imported.
    """
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute) or module.startswith("."):
        raise InvalidArgument(argument, name, allowed)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    _modules.add(module.partition(".")[0])
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(argument, name, f"{allowed} ({cause(error)})") from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{argument} {name}", cause(error), REMEDY) from error
    return found


def made(argument: str, name: str, factory: Callable[..., Any], *arguments: object) -> Any:
    """Call a factory with ``arguments`` if its signature takes them, else without any.

    Raises:
        InvalidArgument: Its signature takes neither.
        UserCodeError: It raised an error, or called ``sys.exit``.
    """
    given = _accepted(argument, name, factory, arguments)
    try:
        return factory(*given)
    except DpauditError:
        raise
    except (Exception, SystemExit) as error:
        called = f"it was called with {', '.join(map(repr, given)) or 'no arguments'}; {REMEDY}"
        raise UserCodeError(f"{argument} {name}", cause(error), called) from error


def called(name: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a user's model or trainer.

    Raises:
        UserCodeError: It raised an error, or called ``sys.exit``.
    """
    try:
        return function(*arguments)
    except DpauditError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(name, cause(error), REMEDY) from error


def raised_by_user_code(error: BaseException) -> UserCodeError | None:
    """Return what to say of an error that passed through a module of the user; else None."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] in _modules:
            place = f"{name}.{frame.f_code.co_name}"
            return UserCodeError(place, cause(error), REMEDY)
    return None


def cause(error: BaseException) -> str:
    """Return an error's type and text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _accepted(
    argument: str, name: str, factory: Callable[..., Any], arguments: tuple[object, ...]
) -> tuple[object, ...]:
    if not callable(factory):
        raise InvalidArgument(argument, name, "a function or class to call")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of C code that does not say
        return arguments
    for given in (arguments, ()):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        return given
    allowed = (
        "a function that is called with the shape of a record and the number of classes, or with "
        f"nothing; it takes {signature}"
    )
    raise InvalidArgument(argument, name, allowed)
