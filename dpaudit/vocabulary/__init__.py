"""Frozen types, errors and constants that all packages share; light to import, no computation.

The modules import the standard library and msgspec alone; ``arrays`` also imports numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

SCHEMA_VERSION = "2.0"
"""Version of every JSON that dpaudit writes."""

READABLE_MAJOR_VERSIONS = frozenset({"1", "2"})
"""Major versions that are read; others are refused. ``renamed`` maps the names of version 1."""


def is_readable(version: object) -> bool:
    """Return whether files with this ``schema_version`` can be read.

    Only the major version counts: the text before the first dot. Anything that is not text is
    converted first, so None cannot be read.

    Args:
        version: The field ``schema_version`` of a file, as it was parsed.

    Returns:
        True if its major version is in ``READABLE_MAJOR_VERSIONS``.

    Example:
        >>> is_readable("1.0"), is_readable("3.0"), is_readable(None)
        (True, False, False)
    """
    return str(version).split(".", maxsplit=1)[0] in READABLE_MAJOR_VERSIONS


# Names that a package offers and imports only on use, so that importing it stays light.


def lazy_exports(
    package: str, sources: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the functions ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Args:
        package: The package's ``__name__``.
        sources: For each public name, the module that defines it, relative to the package.

    Returns:
        ``__getattr__``, which imports the module and returns its object, and ``__dir__``, which
        lists public names and modules, without what the package itself imports.
    """

    def get_attribute(name: str) -> Any:
        if name not in sources:
            if find_spec(f"{package}.{name}") is not None:
                raise AttributeError(f"{name} is a module of {package}: import {package}.{name}")
            # AttributeError, so that hasattr and submodule imports work as for any module.
            raise AttributeError(f"{package} has no {name!r}; it has {', '.join(sorted(sources))}")
        found = getattr(import_module(f"{package}.{sources[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return get_attribute, public_names(package)


def public_names(package: str) -> Callable[[], list[str]]:
    """Make the function ``__dir__`` of a package (PEP 562).

    Args:
        package: The package's ``__name__``.

    Returns:
        ``__dir__``, which lists ``__all__`` and modules, without what the package itself imports.
    """

    def list_names() -> list[str]:
        inside = vars(sys.modules[package])
        own = {one for one in inside if one.startswith("__")}
        modules = {one for one in inside if f"{package}.{one}" in sys.modules}
        return sorted(own.union(modules, inside.get("__all__", ())))

    return list_names
