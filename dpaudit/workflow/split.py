"""Split a budget over queries that are given as text: the answer of ``dpaudit split``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import dpaudit
from dpaudit.accountants import budgets
from dpaudit.accountants.registry import find_accountant
from dpaudit.vocabulary.claim import QueryNoise, SplitAnswer
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.privacy_terms import Adjacency

ALLOWED = "NAME=WEIGHT, and after commas noise=laplace, sensitivity=NUMBER or times=COUNT"
READERS = {"noise": str, "sensitivity": float, "times": int}


def parse_queries(texts: Iterable[str]) -> dict[str, budgets.Query]:
    """Return the queries of a command line.

    Args:
        texts: One text per query: ``NAME=WEIGHT``, followed by settings after commas.

    Returns:
        The queries by their names; the weight is 1 where none is given.

    Raises:
        InvalidArgument: If a text has no such form, a name or a setting occurs twice, or a number
            is out of its range.

    Example:
        >>> parse_queries(["sum=2,sensitivity=10", "histogram,noise=laplace"])["sum"].weight
        2.0
    """
    queries: dict[str, budgets.Query] = {}
    for text in texts:
        first, *settings = (part.strip() for part in text.split(","))
        name, equals, weight = (part.strip() for part in first.partition("="))
        if not name or not name.isprintable() or name in queries:
            raise InvalidArgument("query", text, f"{ALLOWED}; each name once, in one line")
        pairs = [tuple(part.strip() for part in one.split("=")) for one in settings]
        keys = [pair[0] for pair in pairs]
        if len(set(keys)) < len(keys) or not all(key in READERS for key in keys):
            raise InvalidArgument("query", text, f"{ALLOWED}; each setting once")
        given: dict[str, Any] = {}
        try:
            if equals:
                given["weight"] = float(weight)
            for key, value in pairs:
                given[key] = READERS[key](value)
        except ValueError:
            raise InvalidArgument("query", text, ALLOWED) from None
        queries[name] = budgets.Query(**given)
    return queries


def split_answer(
    queries: dict[str, budgets.Query],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency,
    accountant: str,
) -> SplitAnswer:
    """Split a total over queries by their weights.

    Args:
        queries: The queries by their names.
        target_epsilon: Largest epsilon of all queries together, in nats, above 0.
        delta: Delta of the total; 0 for Laplace noise alone.
        adjacency: Which data sets are neighbors.
        accountant: Name of the accountant.

    Returns:
        The noise of each query, and epsilon of all of them.

    Raises:
        InvalidArgument: If an argument is out of range.
        UnsupportedMechanism: If the accountant does not cover the queries.
    """
    found = budgets.split_budget(
        queries,
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=adjacency,
        accountant=find_accountant(accountant).profile,
    )
    return SplitAnswer(
        queries={
            name: QueryNoise(
                noise=query.noise,
                scale=found.noise[name],
                weight=query.weight,
                sensitivity=query.sensitivity,
                times=query.times,
            )
            for name, query in queries.items()
        },
        target_epsilon=target_epsilon,
        delta=found.delta,
        epsilon=found.epsilon,
        accountant=accountant if delta else "pld",
        adjacency=adjacency,
        mechanism=found.mechanism,
        dpaudit_version=dpaudit.__version__,
    )
