"""Hold docs/errors.md against the errors that the code raises; a test holds both equal.

    python tools/list_errors.py

prints what docs/errors.md lacks, ready to be filled in, and what it lists in vain. A message
is known by its template: what differs from case to case stands in braces.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import itertools
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
from spoken import Function, Module, Scope, Texts, Words, braced, name_of, read_modules

from dpaudit.vocabulary import errors

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "errors.md"
PACKAGE = ROOT / "dpaudit"
# In a section of this exit code an entry that names no class is of this one.
USUAL = {
    1: "Refuted",
    2: "InvalidArgument",
    3: "AccountingError",
    4: "IntegrityError",
    5: "InputOutputError",
    141: "ClosedPipe",
}
# What more arguments than these may be told is told of ``{name}``, once.
MOST_NAMES = 3


@dataclass(frozen=True, order=True)
class Entry:
    """One error: its class, and its message; what is in braces is for people, and may differ."""

    kind: str
    bare: str
    message: str = field(compare=False)

    @classmethod
    def of(cls, kind: str, message: str) -> Entry:
        """Return the entry of a message with its changing parts in braces."""
        return cls(kind, re.sub(r"\{[^}]*\}", "{}", message), message)

    def __str__(self) -> str:
        usual = USUAL.get(exit_code(self.kind) or 0) == self.kind
        return f"- `{self.message}`{'' if usual else f' (*{self.kind}*)'}:"


def exit_code(kind: str) -> int | None:
    """Return what the program exits with; None for errors that only Python shows."""
    found = getattr(errors, kind, None) or getattr(click, kind, None)
    code: int | None = getattr(found, "exit_code", None)
    return code if code is None else int(code)


class Shown(str):
    """A placeholder among arguments; its representation has no quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def kinds_of(modules: Mapping[str, Module]) -> set[str]:
    """Return the names of all classes of errors: ours, click's and Python's."""
    kinds = {n for m in (errors, click, builtins) for n in vars(m) if _is_error(vars(m)[n])}
    for module in modules.values():
        for node in module.nodes:
            if isinstance(node, ast.ClassDef) and {name_of(b) for b in node.bases} & kinds:
                kinds.add(node.name)
    return kinds


def _is_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Exception)


def found_in_code(modules: Mapping[str, Module]) -> dict[Entry, list[str]]:
    """Return every error that the code makes, with the places where it does."""
    words, kinds = Words(modules), kinds_of(modules)
    makers = _makers(modules, kinds)
    found: dict[Entry, list[str]] = {}
    for module in modules.values():
        made = [call for kind in sorted(kinds) for call in module.calls.get(kind, [])]
        read = [(call.lineno, entry) for call in made for entry in _few(call, words, module)]
        for line, entry in [*read, *_unread(module, kinds | makers)]:
            found.setdefault(entry, []).append(f"{module.path}:{line}")
    return found


def _few(call: ast.Call, words: Words, module: Module) -> list[Entry]:
    """Return what an error may say; without names of arguments where these are many."""
    scopes = words.scopes(call, module)
    if len({name for here in scopes for name in here.passed.get("name") or ()}) > MOST_NAMES:
        scopes = [replace(here, passed={**here.passed, "name": None}) for here in scopes]
    return list({entry: None for here in scopes for entry in _entries(call, words, here)})


def _entries(call: ast.Call, words: Words, here: Scope) -> Iterator[Entry]:
    kind = name_of(call.func)
    for said in itertools.product(*_said(kind, call, words, here)):
        message = str(getattr(errors, kind)(*said)) if hasattr(errors, kind) else " ".join(said)
        yield Entry.of(kind, " ".join(message.split()))


