"""Read what expressions of the package say, without running it: text with gaps in braces.

Names, parameters and functions are followed where that is plain: to what was assigned last, to
what callers pass, to what is returned. What is not plain becomes a gap with a few words in it.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

# How many names and calls lead from a message to its words, at most.
FARTHEST = 4

Function = ast.FunctionDef | ast.AsyncFunctionDef
Assignment = ast.Assign | ast.AnnAssign
Texts = tuple[str, ...]


def read_modules(package: Path) -> dict[str, Module]:
    """Return every module of the package by its dotted name."""
    modules = [Module(path, package.parent) for path in sorted(package.rglob("*.py"))]
    return {module.name: module for module in modules}


class Module:
    """One file of the package, as far as messages need it."""

    def __init__(self, path: Path, root: Path) -> None:
        self.path = path.relative_to(root)
        self.name = ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")
        self.tree = ast.parse(path.read_text())
        self.nodes = list(ast.walk(self.tree))
        self.parents = {c: p for p in self.nodes for c in ast.iter_child_nodes(p)}

    @cached_property
    def imports(self) -> dict[str, tuple[str, str]]:
        """Where each imported name comes from: module and name there."""
        froms = [node for node in self.nodes if isinstance(node, ast.ImportFrom)]
        return {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in froms
            for alias in node.names
        }

    @cached_property
    def calls(self) -> Mapping[str, list[ast.Call]]:
        """Every call, by the name of what is called."""
        found: dict[str, list[ast.Call]] = {}
        for node in self.nodes:
            if isinstance(node, ast.Call):
                found.setdefault(name_of(node.func), []).append(node)
        return found

    @cached_property
    def functions(self) -> Mapping[str, Function]:
        """The functions that are no methods."""
        return {node.name: node for node in self.tree.body if isinstance(node, Function)}

    @cached_property
    def assigned(self) -> Mapping[tuple[ast.AST, str], list[Assignment]]:
        """What is assigned to names, in each function and in the module itself."""
        found: dict[tuple[ast.AST, str], list[Assignment]] = {}
        for node in self.nodes:
            match node:
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name))
                ):
                    where = next(self.around(node), self.tree)
                    found.setdefault((where, name), []).append(node)
        return found

    def values(self, name: str, function: Function, use: ast.expr) -> list[ast.expr]:
        """Return what ``name`` may hold where ``use`` is: the last for certain, and any later."""
        before = [a for a in self.assigned.get((function, name), []) if a.lineno < use.lineno]
        certain = [n for n, a in enumerate(before) if self.parents[a] in self.above(use)]
        return [a.value for a in before[certain[-1] if certain else 0 :] if a.value is not None]

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what ``node`` is in, from the inside."""
        while (parent := self.parents.get(node)) is not None:
            node = parent
            yield node

    def around(self, node: ast.AST) -> Iterator[Function]:
        """Yield the functions that ``node`` is in, from the inside."""
        return (parent for parent in self.above(node) if isinstance(parent, Function))


def name_of(node: ast.AST) -> str:
    """Return the last name of ``a.b.c``, or nothing."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


@dataclass(frozen=True)
class Scope:
    """Where an expression stands, and what one caller passes to the function around it."""

    module: Module
    function: Function | None = None
    passed: Mapping[str, Texts | None] = field(default_factory=dict)
    depth: int = 0

    def elsewhere(self, module: Module) -> Scope:
        """Return the scope of what is read from here in ``module``, one step farther."""
        return Scope(module, depth=self.depth + 1)


class Words:
    """What expressions say, followed through names, parameters and functions where plain."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        self.modules = modules

    def texts(self, node: ast.expr | None, here: Scope) -> Texts | None:
        """Return every text that an expression may be; None where that is not plain."""
        if here.depth > FARTHEST:
            return None
        match node:
            case ast.Constant(value=str(text)):
                return (text,)
            case ast.JoinedStr(values=parts):
                return _joined([self._part(part, here) for part in parts])
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                ends = [self.texts(end, here) or (braced(end),) for end in (left, right)]
                return _joined(ends) if isinstance(left, ast.Constant) else None
            case ast.IfExp(body=one, orelse=other):
                return _all([self.texts(one, here), self.texts(other, here)])
            case ast.BoolOp(values=[*values]):
                return _all([self.texts(value, here) for value in values])
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[what]):
                return (braced(what),)
            case ast.Call(func=ast.Name(id=name)):
                return self._returned(name, here)
            case ast.Name(id=name):
                return self._named(name, node, here)
        return None

    def scopes(self, node: ast.AST, module: Module) -> list[Scope]:
        """Return the scope of ``node`` for each call of the function that it stands in."""
        function = next(module.around(node), None)
        if function is None:
            return [Scope(module)]
        names = _parameters(function)
        return [
            Scope(module, function, {name: self._given(name, function, *site) for name in names})
            for site in self._sites(function, module)
        ] or [Scope(module, function)]

    def _part(self, part: ast.expr, here: Scope) -> Texts:
        match part:
            case ast.Constant(value=value):
                return (str(value),)
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                call = isinstance(value, ast.Call)
                return (None if call else self.texts(value, here)) or (braced(value),)
            case ast.FormattedValue(value=value):
                return (braced(value),)
        raise TypeError(ast.dump(part))

    def _named(self, name: str, node: ast.expr, here: Scope) -> Texts | None:
        for function in here.module.around(node):
            if values := here.module.values(name, function, node):
                inside = replace(here, depth=here.depth + 1)
                return _all([self.texts(value, inside) for value in values])
            if name in _parameters(function):
                if function is here.function:
                    return here.passed.get(name)
                sites = self._sites(function, here.module)
                return _all([self._given(name, function, *site, here.depth) for site in sites])
        name, there = self._origin(name, here)
        made = there.module.assigned.get((there.module.tree, name), [])
        return _all([self.texts(line.value, there) for line in made])

    def _origin(self, name: str, here: Scope) -> tuple[str, Scope]:
        where, known_as = here.module.imports.get(name, (here.module.name, name))
        return known_as, here.elsewhere(self.modules.get(where, here.module))

    def _sites(self, function: Function, here: Module) -> list[tuple[ast.Call, Module]]:
        """Return the calls of a function, or of a method in its own module."""
        name, origin = function.name, (here.name, function.name)
        method = isinstance(here.parents[function], ast.ClassDef)
        kind = ast.Attribute if method else ast.Name
        return [
            (call, module)
            for module in self.modules.values()
            if module is here or (not method and module.imports.get(name) == origin)
            for call in module.calls.get(name, [])
            if isinstance(call.func, kind) and not name.startswith("__")
        ]

    def _given(
        self, name: str, function: Function, call: ast.Call, module: Module, depth: int = 0
    ) -> Texts | None:
        return self.texts(_argument(name, function, call), Scope(module, depth=depth + 1))

    def _returned(self, name: str, here: Scope) -> Texts | None:
        name, there = self._origin(name, here)
        made = there.module.functions.get(name)
        returns = [n for n in ast.walk(made) if isinstance(n, ast.Return)] if made else []
        texts = _all([self.texts(n.value, there) for n in returns])
        return None if texts is None or "" in texts else texts


