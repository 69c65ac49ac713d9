"""What a run of DSSGD as published costs one record: the published figure and the composed one.

One epoch of a participant releases at most c entries. Each entry is one answer of the sparse
vector technique and one Laplace mechanism. With the published scales and a sensitivity s of every
coordinate, an entry is (epsilon / c, 0)-DP:

    s / sigma(8/9 epsilon) + 2 s / (2 sigma(8/9 epsilon)) = 8/9 epsilon / c    the answer
    s / sigma(2/9 epsilon)                                = 1/9 epsilon / c    the value

The paper quotes epsilon / c, per parameter and epoch. A record takes part in every entry and in
every epoch, so the cost of a run is the composition over all of them.

What holds, and what is assumed. All coordinates may change with one record. The answers allow
this: their proof shifts all comparisons at once, and |bound(w, gamma)| changes by at most gamma.
The values are c releases, which are composed. But a value is bounded after its noise alone. That
one record moves a coordinate by at most 2 gamma is therefore an assumption that nothing in the
algorithm enforces. ``ASSUMPTIONS`` says so in every ledger of this strategy.

References:
    Shokri & Shmatikov (2015), ACM CCS 2015, section 5.
    Dwork & Roth (2014), Theorem 3.28.
    Dwork, Rothblum & Vadhan (2010), on composition; the bound here is by PLD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dpaudit.accountants import pld
from dpaudit.trainer.federated.dssgd import SparseVectorScales
from dpaudit.vocabulary.errors import require_count, require_delta
from dpaudit.vocabulary.mechanism import NumericSparseVector, Repeated, SparseVector
from dpaudit.vocabulary.privacy_terms import Bound
from dpaudit.vocabulary.rounding import round_up

__all__ = ["ASSUMPTIONS", "AccountingStatement", "account_for_run", "upload_release"]

ASSUMPTIONS = (
    "dssgd: that one record changes each coordinate of a local epoch by at most 2 gamma is "
    "assumed; one record moves every coordinate, and no change is bounded before its noise",
)
"""What a ledger of the published strategy names as not accounted for."""


def upload_release(scales: SparseVectorScales) -> NumericSparseVector:
    """Return the mechanism of one upload, as the ledger records it.

    An upload may have fewer entries than c; how many depends on the records. The release is the
    one of c entries, which costs at least as much.

    Args:
        scales: Scales of the noise, which are the ones that are drawn.

    Returns:
        The sparse vector technique with values.

    Example:
        >>> upload_release(SparseVectorScales(9.0, entries=2, sensitivity=1.0)).value_scale
        2.0
    """
    comparison = SparseVector(scales.threshold, scales.entry, scales.entries, scales.sensitivity)
    return NumericSparseVector(comparison, scales.value)


@dataclass(frozen=True)
class AccountingStatement:
    """The published figure of a run of one participant, and what the run costs one record.

    Attributes:
        epsilon_per_entry: As published: epsilon per parameter and epoch, in nats.
        epsilon_per_epoch: The budget of one epoch.
        entries: c, the largest number of entries of one epoch.
        epochs: Number of epochs of the participant.
        pure: Epsilon of the run at delta 0, by basic composition; an upper bound.
        composed: Epsilon of the run at ``delta``, by PLD.
        delta: Delta of ``composed``.
        assumptions: What both figures assume.

    Example:
        >>> account_for_run(SparseVectorScales(0.5, 10, 0.002), epochs=2, delta=1e-5).pure
        1.0000000000000002
    """

    epsilon_per_entry: float
    epsilon_per_epoch: float
    entries: int
    epochs: int
    pure: float
    composed: Bound
    delta: float
    assumptions: tuple[str, ...] = ASSUMPTIONS

    def lines(self) -> tuple[str, ...]:
        """Return the statement as text.

        Returns:
            One line for each figure, then one for each assumption.
        """
        return (
            f"published: epsilon {self.epsilon_per_entry:.6g} per parameter and epoch "
            f"({self.epsilon_per_epoch:.6g} per epoch of at most {self.entries} entries)",
            f"composed: epsilon at most {round_up(self.composed.upper)} at delta {self.delta:g} "
            f"for one record over {self.epochs} epochs (at most {round_up(self.pure)} at delta 0)",
            *(f"assumed: {one}" for one in self.assumptions),
        )


def account_for_run(
    scales: SparseVectorScales, *, epochs: int, delta: float
) -> AccountingStatement:
    """Compute the published and the composed epsilon of one participant's run.

    Args:
        scales: Scales of the noise of every epoch.
        epochs: Number of epochs of the participant, at least 1.
        delta: Delta of the composed figure, in [1e-300, 1).

    Returns:
        The statement.

    Raises:
        InvalidArgument: If an argument is out of range.

    Example:
        >>> statement = account_for_run(
        ...     SparseVectorScales(14.01, entries=1401, sensitivity=0.002), epochs=20, delta=1e-5)
        >>> print(statement.lines()[0])
        published: epsilon 0.01 per parameter and epoch (14.01 per epoch of at most 1401 entries)
    """
    require_count("epochs", epochs)
    require_delta("delta", delta)
    run = Repeated(upload_release(scales), epochs)
    pure = math.nextafter(scales.epsilon * epochs, math.inf)
    composed = pld.profile(run).epsilon(delta=delta)
    return AccountingStatement(
        scales.epsilon / scales.entries,
        scales.epsilon,
        scales.entries,
        epochs,
        pure,
        Bound(min(composed.lower, pure), min(composed.upper, pure)),
        delta,
    )
