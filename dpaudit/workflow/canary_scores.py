"""How the gradient canaries of a run scored, counted in bins. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.one_run import ClaimedSteps, Seen
from dpaudit.report.evidence import CanaryScores
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.release_names import GRADIENT_SUM
from dpaudit.workflow.families import booked_steps

MOST_BINS = 24
CANARIES_A_BIN = 8


def canary_scores(run: RunDirectory, ledger: PrivacyLedger) -> CanaryScores | None:
    """Return the likelihood-ratio scores from every step; None where nothing was observed.

    Raises:
        IntegrityError: a file is broken, or is not of the ledger's steps.
    """
    if not (run.secret_canaries.exists() and run.observations.exists()):
        return None
    included = _array(run.secret_canaries, "gradient_included").astype(np.bool_)
    observations = _array(run.observations, "rows").astype(np.float64)
    if not included.size or not observations.size:
        return None
    steps = booked_steps(ledger, GRADIENT_SUM)
    if observations.shape != (len(steps), len(included)):
        raise IntegrityError(
            f"{run.observations} holds {observations.shape[0]} steps of {observations.shape[-1]} "
            f"canaries, the run has {len(steps)} steps and {len(included)} canaries"
        )
    seen = Seen(observations, included, ClaimedSteps(*np.array(steps).T))
    return _in_bins(f"gradient canaries, {seen.name}", seen.scores, included)


def _array(path: Path, name: str) -> NDArray[Any]:
    arrays = read_arrays(path)
    if name not in arrays:
        raise IntegrityError(f"{path} lacks {name}")
    return arrays[name]


def _in_bins(name: str, scores: NDArray[np.float64], included: NDArray[np.bool_]) -> CanaryScores:
    bins = min(MOST_BINS, max(1, len(scores) // CANARIES_A_BIN))
    edges = np.histogram_bin_edges(scores, bins)
    counts = [np.histogram(scores[those], edges)[0] for those in (included, ~included)]
    return CanaryScores(name, tuple(edges.tolist()), *(tuple(c.tolist()) for c in counts))
