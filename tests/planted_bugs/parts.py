"""The tests of one kind alone, for bugs whose kind is known: most of the time is of the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from dpaudit.attacks import conformance

NOISE_RUNS = {"find_noise_only_mode", "run_without_records", "record_sampled_batches"}
PARTS = {
    "replay": {"check_replay", "check_public_constants"},
    "noise": {*NOISE_RUNS, "check_noise", "check_batch_noise"},
    "correlation": {*NOISE_RUNS, "check_correlation", "_check_rank_updates", "check_resume"},
    "sampler": {"record_sampled_batches", "check_sampler"},
}
"""The functions of ``conformance`` that a kind of finding needs."""


@contextmanager
def checks_alone(kind: str) -> Iterator[None]:
    """Let ``conformance.check`` run the tests of one kind of finding; all where it is empty."""
    others = set().union(*PARTS.values()) - PARTS[kind] if kind else set()
    with ExitStack() as patches:
        for part in others:
            patches.enter_context(patch.object(conformance, part, lambda *given: []))
        yield
