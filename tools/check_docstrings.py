"""Check how many functions document their arguments, results and errors.

    python tools/check_docstrings.py            # fails below the shares that are required
    python tools/check_docstrings.py --missing  # lists every function that lacks a section

A function needs ``Args`` if it takes arguments, ``Returns`` or ``Yields`` if it returns something,
and ``Raises`` if its body raises. Properties need a summary only. Of functions that are not
reachable from an ``__all__``, those with at most one argument and no error need one line only:
their signature says the rest. pydoclint checks that sections agree with signatures; this script
checks that they are there.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dpaudit"
REQUIRED_PUBLIC, REQUIRED_OTHER = 0.95, 0.60

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Documented:
    """One function or method, and which sections it needs and has.

    Attributes:
        module: Dotted name.
        name: With its class, as ``Private.step``.
        line: From 1.
        public: Whether it is reachable from an ``__all__``.
        missing: Sections that it needs and lacks.
    """

    module: str
    name: str
    line: int
    public: bool
    missing: tuple[str, ...]


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse_package() -> dict[str, ast.Module]:
    """Return the syntax tree of every module, by dotted name."""
    return {module_name(path): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def listed_names(tree: ast.Module) -> set[str]:
    """Return the strings of a module's ``__all__``."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return {
                one.value
                for one in ast.walk(node.value)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            }
    return set()


def public_definitions(trees: dict[str, ast.Module]) -> set[tuple[str, str]]:
    """Return (module, name) of every definition that an ``__all__`` offers.

    Args:
        trees: The package's modules.

    Returns:
        Where each offered name is defined, followed through imports.
    """
    return {
        found
        for module, tree in trees.items()
        for name in listed_names(tree)
        if (found := _definition(trees, module, name)) is not None
    }


def _definition(trees: dict[str, ast.Module], module: str, name: str) -> tuple[str, str] | None:
    tree = trees.get(module)
    if tree is None:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in trees:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(trees, node.module, alias.name)
    return module, name


def functions(trees: dict[str, ast.Module]) -> Iterator[Documented]:
    """Yield every function and method whose name has no leading underscore.

    Args:
        trees: The package's modules.
    """
    public = public_definitions(trees)
    for module, tree in sorted(trees.items()):
        for node in tree.body:
            if isinstance(node, Function) and not node.name.startswith("_"):
                yield _documented(module, node.name, node, public=(module, node.name) in public)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        name = f"{node.name}.{inner.name}"
                        offered = (module, node.name) in public
                        yield _documented(module, name, inner, public=offered)


def _documented(module: str, name: str, node: Function, *, public: bool) -> Documented:
    return Documented(module, name, node.lineno, public, tuple(_missing(node, public=public)))


def _missing(node: Function, *, public: bool) -> Iterator[str]:
    decorators = [ast.unparse(one) for one in node.decorator_list]
    names = [one.partition("(")[0].rpartition(".")[2] for one in decorators]
    if set(names) & {"property", "cached_property", "overload", "setter", "command", "group"}:
        return  # ruff demands one line, which is enough; the docstring of a command is its help
    text = ast.get_docstring(node)
    if text is None:
        yield "summary"
        return
    arguments = _arguments(node)
    raises = _raises(node)
    if not public and len(arguments) <= 1 and not raises:
        return
    sections = {line.strip().rstrip(":") for line in text.splitlines() if line.endswith(":")}
    if arguments and "Args" not in sections:
        yield "Args"
    if _returns(node) and not sections & {"Returns", "Yields"}:
        yield "Returns"
    if raises and "Raises" not in sections:
        yield "Raises"


def _arguments(node: Function) -> list[str]:
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [one.arg for one in found if one.arg not in {"self", "cls"}]


def _returns(node: Function) -> bool:
    return node.returns is not None and ast.unparse(node.returns) not in {"None", "NoReturn"}


def _raises(node: Function) -> bool:
    """Return whether the body itself raises, functions inside of it aside."""
    todo: list[ast.AST] = list(node.body)
    while todo:
        one = todo.pop()
        if isinstance(one, ast.Raise) and one.exc is not None:
            return "NotImplementedError" not in ast.unparse(one.exc)
        if not isinstance(one, Function | ast.Lambda | ast.ClassDef):
            todo += ast.iter_child_nodes(one)
    return False


def lacking_examples(trees: dict[str, ast.Module]) -> list[str]:
    """Return the offered classes and functions whose docstring has no doctest.

    Args:
        trees: The package's modules.
    """
    found = []
    for module, name in sorted(public_definitions(trees)):
        for node in trees[module].body:
            if not isinstance(node, Function | ast.ClassDef) or node.name != name:
                continue
            if ">>> " not in (ast.get_docstring(node) or ""):
                found.append(f"{module}.{name}")
    return found


def main() -> int:
    """Print the shares, and return 1 if one is too small."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--missing", action="store_true", help="list functions and their gaps")
    listing = parser.parse_args().missing
    trees = parse_package()
    found = list(functions(trees))
    failed = False
    for public, required in ((True, REQUIRED_PUBLIC), (False, REQUIRED_OTHER)):
        group = [one for one in found if one.public is public]
        complete = [one for one in group if not one.missing]
        share = len(complete) / len(group)
        failed |= not share >= required
        where = "reachable from an __all__" if public else "other"
        print(f"{where}: {len(complete)} of {len(group)} complete")
        print(f"  {share:.1%}, at least {required:.0%} is required")
        if listing:
            for one in group:
                if one.missing:
                    print(f"  {one.module}:{one.line} {one.name}: {', '.join(one.missing)}")
    examples = lacking_examples(trees)
    print(f"public names without an example: {len(examples)}")
    if listing or examples:
        print("".join(f"  {one}\n" for one in examples), end="")
    return 1 if failed or examples else 0


if __name__ == "__main__":
    sys.exit(main())
