"""Ledgers of small runs, written as the trainer would."""

from __future__ import annotations

from collections.abc import Callable

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.ledger import BookedRelease, LedgerHeader, Randomness, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled

STEPS = 40

Begin = Callable[..., tuple[RunDirectory, LedgerWriter]]
"""Begins a run of ``STEPS`` steps; its ledger is still open."""


def book_step(writer: LedgerWriter, step: int) -> None:
    writer.book(BookedRelease("gradient sum", PoissonSampled(Gaussian(1.5), 0.1), step))


def header(**changes: object) -> LedgerHeader:
    fields: dict[str, object] = {
        "adjacency": Adjacency.ADD_OR_REMOVE_ONE,
        "sampling": Sampling.POISSON,
        "randomness": Randomness.SECURE,
        "schedule_fixed_in_advance": True,
        "clip_norm": 1.0,
        "versions": {},
        "run": "00" * 16,
    }
    return LedgerHeader(**{**fields, **changes})  # type: ignore[arg-type]
