"""Each route of the contour taken by force: what its chooser passes over must hold as well."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dpaudit.accountants.pld import planning
from dpaudit.accountants.pld.compose import Question, Role
from dpaudit.accountants.pld.contour import Contour
from dpaudit.accountants.pld.cumulants import Cumulants, Ledger, scan
from dpaudit.accountants.pld.evaluator import Evaluator
from dpaudit.accountants.pld.kernel import Kernel
from dpaudit.accountants.pld.losses import LossLaw, Way
from dpaudit.accountants.pld.planning import Jumps, Source, Target, Whole
from dpaudit.accountants.releases import count_releases
from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.mechanism import Mechanism
from tests.accountants.golden import of_ledger

WAYS = {"remove": Way.REMOVED, "add": Way.ADDED}
LARGEST_ORDER = 1e5
SHARE, BETA = 0.02, 20.0

Entries = Iterable[tuple[float, float, int]]


def ledger_of(
    mechanism: Mechanism | Entries,
    direction: str = "remove",
    *,
    delta: float = 1e-30,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
    role: Role = Role.ABOVE,
) -> Ledger:
    """Return the laws of a mechanism, or of (sampling rate, noise multiplier, steps), ..."""
    if not isinstance(mechanism, Mechanism):
        mechanism = of_ledger(list(mechanism))
    question = Question(count_releases(mechanism), adjacency, WAYS[direction], role)
    return question.ledger(delta)


def saddle(source: Source, epsilon: float) -> tuple[float, Cumulants, Target]:
    """Return about the order where Chernoff's bound is least: a rough look, then three closer."""
    parts = (source.ledger,) if isinstance(source, Whole) else (source.below, source.above)
    laws = [(law, times) for part in parts for law, times in part.laws if not is_empty(law)]
    rough = scan(replace(parts[0], laws=tuple(laws)), 30.0)
    order = float(rough.orders[int(rough.log_chernoff(epsilon).argmin())])
    for _ in range(3):
        table = source.table(order)
        logs = table.log_chernoff(epsilon)
        order = min(float(table.orders[int(logs.argmin())]), LARGEST_ORDER)
    return order, source.table(order), Target(epsilon, max(float(logs.min()) - 3, -680.0))


def is_empty(law: LossLaw) -> bool:
    return not law.branches and not len(law.atom_losses)


def plain_part(ledger: Ledger, epsilon: float) -> Contour | None:
    order, table, target = saddle(Whole(ledger), epsilon)
    for lean in planning.LEANS:
        drafted = planning.draft(ledger, table, lean * order, target)
        if drafted is not None:
            found = planning.certified(ledger, drafted, epsilon)
            if found is not None:
                return found
    return None


def smooth_part(source: Source, epsilon: float, share: float = SHARE) -> Contour | None:
    order, table, target = saddle(source, epsilon)
    return planning.smooth(source, table, order, target, Kernel(share / order, BETA))


def plain(ledger: Ledger, epsilon: float) -> Evaluator | None:
    """Return delta by a contour without smoothing, if there is one."""
    part = plain_part(ledger, epsilon)
    return None if part is None else Evaluator((part,), ledger)


def smoothed(ledger: Ledger, epsilon: float, share: float = SHARE) -> Evaluator | None:
    """Return delta by one smoothed contour."""
    part = smooth_part(Whole(ledger), epsilon, share)
    return None if part is None else Evaluator((part,), ledger)


def split(ledger: Ledger, epsilon: float, cap: float, share: float = SHARE) -> Evaluator | None:
    """Return delta by two smoothed contours: losses up to ``cap``, and what larger ones add."""
    below, above = ledger.split(cap)
    if any(is_empty(law) for law, _ in below.laws):
        return None
    parts = [smooth_part(source, epsilon, share) for source in (Whole(below), Jumps(below, above))]
    found = tuple(part for part in parts if part is not None)
    return Evaluator(found, ledger) if len(found) == len(parts) else None
