"""Stop a run as soon as its own canaries refute its claim."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.sequential_audit import SequentialTest
from dpaudit.report.descriptions import stop_reason_in_words
from dpaudit.runs.directory import RunDirectory
from dpaudit.trainer.canaries.run_canaries import Observation, RunCanaries
from dpaudit.trainer.run import StepCallback
from dpaudit.trainer.session.checkpoint import read_newest_observations
from dpaudit.vocabulary.errors import InvalidArgument, Refuted
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.workflow.audit.audit_plan import claimed_family


def with_refutation_check(
    out: Path, config: RunConfig, confidence: float, on_step: StepCallback
) -> StepCallback:
    """Add a sequential test of the claimed noise to a step callback.

    Args:
        out: The run directory.
        config: The run's configuration.
        confidence: Probability with which a run that does what it claims is never stopped.
        on_step: The callback, which is called first.

    Returns:
        The callback with the test. It raises ``Refuted`` once the canaries refute the claim.

    Raises:
        InvalidArgument: If the run has no canaries in coordinates of their own, or if every
            record is in every batch.
    """
    if config.canaries.gradient == 0 or config.canaries.directions != "own":
        given = f"{config.canaries.gradient} canaries, {config.canaries.directions} directions"
        raise InvalidArgument(
            "stop_when_refuted",
            given,
            "for a run with gradient canaries in coordinates of their own",
        )
    privacy, test = config.privacy, SequentialTest(confidence)
    if privacy.sampling_rate == 1:
        raise InvalidArgument("stop_when_refuted", "sampling rate 1", "for sampled batches")

    @lru_cache
    def included() -> NDArray[np.bool_]:
        return RunCanaries.read(RunDirectory(out)).gradient_included

    def update(observation: Observation) -> None:
        ins = included()
        if not np.isfinite(observation.shown).all():  # an interrupted step has no observation
            return
        test.update(
            observation.shown[ins].astype(np.float64),
            observation.joined[ins],
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=privacy.noise_multiplier,
        )

    first = True

    def check(done: int, observation: Observation) -> None:
        nonlocal first
        on_step(done, observation)
        if first and done > 1:
            # A resumed run is one run: observations from before the interruption count.
            for earlier in read_newest_observations(RunDirectory(out).checkpoints)[: done - 1]:
                update(earlier)
        first = False
        update(observation)
        factor = test.refuted_noise_factor
        if factor is not None and test.refutes_claim:
            steps = [(privacy.sampling_rate, privacy.noise_multiplier)] * privacy.steps
            epsilon = claimed_family(steps, privacy.delta).epsilon(factor).lower
            raise Refuted(stop_reason_in_words(done, factor, epsilon, privacy.delta, confidence))

    return check
