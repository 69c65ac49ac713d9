"""What deserves attention in a verdict and changes no outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from dpaudit.gate.evidence import Evidence
from dpaudit.gate.policy import Policy
from dpaudit.gate.waivers import unused
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated, Selected
from dpaudit.vocabulary.verdict import RuleOutcome

LARGE_DELTA = 1e-3
"""The largest delta that raises no warning where the size of the data set is not public."""


def warnings_on(
    rules: Sequence[RuleOutcome], policy: Policy, evidence: Evidence, today: date
) -> Iterator[str]:
    """Yield unused waivers, and a delta that is too large for the data set."""
    for waiver in unused(rules, policy, today):
        yield (
            f"the waiver of {waiver.rule} ({waiver.reason}) is not used: no rule that it covers "
            "fails; delete it"
        )
    size = policy.claim.dataset_size if policy.claim is not None else None
    if size is None and evidence.booked is not None:
        size = smallest_dataset(Composed(tuple(one.mechanism for one in evidence.booked.booked)))
    yield from delta_warning(evidence.stated.delta, size)


def smallest_dataset(mechanism: Mechanism) -> int | None:
    """Return the smallest data set that a mechanism names, whose size is then public."""
    parts: Sequence[Mechanism] = ()
    if isinstance(mechanism, Composed):
        parts = mechanism.mechanisms
    elif isinstance(mechanism, Repeated | Selected):
        parts = (mechanism.mechanism,)
    sizes = [getattr(mechanism, "dataset_size", None), *map(smallest_dataset, parts)]
    return min((size for size in sizes if size is not None), default=None)


def delta_warning(delta: float, dataset_size: int | None) -> Iterator[str]:
    """Yield a warning if ``delta`` allows the release of whole records.

    A mechanism that publishes each record with probability delta is (0, delta)-DP: of n
    records it publishes n delta on average. Source: Dwork & Roth (2014), section 2.3.

    Args:
        delta: Of the claim.
        dataset_size: Number of records n, if it is public.
    """
    if dataset_size is not None and not delta * dataset_size <= 1:
        yield (
            f"delta {delta:g} is above 1/n = {1 / dataset_size:.3g} for {dataset_size} records: "
            "publishing whole records can satisfy it; choose a delta well below 1/n"
        )
    elif dataset_size is None and not delta <= LARGE_DELTA:
        yield (
            f"delta {delta:g} is above {LARGE_DELTA:g}: publishing whole records can satisfy it "
            "unless the data set is very small; choose a delta well below 1/n"
        )
