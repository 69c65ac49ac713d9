"""The user's own Python code: importing and calling it, with errors attributed to it."""

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


def import_object(argument: str, name: str, allowed: str) -> Any:
    """Return the object that ``package.module:attribute`` names.

    The working directory is searched, too, which an installed command does not do by itself.

    Args:
        argument: Name of the argument, for errors.
        name: The given value.
        allowed: Description of allowed values, for errors.

    Returns:
        The attribute; dots in ``attribute`` are followed.

    Raises:
        InvalidArgument: If there is no such module or attribute.
        UserCodeError: If the module raises an error, or exits, while it is imported.
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
        raise InvalidArgument(argument, name, f"{allowed} ({describe_cause(error)})") from error
    except (Exception, SystemExit) as error:
        raise UserCodeError(f"{argument} {name}", describe_cause(error), REMEDY) from error
    return found


def call_factory(argument: str, name: str, factory: Callable[..., Any], *arguments: object) -> Any:
    """Call a factory with arguments if its signature accepts them, else without any.

    Args:
        argument: Name of the argument that gave the factory, for errors.
        name: The given value, for errors.
        factory: The function or class.
        *arguments: Arguments to try first.

    Returns:
        What the factory returns.

    Raises:
        InvalidArgument: If its signature accepts neither.
        UserCodeError: If it raises an error, or calls ``sys.exit``.
    """
    given = _accepted(argument, name, factory, arguments)
    try:
        return factory(*given)
    except DpauditError:
        raise
    except (Exception, SystemExit) as error:
        called = f"it was called with {', '.join(map(repr, given)) or 'no arguments'}; {REMEDY}"
        raise UserCodeError(f"{argument} {name}", describe_cause(error), called) from error


def call_user_function(name: str, function: Callable[..., Any], *arguments: object) -> Any:
    """Call a user's model or trainer.

    Args:
        name: Name of the function, for errors.
        function: The function.
        *arguments: Its arguments.

    Returns:
        What the function returns.

    Raises:
        UserCodeError: If it raises an error, or calls ``sys.exit``.
    """
    try:
        return function(*arguments)
    except DpauditError:
        raise
    except (Exception, SystemExit) as error:
        raise UserCodeError(name, describe_cause(error), REMEDY) from error


def describe_user_error(error: BaseException) -> UserCodeError | None:
    """Return the error to report for one that was raised below a user's module.

    Args:
        error: Any exception with a traceback.

    Returns:
        An error that names the innermost function of the user; None if there is none.
    """
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] in _modules:
            place = f"{name}.{frame.f_code.co_name}"
            return UserCodeError(place, describe_cause(error), REMEDY)
    return None


def describe_cause(error: BaseException) -> str:
    """Return the type and text of an error.

    Args:
        error: Any exception.

    Returns:
        ``Type: text``, or the type alone.
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _accepted(
    argument: str, name: str, factory: Callable[..., Any], arguments: tuple[object, ...]
) -> tuple[object, ...]:
    """Return the arguments that a factory accepts: those given, or none."""
    if not callable(factory):
        raise InvalidArgument(argument, name, "a function or class to call")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # C code without a signature
        return arguments
    for given in (arguments, ()):
        try:
            signature.bind(*given)
        except TypeError:
            continue
        return given
    allowed = (
        "a function that accepts the shape of a record and the number of classes, or no "
        f"arguments; its signature is {signature}"
    )
    raise InvalidArgument(argument, name, allowed)
