"""Stop a run as soon as its own canaries refute its claim."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.sequential import Watch
from dpaudit.report.words import refuted_in_words
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.canaries import Canaries
from dpaudit.trainer.checkpoint import read_newest_observations
from dpaudit.trainer.observations import Observation
from dpaudit.trainer.run import OnStep
from dpaudit.vocabulary.errors import InvalidArgument, Refuted
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.workflow.families import family


def watched(out: Path, config: RunConfig, confidence: float, on_step: OnStep) -> OnStep:
    """Return ``on_step``, and after it a look at the evidence against the claimed noise.

    Args:
        out: The run directory.
        config: What the run was asked for.
        confidence: Probability with which a run that does what it claims is never stopped.
        on_step: Called first.

    Raises:
        InvalidArgument: the run has no canaries whose coordinates are their own, or every
            record is in every batch.
    """
    if config.canaries.gradient == 0 or config.canaries.directions != "own":
        given = f"{config.canaries.gradient} canaries, {config.canaries.directions} directions"
        raise InvalidArgument("stop_when_refuted", given, "for a run with --canaries of their own")
    privacy, watch = config.privacy, Watch(confidence)
    if privacy.sampling_rate == 1:
        raise InvalidArgument("stop_when_refuted", "sampling rate 1", "for sampled batches")

    @lru_cache
    def included() -> NDArray[np.bool_]:
        return Canaries.read(RunDirectory(out)).gradient_included

    def see(seen: Observation) -> None:
        ins = included()
        if not np.isfinite(seen.shown).all():  # interrupted: it shows nothing
            return
        watch.see(
            seen.shown[ins].astype(np.float64),
            seen.joined[ins],
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=privacy.noise_multiplier,
        )

    first = True

    def look(done: int, seen: Observation) -> None:
        nonlocal first
        on_step(done, seen)
        if first and done > 1:
            # A run that goes on is one run: what it showed before it was interrupted counts.
            for earlier in read_newest_observations(RunDirectory(out).checkpoints)[: done - 1]:
                see(earlier)
        first = False
        see(seen)
        factor = watch.refuted_noise_factor
        if factor is not None and watch.refutes_the_claim:
            steps = [(privacy.sampling_rate, privacy.noise_multiplier)] * privacy.steps
            epsilon = family(steps, privacy.delta).epsilon(factor).lower
            raise Refuted(refuted_in_words(done, factor, epsilon, privacy.delta, confidence))

    return look
