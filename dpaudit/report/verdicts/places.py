"""Where in the policy's files a rule comes from, as services name places."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dpaudit.report.verdicts.judged import Judged


@dataclass(frozen=True)
class Place:
    """A file, and its line where one is known.

    Attributes:
        file: From the root of the repository; absolute where it lies outside of it.
        line: From 1.
    """

    file: Path
    line: int | None

    def __str__(self) -> str:
        return str(self.file) if self.line is None else f"{self.file}:{self.line}"

    @property
    def uri(self) -> str:
        """The file as a URI: a relative reference, or absolute where the file is."""
        if self.file.is_absolute():
            return self.file.as_uri()
        return quote(os.fsencode(self.file.as_posix()))


def place_of(rule: str, judged: Judged) -> Place | None:
    """Return the line that ``rule`` comes from, or else the policy's first file, if any.

    A rule whose key an option or a variable set has no line: the file alone is named.
    """
    origin = judged.loaded.origin_of(rule)
    if origin.line is not None:
        return Place(_from_root(origin.source, judged.root), origin.line)
    files = [one.source for one in judged.loaded.origins.values() if one.line is not None]
    return Place(_from_root(files[0], judged.root), None) if files else None


def _from_root(source: str, root: Path) -> Path:
    path = Path(source)
    whole = path.parent.resolve() / path.name  # what a link is named, not what it points at
    inside = root.resolve()
    return whole.relative_to(inside) if whole.is_relative_to(inside) else whole
