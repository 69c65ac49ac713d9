"""Ledgers of small runs, written as the trainer would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.checkpoints import MARKER, PROGRESS, Progress
from dpaudit.runs.directory import RunDirectory, create_run, seal_run
from dpaudit.runs.file_io import write_arrays, write_json
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.ledger import LedgerHeader, Randomness, ReleaseEntry, Sampling
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

STEPS = 40

Begin = Callable[..., tuple[RunDirectory, LedgerWriter]]
"""Begins a run of ``STEPS`` steps; its ledger is still open."""


def book_step(writer: LedgerWriter, step: int) -> None:
    writer.record_release(ReleaseEntry("gradient sum", PoissonSampled(Gaussian(1.5), 0.1), step))


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
    seal_run(run, writer, claim_from_ledger(run.read_ledger(), 1e-5, "pld"))


def step_release(step: int) -> ReleaseEntry:
    return ReleaseEntry("gradient sum", PoissonSampled(Gaussian(1.5), 0.1), step)


def write_model(run: RunDirectory, releases: int | str, name: str = "00" * 16) -> None:
    """Write weights as the trainer does: safetensors whose metadata name run and releases."""
    metadata = {"dpaudit_run": name, "dpaudit_releases": str(releases)}
    header = json.dumps({"__metadata__": metadata}).encode()
    run.model.write_bytes(len(header).to_bytes(8, "little") + header)


def write_checkpoint(run: RunDirectory, progress: Progress) -> Path:
    """Write a checkpoint without weights."""
    folder = run.checkpoints / f"step-{progress.steps_done}"
    folder.mkdir(parents=True)
    write_json(folder / PROGRESS, progress)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / MARKER).touch()
    return folder


def unfinished_run(path: Path, releases: int = 4) -> RunDirectory:
    """A run whose process died after some steps."""
    run = create_run(path)
    with LedgerWriter.create(run.ledger, header()) as writer:
        for step in range(releases):
            writer.record_release(step_release(step))
    return run


def finished_run(path: Path, releases: int = 4) -> RunDirectory:
    """A run of an own loop, sealed and claimed."""
    run = create_run(path)
    with LedgerWriter.create(run.ledger, header()) as writer:
        for step in range(releases):
            writer.record_release(step_release(step))
        write_model(run, releases)
        write_arrays(run.observations, rows=np.zeros((releases, 2), dtype=np.float32))
        finish(run, writer)
    return run
