"""Ledgers of small runs, written as the trainer would."""

from __future__ import annotations

from collections.abc import Callable

from dpaudit.accountants.answers import claim_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.runs.sealing import seal_run
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.bound import Bound
from dpaudit.vocabulary.claim import Claim
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


def claim(releases: int, **changes: object) -> Claim:
    """The claim of so many releases, whatever it says of epsilon; its head is filled in later."""
    fields: dict[str, object] = {
        "epsilon": Bound(1.0, 1.1),
        "delta": 1e-5,
        "accountant": "pld",
        "adjacency": Adjacency.ADD_OR_REMOVE_ONE,
        "sampling": Sampling.POISSON,
        "randomness": Randomness.SECURE,
        "releases": releases,
        "ledger_head": "",
        "dpaudit_version": "0",
    }
    return Claim(**{**fields, **changes})  # type: ignore[arg-type]


def finish(run: RunDirectory, writer: LedgerWriter) -> None:
    """Write the claim that the ledger bears out, and seal it, as the trainer would."""
    seal_run(run, writer, claim_of(run.read_ledger(), 1e-5, "pld"))
