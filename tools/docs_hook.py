"""Fill the pages of docs/reference while MkDocs builds the site.

``[[public: dpaudit.trainer]]``, alone on a line, becomes the reference of every public name of
this package: a table of all names, then one entry for each function and class. The names are
those in ``__all__``. ``[[commands]]`` becomes the help of every command. So neither a new public
name nor a new option needs an edit in docs/.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from mkdocs.exceptions import PluginError

PUBLIC = re.compile(r"^\[\[public: (?P<package>[\w.]+)\]\]$", re.MULTILINE)
COMMANDS = re.compile(r"^\[\[commands\]\]$", re.MULTILINE)
# What a browser loads by itself; a link that a reader clicks may lead anywhere.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|link)\b[^>]*?(?:src|href)=["']?https?://[^>]*>"""
)


def public_names(package: str) -> list[str]:
    """Return the names that a package offers, sorted.

    Args:
        package: Dotted name of a package or module, for example ``dpaudit.trainer``.

    Returns:
        The names in ``__all__``; without it, the public functions and classes that the
        module itself defines.
    """
    module = import_module(package)
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [name for name, value in vars(module).items() if _is_defined_in(value, module)]
    return sorted(listed, key=str.lower)


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each ``[[...]]`` of a page; MkDocs calls this for every page."""
    markdown = COMMANDS.sub(lambda _: "\n".join(_commands()), markdown)
    return PUBLIC.sub(lambda found: "\n".join(_reference(found["package"])), markdown)


def on_post_build(*, config: Mapping[str, Any]) -> None:
    """Require that no page loads anything from a network.

    Raises:
        PluginError: If one does; the message has the page and the element.
    """
    site = Path(config["site_dir"])
    for page in sorted(site.rglob("*.html")):
        if found := LOADED.search(page.read_text(encoding="utf-8")):
            raise PluginError(f"{page.relative_to(site)} loads from a network: {found[0]}")


def _commands() -> Iterator[str]:
    cli = import_module("dpaudit.cli.entry_point").cli
    yield from _help(cli, click.Context(cli, info_name="dpaudit", **cli.context_settings))


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    """Return the help of a command, at 80 columns, and of all below it."""
    context.terminal_width = context.max_content_width = 80
    yield from ("", f"## `{context.command_path}`", "", "```text")
    yield from (command.get_help(context), "```")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                settings = {"info_name": name, "parent": context, **below.context_settings}
                yield from _help(below, click.Context(below, **settings))


def _reference(package: str) -> Iterator[str]:
    names = public_names(package)
    if not names:
        return
    module = import_module(package)
    values = {name: getattr(module, name) for name in names}
    yield from ("| Name | Summary |", "|---|---|")
    for name, value in values.items():
        yield f"| [`{name}`](#{package}.{name}) | {_summary(value)} |"
    for name, value in values.items():
        yield from ("", f"[](){{#{package}.{name}}}")
        yield from _entry(package, name, value)


def _entry(package: str, name: str, value: object) -> Iterator[str]:
    if isinstance(value, ModuleType) or not callable(value):
        yield from ("", f"### `{name}`", "", f"`{package}.{name}`: {_summary(value)}")
        return
    path = _path(package, name, value)
    yield from ("", f"::: {path}", "    options:", f"      heading: {name}")
    yield f"      toc_label: {name}"


def _path(package: str, name: str, value: object) -> str:
    """Return where a function or class is defined: there static analysis finds it."""
    module, qualified = getattr(value, "__module__", ""), getattr(value, "__qualname__", "")
    if str(module).startswith("dpaudit.") and qualified:
        return f"{module}.{qualified}"
    return f"{package}.{name}"


def _summary(value: object) -> str:
    if isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value):
        text = inspect.getdoc(value) or ""
        return text.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
    if isinstance(value, (int, float, str)):
        return f"the constant `{value!r}`"
    return "a type"


def _is_defined_in(value: object, module: ModuleType) -> bool:
    public = inspect.isclass(value) or inspect.isfunction(value)
    name = getattr(value, "__name__", "_")
    return public and not name.startswith("_") and value.__module__ == module.__name__
