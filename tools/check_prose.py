"""Check the language of documentation, docstrings, comments, help and messages.

    python tools/check_prose.py         # prints each finding, fails if there is one

Three checks: phrases that CONTRIBUTING's style replaces by field terms; sentences of more than
``MOST_WORDS`` words in pages and docstrings; lines of ``--help`` wider than 80 columns.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import click

from dpaudit.cli.entry_point import cli

ROOT = Path(__file__).resolve().parent.parent
MOST_WORDS = 40
WIDTH = 80
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs")

REPLACED = {
    r"\bbook(?:s|ings?)? (?:a |the |no |its |release|step|what|each|every|is|are|as)": "record",
    r"\bbooked\b": "recorded",
    r"\brests? on\b": "assumptions",
    r"\b(?:is|was|were|be|been) come by\b|\bcame? by\b": "method",
    r"\bof one's own\b": "your own",
    r"\ban? (?:loss|line|row|number|file|key|model) an? (?:record|release|row|step|run)\b": "per",
    r"\basks? the other way round\b": "compute delta for a given epsilon",
    r"\b(?:refused|named) by (?:its )?name\b": "raises an error that names it",
    r"\bconvict(?:s|ed)?\b": "reject, detect",
    r"\bdo not touch each other\b": "non-interfering",
    r"\bas through a fog\b": "with the records' gradients as noise",
    r"\b95 times in 100\b": "at 95% power",
    r"\bstand(?:s|ing)? (?:above|on top of)\b": "override, take precedence over",
    r"\b(?:claim|policy)[^.]{0,40} (?:leaves?|may leave) out\b": "does not cover, unaccounted",
    r"\bnormalis?zer\b|\bnormaliser\b": "expected batch size",
    r"\badam's kin\b": "Adam variants",
    r"\bHOLDS\b|\bVIOLATED\b": "PASS, FAIL",
    r"\bdoors? for people\b": "symlinks for browsing",
    r"\b(?:whoever|whereupon|thereof|whence|hither|thither|forthwith|lest)\b": "plain English",
    r"\bTell \w+ of a run\b": "Export a run",
    r"\bTake up the\b": "Import the",
}
"""Phrases that are not used, and what to write."""

ALLOWED = {
    # Where names of 0.1 are mapped, or history is told.
    "dpaudit/vocabulary/renamed.py": {"HOLDS", "VIOLATED", "booked"},
}


class Text(ast.Constant):
    """A string in the source."""

    value: str


@dataclass(frozen=True)
class Finding:
    """What is to be changed, and where.

    Attributes:
        place: File and line, or a command.
        text: What was found.
        remedy: What to write.
    """

    place: str
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text!r}: {self.remedy}"


@dataclass(frozen=True)
class Passage:
    """Some prose, with its place.

    Attributes:
        path: Relative to the repository.
        line: Of its beginning, from 1.
        text: Without code.
        whole: Whether it consists of sentences, whose length is checked.
    """

    path: str
    line: int
    text: str
    whole: bool


def passages() -> Iterator[Passage]:
    """Yield the prose of every page and module."""
    for path in _pages():
        yield from _of_page(path)
    for path in sorted((ROOT / "dpaudit").rglob("*.py")):
        yield from _of_module(path)
    for path in sorted((ROOT / "dpaudit").rglob("*.html")):
        text = re.sub(r"\{[{%#].*?[}%#]\}|<[^>]*>", " ", path.read_text(), flags=re.S)
        yield Passage(_name(path), 1, text, whole=False)


def _pages() -> Iterator[Path]:
    for name in PAGES:
        path = ROOT / name
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _of_page(path: Path) -> Iterator[Passage]:
    """Yield paragraphs, code and tables left out."""
    text = re.sub(
        r"```.*?```", lambda found: "\n" * found[0].count("\n"), path.read_text(), flags=re.S
    )
    text = re.sub(r"<!--.*?-->", lambda found: "\n" * found[0].count("\n"), text, flags=re.S)
    line = 1
    for paragraph in text.split("\n\n"):
        if not paragraph.startswith("    "):  # indented: code
            yield from _items(path, line, paragraph)
        line += paragraph.count("\n") + 2


def _items(path: Path, line: int, paragraph: str) -> Iterator[Passage]:
    """Yield a paragraph's list items by themselves; rows of tables are no sentences."""
    start = 0
    lines = paragraph.split("\n")
    for number in range(1, len(lines) + 1):
        if number == len(lines) or re.match(r"\s*(?:[-*]|\d+\.) |\|", lines[number]):
            item = "\n".join(lines[start:number])
            yield Passage(
                _name(path), line + start, _plain(item), not item.lstrip().startswith("|")
            )
            start = number


