"""Convert the execution plan of JAX Privacy to a mechanism.

JAX Privacy writes no files of its own. What is read here is the JSON of the fields of
``BandMFExecutionPlanConfig`` (version 2.0), such as ``dataclasses.asdict`` gives, with the noise
multiplier that was used. Extra fields that do not change the accounting are ignored; unknown ones
are refused. A ``DPExecutionPlan`` itself holds a ``dp_event``: that event may be stored under
this name instead.

The plan takes ceil(iterations / bands) Poisson-sampled Gaussians per group of records, as its own
event does. Groups of equal size hold under zero-out neighbors, independent ones under
add-or-remove-one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpaudit.accountants.importers.dp_event import (
    VerbatimText,
    abbreviated,
    from_dp_event,
    is_list,
    read_integer,
    read_number,
)
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism, did_you_mean
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Gaussian,
    Mechanism,
    Repeated,
    TruncatedPoisson,
)
from dpaudit.vocabulary.privacy_terms import Adjacency, require_adjacency

READ = (
    "iterations", "strategy", "num_bands", "noise_multiplier", "sampling_prob",
    "truncated_batch_size", "num_examples", "partition_type", "neighboring_relation", "dp_event",
)  # fmt: skip
IGNORED = (
    "epsilon", "delta", "l2_clip_norm", "rescale_to_unit_norm", "normalize_by", "dtype",
    "column_normalize", "accountant", "noise_seed", "strategy_optimization_steps", "shuffle",
    "use_fixed_size_groups",
)  # fmt: skip
"""Fields that do not change what is released: noise is relative to the norm of the strategy."""

PARTITIONS = {
    "INDEPENDENT": Adjacency.ADD_OR_REMOVE_ONE,
    "EQUAL_SPLIT": Adjacency.ZERO_OUT,
    1: Adjacency.ADD_OR_REMOVE_ONE,
    2: Adjacency.ZERO_OUT,
}
RELATIONS = {
    "ADD_OR_REMOVE_ONE": Adjacency.ADD_OR_REMOVE_ONE,
    "REPLACE_ONE": Adjacency.REPLACE_ONE,
    "REPLACE_SPECIAL": Adjacency.ZERO_OUT,
    1: Adjacency.ADD_OR_REMOVE_ONE,
    2: Adjacency.REPLACE_ONE,
    3: Adjacency.ZERO_OUT,
}
PLAN_FORMAT = "the fields of a BandMFExecutionPlanConfig, or a dp_event"


def is_jax_privacy_plan(document: Any) -> bool:
    """Return whether parsed JSON has the fields of an execution plan.

    Args:
        document: The parsed content of a file.

    Returns:
        True for a mapping with iterations and a strategy or bands, or with a dp_event.
    """
    if not isinstance(document, Mapping) or "class_name" in document:
        return False
    planned = "iterations" in document and bool({"strategy", "num_bands"} & set(document))
    return planned or "dp_event" in document


def from_jax_privacy(
    plan: Any, *, adjacency: Adjacency | None = None
) -> tuple[Mechanism, Adjacency | None]:
    """Convert the execution plan of JAX Privacy to a mechanism.

    Args:
        plan: The fields of the plan by their names.
        adjacency: The adjacency for which epsilon will be computed; None: that of the plan, or
            add-or-remove-one for an event without one. Sensitivities of a ``dp_event`` double
            under replace-one.

    Returns:
        The mechanism, and its adjacency; None for an event, where neither the plan nor the
        argument says one.

    Raises:
        InvalidArgument: If this is no such plan, a field is unknown or out of range, or the plan
            states another relation of neighbors. Groups of equal size hold under zero-out only.
        UnsupportedMechanism: If the plan truncates batches of several bands.

    Example:
        >>> from dpaudit.accountants import from_jax_privacy
        >>> plan = {"iterations": 100, "num_bands": 4, "noise_multiplier": 1.0}
        >>> mechanism, adjacency = from_jax_privacy(plan)
        >>> mechanism.bands, adjacency.value
        (4, 'zero-out')
    """
    if not is_jax_privacy_plan(plan):
        raise InvalidArgument("plan", abbreviated(plan), PLAN_FORMAT)
    for name in plan:
        if name not in (*READ, *IGNORED):
            hint = did_you_mean(str(name), READ)
            raise InvalidArgument("field of the plan", abbreviated(name), f"{PLAN_FORMAT}{hint}")
    known = _adjacency(plan, adjacency)
    if plan.get("dp_event") is not None:
        read_for = known or Adjacency.ADD_OR_REMOVE_ONE
        return from_dp_event(plan["dp_event"], adjacency=read_for), known
    mechanism = _banded(plan)
    # Without a relation or a partition, the groups are those of JAX Privacy's defaults.
    known = known or Adjacency.ZERO_OUT
    unstated = plan.get("neighboring_relation") is None and plan.get("partition_type") is None
    if unstated and isinstance(mechanism, BandedMatrixFactorization) and mechanism.bands > 1:
        _require_equal_groups(known)
    return mechanism, known


def _adjacency(plan: Mapping[str, Any], asked: Adjacency | None) -> Adjacency | None:
    """Return the adjacency that is asked for, stated as a relation, or that of the partition."""
    if asked is not None:
        require_adjacency("adjacency", asked)
    relation = _stated(plan, "neighboring_relation", RELATIONS)
    partition = _stated(plan, "partition_type", PARTITIONS)
    if asked is not None and relation is not None and asked is not relation:
        raise InvalidArgument(
            "adjacency",
            VerbatimText(asked.value),
            f"{relation.value}, the neighboring_relation of the plan",
        )
    found = asked or relation or partition
    if partition is Adjacency.ZERO_OUT and found is not None:
        _require_equal_groups(found)
    return found


def _require_equal_groups(adjacency: Adjacency) -> None:
    """Refuse adjacencies under which a record moves others between groups of equal size."""
    if adjacency is not Adjacency.ZERO_OUT:
        raise InvalidArgument(
            "adjacency",
            VerbatimText(adjacency.value),
            "zero-out for groups of equal size (partition_type EQUAL_SPLIT, the default)",
        )


def _stated(
    plan: Mapping[str, Any], field: str, known: Mapping[Any, Adjacency]
) -> Adjacency | None:
    """Return the adjacency that a field of the plan stands for; None where it is left out."""
    given = plan.get(field)
    if given is None:
        return None
    key = given.rpartition(".")[2] if isinstance(given, str) else given
    if isinstance(key, bool) or not isinstance(key, str | int) or key not in known:
        allowed = ", ".join(str(name) for name in known if isinstance(name, str))
        raise InvalidArgument(field, abbreviated(given), f"one of {allowed}")
    return known[key]


def _banded(plan: Mapping[str, Any]) -> Mechanism:
    """Return the steps of a plan with its noise."""
    if plan.get("noise_multiplier") is None:
        raise InvalidArgument(
            "noise_multiplier",
            VerbatimText("null"),
            "the number that was used: store it with the plan, as epsilon and delta are targets",
        )
    noise = Gaussian(read_number("noise_multiplier", plan["noise_multiplier"]))
    steps = read_integer("iterations", plan.get("iterations"))
    rate = read_number("sampling_prob", plan.get("sampling_prob", 1.0))
    bands = _bands(plan)
    largest = plan.get("truncated_batch_size")
    if largest is None:
        return BandedMatrixFactorization(noise, steps, bands, rate)
    if bands != 1:
        raise UnsupportedMechanism(
            VerbatimText("JAX Privacy plan"), "truncated batches are supported for one band only"
        )
    records = read_integer("num_examples", plan.get("num_examples"))
    step = TruncatedPoisson(noise, rate, records, read_integer("truncated_batch_size", largest))
    return Repeated(step, steps)


def _bands(plan: Mapping[str, Any]) -> int:
    """Return the number of bands: given, or the length of the strategy."""
    strategy, given = plan.get("strategy"), plan.get("num_bands")
    listed = strategy if strategy is not None and is_list(strategy) else ()
    counted = len(listed) if strategy is not None and is_list(strategy) else None
    if any(is_list(one) for one in listed):
        raise InvalidArgument(
            "strategy", abbreviated(strategy), "a list of numbers, one per band; not a matrix"
        )
    if given is None and counted is None:
        raise InvalidArgument("strategy", abbreviated(strategy), "a list, or num_bands a number")
    if given is None:
        return int(counted or 0)
    bands = read_integer("num_bands", given)
    if counted is not None and counted != bands:
        raise InvalidArgument("num_bands", bands, f"the {counted} bands of the strategy")
    return bands