def braced(node: ast.expr) -> str:
    """Return the gap that stands for an expression."""
    return f"{{{spoken(node)}}}"


def _joined(parts: list[Texts]) -> Texts:
    return tuple("".join(chosen) for chosen in itertools.product(*parts))


def _all(found: list[Texts | None]) -> Texts | None:
    texts = [text for some in found if some is not None for text in some]
    return tuple(dict.fromkeys(texts)) if found and None not in found else None


def _parameters(function: Function) -> list[str]:
    return [*_by_place(function), *(a.arg for a in function.args.kwonlyargs)]


def _by_place(function: Function) -> list[str]:
    return [a.arg for a in (*function.args.posonlyargs, *function.args.args)]


def _argument(name: str, function: Function, call: ast.Call) -> ast.expr | None:
    """Return what a call passes as ``name``: by name, by place, or as the default."""
    places, passed = _by_place(function), {k.arg: k.value for k in call.keywords}
    given = [place for place in places if place not in {"self", "cls"}]
    by_place = dict(zip(given, call.args, strict=False))
    left_out = dict(zip(places[::-1], function.args.defaults[::-1], strict=False))
    return passed.get(name) or by_place.get(name) or left_out.get(name)


# Attributes and functions that say nothing themselves: what they are of says more.
SILENT_ATTRIBUTES = {"value", "name", "strerror", "__name__", "path"}
SILENT_CALLS = {"str", "repr", "list", "sorted", "tuple", "float", "int", "shown", "min", "max"}


def spoken(node: ast.expr) -> str:
    """Return a few words for an expression, to stand in braces."""
    match node:
        case ast.Name(id=name):
            return _plain(name)
        case ast.Constant(value=value):
            return str(value)
        case ast.Attribute(value=of, attr=name) if name in SILENT_ATTRIBUTES:
            return spoken(of) if name_of(of) != "self" else _plain(name)
        case ast.Attribute(value=of, attr="shape" | "dtype" as name):
            return f"{name} of {spoken(of)}"
        case ast.Attribute(attr=name):
            return _plain(name)
        case ast.Subscript(value=of) | ast.UnaryOp(operand=of):
            return spoken(of)
        case ast.Call():
            return _call_spoken(node)
        case ast.GeneratorExp(generators=[ast.comprehension(iter=of), *_]):
            return spoken(of)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return f"{spoken(left)}/{spoken(right)}"
        case ast.BinOp(left=left, right=right):
            return f"{spoken(left)} and {spoken(right)}"
    return "…"


def _call_spoken(call: ast.Call) -> str:
    match call:
        case ast.Call(func=ast.Name(id="type"), args=[of]):
            return f"type of {spoken(of)}"
        case ast.Call(func=ast.Name(id="len"), args=[of]):
            return f"number of {spoken(of)}"
        case ast.Call(func=ast.Name(id=name), args=[of, *_]) if name in SILENT_CALLS:
            return spoken(of)
        case ast.Call(func=ast.Attribute(value=ast.Constant() | ast.Name("np")), args=[of, *_]):
            return spoken(of)
        case ast.Call(func=ast.Attribute(value=of)):
            return spoken(of)
    return _plain(name_of(call.func))


def _plain(name: str) -> str:
    return name.strip("_").replace("_", " ").lower()
