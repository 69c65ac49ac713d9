"""Where releases are booked: a ledger's file, or memory."""

from __future__ import annotations

from typing import Protocol

from dpaudit.vocabulary.ledger import BookedRelease


class Book(Protocol):
    """Where releases are booked; when ``book`` returns, the release counts."""

    @property
    def releases(self) -> int:
        """How many are booked."""

    def book(self, release: BookedRelease) -> None:
        """Book one release."""


class MemoryBook:
    """A book that is gone with the process, or whose releases another rank writes down."""

    def __init__(self) -> None:
        self._releases = 0

    @property
    def releases(self) -> int:
        """See ``Book``."""
        return self._releases

    def book(self, release: BookedRelease) -> None:
        """See ``Book``."""
        self._releases += 1
