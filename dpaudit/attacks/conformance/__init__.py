"""Does a trainer do what it claims? Every property of a DP-SGD step, tested by itself.

from dpaudit.attacks import conformance
claim = conformance.StepClaim(noise_multiplier=2.0, clip_norm=0.5, sampling_rate=0.2,
                              steps=60, update_scale=-0.00625)
result = conformance.check(make_trainer, claim, records=records)

What ``make_trainer`` returns is described in ``trainers``. A trainer that does all it claims
is convicted with a probability of at most ``LEVEL``; one that cannot be judged is INCONCLUSIVE.
"""

from dpaudit.attacks.conformance.check import check, result_of
from dpaudit.attacks.conformance.effort import LEVEL, Effort
from dpaudit.attacks.conformance.trainers import MakeTrainer, Record, Trainer
from dpaudit.vocabulary.conformance import ConformanceResult, Finding, StepClaim

__all__ = [
    "LEVEL",
    "ConformanceResult",
    "Effort",
    "Finding",
    "MakeTrainer",
    "Record",
    "StepClaim",
    "Trainer",
    "check",
    "result_of",
]
