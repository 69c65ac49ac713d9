"""What other libraries write: the same DP-SGD by four of them, and a Flower state."""

from __future__ import annotations

HISTORY = [[1.0, 0.01, 1000]]
STEP = ["dp_accounting.dp_event", "GaussianDpEvent", 1.0]
SAMPLED = ["dp_accounting.dp_event", "PoissonSampledDpEvent", 0.01, STEP]
EVENT = ["dp_accounting.dp_event", "SelfComposedDpEvent", SAMPLED, 1000]

TF_LEDGER = [[60_000, 0.01, [[2.0, 2.0]]]] * 1000
JAX_PLAN = {
    "iterations": 1000,
    "strategy": [1.0],
    "noise_multiplier": 1.0,
    "sampling_prob": 0.01,
    "partition_type": "INDEPENDENT",
}
ALLOCATED = ["dp_accounting.dp_event", "RandomAllocationDpEvent", STEP, 1, 100]

FLOWER_CONFIG = {
    "target_delta": 1e-5,
    "population_size": 4,
    "neighboring_relation": "add-or-remove-one",
    "sampling_method": "no-amplification",
    "max_epsilon": None,
}
FLOWER_EVENT = {"noise_multiplier": 2.0, "sample_size": 4, "population_size": 4}
FLOWER_STATE = {
    "schema_version": 1,
    "backend": "rdp",
    "config": FLOWER_CONFIG,
    "orders": [2.0, 3.0],
    "compositions": [{"event": FLOWER_EVENT, "count": 3}],
}
