"""Make dp_events.json: events of dp_accounting as json.dumps of their named tuples.

Needs the [bench] extra; made with dp_accounting 0.6.0.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from dp_accounting import dp_event as dp

GAUSSIAN = dp.GaussianDpEvent(1.5)
EVENTS: list[dp.DpEvent] = [
    dp.NoOpDpEvent(),
    dp.NonPrivateDpEvent(),
    dp.UnsupportedDpEvent(),
    dp.RandomizedResponseDpEvent(0.5, 2),
    GAUSSIAN,
    dp.LaplaceDpEvent(2.0),
    dp.DiscreteLaplaceDpEvent(0.5, 3),
    dp.SelfComposedDpEvent(GAUSSIAN, 7),
    dp.ComposedDpEvent([GAUSSIAN, dp.LaplaceDpEvent(2.0)]),
    dp.PoissonSampledDpEvent(0.01, GAUSSIAN),
    dp.SampledWithReplacementDpEvent(1000, 10, GAUSSIAN),
    dp.SampledWithoutReplacementDpEvent(1000, 10, GAUSSIAN),
    dp.SingleEpochTreeAggregationDpEvent(1.5, [4, 9, 2]),
    dp.RepeatAndSelectDpEvent(GAUSSIAN, 10.0, 1.0),
    dp.RepeatAndSelectDpEvent(GAUSSIAN, 10.0, math.inf),
    dp.MixtureOfGaussiansDpEvent(1.0, [0.0, 1.0], [0.5, 0.5]),
    dp.ZCDpEvent(0.1),
    dp.TruncatedSubsampledGaussianDpEvent(1000, 0.01, 20, 1.5),
]


def main() -> None:
    lines = ",\n".join("  " + json.dumps(event.to_named_tuple()) for event in EVENTS)
    target = Path(__file__).with_name("dp_events.json")
    target.write_text(f"[\n{lines}\n]\n")
    print(f"{target.name}: {len(EVENTS)} events")


if __name__ == "__main__":
    main()
