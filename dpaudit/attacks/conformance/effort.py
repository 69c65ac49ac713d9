"""How much is run, and how the false alarms are shared out."""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.vocabulary.errors import require_count

LEVEL = 1e-4
"""Probability, at most, of convicting a trainer that does what it claims, all tests together."""

STATISTICAL_FINDINGS = 19
"""7 of the noise, 6 of correlation, 6 of the sampler; replay and provenance leave no chance."""

EACH = LEVEL / STATISTICAL_FINDINGS


@dataclass(frozen=True)
class Effort:
    """How much is run: more of it makes smaller faults visible, and is no less safe.

    Attributes:
        noise_samples: Coordinates times steps of noise alone. At the level of one finding
            100,000 show 2% less noise 99.99 times in 100.
        most_noise_steps: Steps of noise alone, where few coordinates would need more.
        sampler_steps: Steps on the records, whose inclusion is counted.
        longest_run: Steps of one run. Correlation is looked for at lags up to half of it.
        replays: Seeds under which each probe is replayed on each base.
        longest_replay: Steps until a probe must have joined.
        search_steps: Steps in search of records that reach the clip norm, where the usual
            ones do not.
        kept: Numbers of noise in memory at once; of more, random coordinates are looked at.
    """

    noise_samples: int = 100_000
    most_noise_steps: int = 20_000
    sampler_steps: int = 240
    longest_run: int = 200
    replays: int = 2
    longest_replay: int = 2_000
    search_steps: int = 3_000
    kept: int = 8_000_000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            require_count(name, getattr(self, name))