def _plain(text: str) -> str:
    """Return prose with code and links as one word each."""
    text = re.sub(r"``.*?``|`[^`]*`", "CODE", text, flags=re.S)
    return re.sub(r"\]\([^)]*\)|https?://\S+", " ", text)


def _of_module(path: Path) -> Iterator[Passage]:
    content = path.read_text()
    tree = ast.parse(content)
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and _is_text(node.value):
            docstrings.add(id(node.value))
            yield from _of_docstring(path, node.lineno, node.value.value)
    for node in ast.walk(tree):
        if _is_text(node) and id(node) not in docstrings and " " in node.value:
            yield Passage(_name(path), node.lineno, node.value, whole=False)
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield Passage(_name(path), token.start[0], token.string, whole=False)


def _is_text(node: ast.AST) -> TypeGuard[Text]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _of_docstring(path: Path, line: int, text: str) -> Iterator[Passage]:
    """Yield paragraphs and entries of sections; examples are code."""
    text = re.sub(r"\x08\n.*?(?=\n\s*\n|$)", "", text, flags=re.S)  # click: lines as they are
    lines = text.split("\n")
    start = 0
    in_example = False
    for number in range(1, len(lines) + 1):
        ends = number == len(lines) or not lines[number].strip() or _begins_entry(lines[number])
        if not ends:
            continue
        part = "\n".join(lines[start:number])
        in_example = "Example" in part.split("\n")[0] or (in_example and ">>>" in part)
        if ">>>" not in part:
            yield Passage(_name(path), line + start, _plain(part), not in_example)
        start = number


def _begins_entry(line: str) -> bool:
    return re.match(r"\s*(?:[\w*]+(?: \([^)]*\))?|``[^`]+``): \S|\s+[-*] ", line) is not None


def phrases(passage: Passage) -> Iterator[Finding]:
    """Yield the phrases of a passage that are not used.

    Args:
        passage: Any prose.
    """
    text = " ".join(passage.text.split())
    for pattern, remedy in REPLACED.items():
        for found in re.finditer(pattern, text):
            if found[0] not in ALLOWED.get(passage.path, ()):
                yield Finding(f"{passage.path}:{passage.line}", found[0], f"write: {remedy}")


def long_sentences(passage: Passage) -> Iterator[Finding]:
    """Yield the sentences of a passage that have too many words.

    Args:
        passage: Any prose; what does not consist of sentences has none.
    """
    if not passage.whole:
        return
    for sentence in re.split(r"(?<=[.;:?!])\s+(?=\S)|\n\s*\n", passage.text):
        words = re.findall(r"[A-Za-z][\w'-]*", sentence)
        if len(words) > MOST_WORDS:
            shown = " ".join(sentence.split())[:70]
            yield Finding(f"{passage.path}:{passage.line}", shown, f"{len(words)} words: split it")


def wide_help() -> Iterator[Finding]:
    """Yield the lines of every command's help that are wider than 80 columns."""
    todo: list[tuple[str, click.Command]] = [("dpaudit", cli)]
    while todo:
        name, command = todo.pop()
        with click.Context(command, info_name=name, terminal_width=WIDTH) as context:
            for line in command.get_help(context).splitlines():
                if len(line) > WIDTH:
                    yield Finding(f"{name} --help", line.strip(), f"{len(line)} columns: wrap it")
            if isinstance(command, click.Group):
                for inner in command.list_commands(context):
                    found = command.get_command(context, inner)
                    if found is not None:
                        todo.append((f"{name} {inner}", found))


def main() -> int:
    """Print the findings, and return 1 if there is one."""
    findings = [
        finding
        for passage in passages()
        for check in (phrases, long_sentences)
        for finding in check(passage)
    ]
    findings += wide_help()
    for finding in findings:
        print(finding)
    print(f"{len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
