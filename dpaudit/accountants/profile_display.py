"""How the profile of any accountant shows itself in a notebook."""

from __future__ import annotations

from typing import Any

import numpy as np

from dpaudit.accountants.releases import ReleaseCounts
from dpaudit.vocabulary.errors import AccountingError, InvalidArgument
from dpaudit.vocabulary.mechanism_words import mechanism_in_words, refusal_in_words
from dpaudit.vocabulary.notebooks import axes_or_new, bound_in_words, table_html
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

TABLE_DELTAS = (1e-5, 1e-6, 1e-9)
FIGURE_DELTAS = tuple(float(delta) for delta in np.geomspace(1e-10, 1e-1, 28))


class DisplayedProfile:
    """Base of profiles: a table and a figure of epsilon over delta."""

    __slots__ = ()

    releases: ReleaseCounts
    adjacency: Adjacency

    def epsilon(self, *, delta: float) -> Bound:
        """Return the interval of epsilon, in nats, at ``delta``."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Return the releases, and epsilon at a few deltas, as a table for notebooks."""
        rows: list[tuple[object, ...]] = [
            (f"{times} times", mechanism_in_words(release))
            for release, times in self.releases.items()
        ]
        rows.append(("neighbors", self.adjacency.value))
        for delta in TABLE_DELTAS:
            try:
                shown = bound_in_words(self.epsilon(delta=delta))
            except (AccountingError, InvalidArgument) as error:
                shown = refusal_in_words(error)
            rows.append((f"epsilon at delta {delta:g}", shown))
        return table_html(type(self).__name__, rows)

    def plot(self, axes: Any = None, *, deltas: tuple[float, ...] = FIGURE_DELTAS) -> Any:
        """Draw the certified interval of epsilon over delta.

        Args:
            axes: Axes of matplotlib to draw on; None: those of a new figure.
            deltas: Where epsilon is computed; a delta without a bound is left out.

        Returns:
            The axes, with delta on a logarithmic scale.

        Raises:
            MissingExtra: If matplotlib is not installed.
        """
        axes = axes_or_new(axes)
        found: list[tuple[float, Bound]] = []
        for delta in deltas:
            try:
                found.append((delta, self.epsilon(delta=delta)))
            except AccountingError:
                continue
        at = [delta for delta, _ in found]
        lower, upper = ([getattr(one, end) for _, one in found] for end in ("lower", "upper"))
        axes.fill_between(at, lower, upper, alpha=0.3, label="certified interval")
        axes.plot(at, upper, label="upper bound")
        axes.set_xscale("log")
        axes.set_xlabel("delta")
        axes.set_ylabel("epsilon (nats)")
        axes.legend()
        return axes