def _said(kind: str, call: ast.Call, words: Words, here: Scope) -> Iterator[Texts]:
    """Yield what each argument may say; one that is not plain is spoken of in braces."""
    for argument, name in itertools.zip_longest(call.args, _names(kind)):
        texts = words.texts(argument, here)
        if texts is None and isinstance(argument, ast.Constant):
            texts = (Shown(argument.value),)
        if texts is None:
            general = {"value": "given"}.get(name, name)
            texts = (Shown(f"{{{general}}}" if general else braced(argument)),)
        yield texts


def _names(kind: str) -> list[str]:
    """Return what the arguments of an error of ours are called, where it says so."""
    made = inspect.signature(getattr(errors, kind, object).__init__).parameters.values()
    return [p.name for p in made if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def _makers(modules: Mapping[str, Module], kinds: set[str]) -> set[str]:
    """Return the names of functions that return an error, which is made and read in them."""
    return {
        node.name
        for module in modules.values()
        for node in module.nodes
        if isinstance(node, Function) and node.returns and name_of(node.returns) in kinds
    }


def _unread(module: Module, makers: set[str]) -> Iterator[tuple[int, Entry]]:
    """Yield each ``raise`` of something that is not made by a call seen here."""
    caught = {n.name for n in module.nodes if isinstance(n, ast.ExceptHandler)}
    for node in module.nodes:
        match node:
            case ast.Raise(exc=None):
                continue
            case ast.Raise(exc=ast.Call(func=func)) if name_of(func) in makers:
                continue
            case ast.Raise(exc=ast.Name(id=name) | ast.Attribute(value=ast.Name(id=name))) if (
                name in caught
            ):
                continue
            case ast.Raise(exc=ast.expr() as what):
                yield node.lineno, Entry.of("Unread", ast.unparse(what))


ENTRY = re.compile(r"^- `(?P<message>[^`]+)`(?: \(\*(?P<kind>\w+)\*\))?:$")
SECTION = re.compile(r"^## (?:Exit code (?P<code>\d+))?")


def documented(text: str) -> dict[Entry, str]:
    """Return the entries of docs/errors.md with their remedies.

    Raises:
        ValueError: a line begins like an entry and is none, an entry comes twice, or is in
            the section of another exit code.
    """
    found: dict[Entry, str] = {}
    code, entry = None, None
    for number, line in enumerate(text.splitlines(), start=1):
        if section := SECTION.match(line):
            code, entry = int(section["code"]) if section["code"] else None, None
        elif line.startswith("- `"):
            entry = _entry(line, number, code)
            if entry in found:
                raise ValueError(f"line {number}: this entry comes twice: {line}")
            found[entry] = ""
        elif entry is not None and line.startswith("  "):
            found[entry] = f"{found[entry]} {line.strip()}".strip()
        else:
            entry = None
    return found


def _entry(line: str, number: int, code: int | None) -> Entry:
    match = ENTRY.match(line)
    if match is None:
        raise ValueError(f"line {number}: write - `message`: or - `message` (*Class*): {line}")
    kind = match["kind"] or USUAL.get(code or 0, "Exception")
    if exit_code(kind) != code:
        raise ValueError(f"line {number}: {kind} belongs under exit code {exit_code(kind)}: {line}")
    return Entry.of(kind, match["message"])


def main() -> int:
    """Print how docs/errors.md and the code differ; 0: they do not."""
    code = found_in_code(read_modules(PACKAGE))
    written = documented(DOCUMENT.read_text()) if DOCUMENT.exists() else {}
    missing, superfluous = sorted(code.keys() - written), sorted(written.keys() - code)
    if missing:
        print("docs/errors.md lacks these: add each, with what to do, where it belongs\n")
    for entry in missing:
        print(f"exit code {exit_code(entry.kind)}, raised in {', '.join(code[entry])}\n{entry}\n")
    if superfluous:
        print("docs/errors.md lists these, which nothing raises: remove or reword them\n")
    for entry in superfluous:
        print(entry)
    if not missing and not superfluous:
        print(f"{len(code)} errors, all of them in docs/errors.md")
    return int(bool(missing or superfluous))


if __name__ == "__main__":
    sys.exit(main())
