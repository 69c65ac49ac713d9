"""Where chunks of reference models are trained: here, or by the workers of an engine.

Any object with ``map(function, jobs)`` will do, ``concurrent.futures`` executors and those
of cluster engines among them: jobs are independent, and their results come in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol, TypeVar

from dpaudit.vocabulary.errors import MissingExtra

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs jobs, in any order, and returns their results in the order of the jobs."""

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Return ``function(job)`` for each job."""
        ...


@dataclass(frozen=True)
class InProcess:
    """One job after the other, in this process."""

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Return ``function(job)`` for each job."""
        return [function(job) for job in jobs]


@dataclass(frozen=True)
class Joblib:
    """Jobs in worker processes of this machine, by joblib."""

    workers: int

    def map(self, function: Callable[[Job], Result], jobs: Sequence[Job], /) -> Iterable[Result]:
        """Return ``function(job)`` for each job."""
        try:
            joblib = import_module("joblib")
        except ImportError as error:
            raise MissingExtra("joblib", "train") from error
        calls = (joblib.delayed(function)(job) for job in jobs)
        found: Iterable[Result] = joblib.Parallel(n_jobs=self.workers)(calls)
        return found
