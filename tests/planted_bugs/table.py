"""All bugs planted in one process: name, patch, the check that detects it, words of the reason."""

from __future__ import annotations

from dataclasses import dataclass

from tests.planted_bugs import patches as bugs
from tests.planted_bugs.patches import Patch


@dataclass(frozen=True)
class Planted:
    """A bug.

    Attributes:
        patch: Plants it.
        check: Which check must convict.
        word: What its message must say.
    """

    patch: Patch
    check: str
    word: str


LISTED = {
    "no clip": Planted(
        bugs.factors_by(bugs.every_finite_record_whole), "replay", "are not clipped"
    ),
    "batch-level clip": Planted(
        bugs.clips_by(bugs.the_batch_as_a_whole), "replay", "not clipped per record"
    ),
    "clip after a sum of 4": Planted(
        bugs.clips_by(bugs.sums_of_four), "replay", "not clipped per record"
    ),
    "per-layer C each": Planted(
        bugs.factors_by(bugs.each_parameter_by_itself), "replay", "group is clipped separately"
    ),
    "bias unclipped": Planted(
        bugs.factors_by(bugs.biases_left_out), "replay", "bias gradients are not clipped"
    ),
    "unclipped auxiliary loss": Planted(
        bugs.clips_by(bugs.with_an_auxiliary_loss), "replay", "are not clipped"
    ),
    "NaN passes the clip": Planted(bugs.nan_passes, "replay", "not finite pass the clip"),
    "augmented copies clipped one by one": Planted(
        bugs.clips_by(bugs.two_copies_of_each), "replay", "counts 2 times"
    ),
    "batch normalisation": Planted(
        bugs.clips_by(bugs.normalised_over_the_batch), "replay", "statistics"
    ),
    "mean over the actual batch": Planted(
        bugs.steps_as(bugs.divides_by_the_batch), "replay", "actual batch size"
    ),
    "data-dependent learning rate": Planted(
        bugs.steps_as(bugs.learns_faster_from_large_losses), "replay", "learning rate"
    ),
    "noise halved": Planted(
        bugs.scales_noise(lambda context, norm: 0.5), "noise", "the noise as a whole has 0."
    ),
    "noise without C": Planted(
        bugs.scales_noise(lambda context, norm: 1 / norm), "noise", "2 times"
    ),
    "one group at half noise": Planted(bugs.adds(bugs.half_on_one_group), "noise", "2.weight"),
    "noise 2% low": Planted(
        bugs.scales_noise(lambda context, norm: 0.98), "noise", "as a whole has"
    ),
    "noise only where the gradient is not zero": Planted(
        bugs.adds(bugs.only_where_gradients_are), "noise", "has 0 times"
    ),
    "same noise at every step": Planted(
        bugs.adds(bugs.always_that_of_the_first_step), "correlation", "noise is reused"
    ),
    "noise reused after a resume": Planted(
        bugs.resumes_at_the_first_step, "correlation", "before a resume"
    ),
    "shuffled batches": Planted(bugs.draws_by(bugs.shuffles), "sampler", "mean size"),
    "fixed batches": Planted(bugs.draws_by(bugs.takes_a_fixed_number), "sampler", "mean size"),
    "twice the sampling rate": Planted(bugs.draws_by(bugs.twice_as_often), "sampler", "times"),
}
"""Those of the list that need one process; the others are planted in two ranks."""

OWN = {
    "normaliser of the data set's size": Planted(
        bugs.divides_by_the_data_set, "replay", "size of the data set"
    ),
    "noise of a fixed key": Planted(
        bugs.adds(bugs.of_a_fixed_key), "correlation", "whose seeds differ"
    ),
    "same noise in every layer": Planted(
        bugs.adds(bugs.the_same_in_every_layer), "correlation", "0.weight and"
    ),
    "uniform noise": Planted(bugs.adds(bugs.uniform), "noise", "not independent normals"),
    "no noise on the last bias": Planted(bugs.adds(bugs.none_on_the_last_bias), "noise", "4.bias"),
    "noise that is off at every tenth step": Planted(
        bugs.scales_noise(lambda context, norm: float(context.step % 10 != 9)), "noise", "at step 9"
    ),
    "neighboring records share a coin": Planted(
        bugs.draws_by(bugs.neighbours_together), "sampler", "records 1 apart"
    ),
    "each batch taken twice": Planted(
        bugs.draws_by(bugs.the_same_for_two_steps), "sampler", "steps 1 apart"
    ),
    "clip stops at step 13": Planted(
        bugs.step_by_step(
            lambda private, batch: (
                bugs.factors_by(bugs.every_finite_record_whole)
                if private.steps >= 13
                else bugs.none
            )
        ),
        "replay",
        "and not at the first steps",
    ),
    "clip norm grows tenfold at step 13": Planted(
        bugs.step_by_step(
            lambda private, batch: (
                bugs.factors_by(bugs.ten_times_the_clip_norm) if private.steps >= 13 else bugs.none
            )
        ),
        "replay",
        "and not at the first steps",
    ),
    "a tenth of the noise from 4 records on": Planted(
        bugs.step_by_step(
            lambda private, batch: bugs.scales_noise(
                lambda context, norm: 0.1 if len(batch[0]) >= 4 else 1.0
            )
        ),
        "noise",
        "the noise in steps of",
    ),
    "noise divided by the number of microbatches": Planted(
        bugs.step_by_step(
            lambda private, batch: bugs.scales_noise(
                lambda context, norm: 1 / max(1, -(-len(batch[0]) // 6))
            )
        ),
        "noise",
        "the noise in steps of",
    ),
}
