"""Questions that a peer was seen to answer wrongly, put to it and to dpaudit side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dpaudit.accountants import (
    ZCDP,
    Adjacency,
    Bound,
    Gaussian,
    Mechanism,
    PoissonSampled,
    RandomizedResponse,
    Repeated,
    pld,
    rdp,
)
from side_by_side import ours
from side_by_side.clock import answer
from side_by_side.peers import DP_PLD, DP_RDP, OPACUS_GDP, OPACUS_PRV, PRV, dp_event, prv_epsilon
from side_by_side.plans import NAMED, Question, plan, random_questions, truth
from side_by_side.tables import percent, table, titled

REPLACE = Adjacency.REPLACE_ONE


@dataclass(frozen=True)
class Case:
    """A question, its true answer where it is known, and who is asked.

    Attributes:
        what: The question.
        truth: The true answer; None where only dpaudit's interval is known.
        own: dpaudit's answer.
        peers: Others' answers: a number, or words.
    """

    what: str
    truth: float | None
    own: Callable[[], Bound | str]
    peers: Mapping[str, Callable[[], float | str]]


def cases() -> Iterator[Case]:
    """Yield the questions; truths are closed forms or 40-digit integrals, to the digits given."""
    yield _hundred_responses()
    yield from _replaced_gaussian()
    # The larger direction; a trapezoid sum at 40 digits.
    yield _renyi(0.01, 1.0, 1.25, 0.000105398005)
    yield _renyi(0.25, 5.0, 1.25, 0.001583050323)
    yield _renyi(0.5, 50.0, 1.25, 0.000062504687)
    yield _sampled("A", 1e-13, 4.2298)
    yield _sampled("A", 1e-15, None)
    yield _coarse_prv("H", 1e-5)
    yield _coarse_prv("H", 1e-8)
    for name in ("A", "B", "H"):
        yield Case(
            f"{name} at 1e-05: a limit theorem as a bound",
            truth(name, 1e-5),
            partial(ours.epsilon, NAMED[name], 1e-5),
            {OPACUS_GDP.name: partial(OPACUS_GDP.epsilon, NAMED[name], 1e-5)},
        )
    yield _refused_event()


def _dp(accountant: str, event: Callable[[Any], Any], delta: float) -> Callable[[], float]:
    def ask() -> float:
        import dp_accounting as dp
        from dp_accounting import pld as dp_pld
        from dp_accounting import rdp as dp_rdp

        relation = dp.NeighboringRelation.REPLACE_ONE
        kind = {"pld": dp_pld.PLDAccountant, "rdp": dp_rdp.RdpAccountant}[accountant]
        asked = kind(neighboring_relation=relation).compose(event(dp))
        return float(asked.get_epsilon(delta))

    return ask


def _hundred_responses() -> Case:
    def event(dp: Any) -> Any:
        return dp.SelfComposedDpEvent(dp.RandomizedResponseDpEvent(0.5, 2), 100)

    answers = Repeated(RandomizedResponse(0.75), 100)
    return Case(
        "100 randomized responses (truth 0.75), replace-one, 1e-06",
        94.289867892,  # a binomial sum
        lambda: pld.profile(answers, adjacency=REPLACE).epsilon(delta=1e-6),
        {
            DP_PLD.name: _dp("pld", event, 1e-6),
            DP_RDP.name: _dp("rdp", event, 1e-6),
        },
    )


def _replaced_gaussian() -> Iterator[Case]:
    def event(dp: Any) -> Any:
        return dp.GaussianDpEvent(1.0)

    def cost(mechanism: Mechanism) -> Bound:
        return pld.profile(mechanism, adjacency=REPLACE).epsilon(delta=1e-6)

    peers = {DP_PLD.name: _dp("pld", event, 1e-6), DP_RDP.name: _dp("rdp", event, 1e-6)}
    what = "a Gaussian of 1.0, replace-one, 1e-06: noise over"
    yield Case(f"{what} the norm", None, lambda: cost(Gaussian(1.0)), peers)
    yield Case(f"{what} the move", None, lambda: cost(Gaussian(1.0, set_for=REPLACE)), peers)


def _renyi(sampling_rate: float, noise_multiplier: float, order: float, value: float) -> Case:
    def ask() -> float:
        from dp_accounting import rdp as dp_rdp

        event = dp_event(plan(sampling_rate, noise_multiplier, 1))
        return float(dp_rdp.RdpAccountant(orders=[order]).compose(event).rdp[0])

    release = PoissonSampled(Gaussian(noise_multiplier), sampling_rate)
    return Case(
        f"Renyi divergence of order {order} of ({sampling_rate}, {noise_multiplier})",
        value,
        lambda: rdp.divergence(release, order=order),
        {DP_RDP.name: ask},
    )


def _sampled(name: str, delta: float, value: float | None) -> Case:
    return Case(
        f"{name} at {delta:g}",
        value,
        lambda: ours.epsilon(NAMED[name], delta),
        {
            peer.name: partial(peer.epsilon, NAMED[name], delta)
            for peer in (DP_PLD, PRV, OPACUS_PRV)
        },
    )


def _coarse_prv(name: str, delta: float) -> Case:
    return Case(
        f"{name} at {delta:g}, prv_accountant's eps_error 0.1",
        None,
        lambda: ours.epsilon(NAMED[name], delta),
        {PRV.name: lambda: prv_epsilon(NAMED[name], delta, 0.1)},
    )


def _refused_event() -> Case:
    def ask() -> str:
        from dp_accounting import dp_event as events
        from dp_accounting import rdp as dp_rdp

        accountant = dp_rdp.RdpAccountant()
        try:
            accountant.compose(events.ZCDpEvent(rho=-1.0))
        except ValueError as error:
            return f"refused ({error}), and recorded: {accountant.ledger}"
        return "accepted"

    def own() -> str:
        try:
            ZCDP(-1.0)
        except ValueError as error:
            return f"refused when built: {error}"
        return "accepted"

    return Case("a zCDP event of rho -1", None, own, {DP_RDP.name: ask})


# Small deltas: where the noise of an FFT is larger than delta.

SMALL_DELTAS = (1e-15, 1e-10)
SCANNED, SCAN_SEED, LARGEST_EPSILON = 26, 5, 20.0
SCANNED_PEERS = (DP_PLD, PRV, OPACUS_PRV)


def scan() -> dict[str, dict[str, int]]:
    """Return how each peer's upper bounds lie against our lower ones, on random plans."""
    counts = {
        peer.name: dict.fromkeys(("below the truth", "no bound", "error", "fine"), 0)
        for peer in SCANNED_PEERS
        if peer.missing is None
    }
    for question in _small_questions() if counts else ():
        own = ours.epsilon(question.plan, question.delta)
        for peer in SCANNED_PEERS:
            if peer.name in counts:
                says = answer(partial(peer.epsilon, question.plan, question.delta))
                counts[peer.name][_judged(says, own)] += 1
    return counts


def _small_questions() -> Iterator[Question]:
    """Yield plans that fit on the peers' grids: a large epsilon needs gigabytes there."""
    found = 0
    for question in random_questions(10_000, seed=SCAN_SEED, deltas=SMALL_DELTAS, heterogeneous=0):
        if found == SCANNED:
            return
        quick = rdp.profile(ours.mechanism_of(question.plan)).epsilon(delta=question.delta)
        if quick.upper <= LARGEST_EPSILON:
            found += 1
            yield question


def _judged(epsilon: float | str, own: Bound) -> str:
    if isinstance(epsilon, str):
        return "error"
    if not math.isfinite(epsilon):
        return "no bound"
    return "fine" if epsilon >= own.lower else "below the truth"


# The section.


def measure() -> dict[str, Any]:
    """Return every answer to every question, and the scan."""
    return {"cases": [_answers(case) for case in cases()], "scan": scan()}


def _answers(case: Case) -> dict[str, Any]:
    own = answer(case.own)
    row: dict[str, Any] = {"what": case.what, "truth": case.truth, "peers": []}
    if isinstance(own, Bound):
        row |= {"lower": own.lower, "upper": own.upper}
    else:
        row["words"] = own
    for name, ask in case.peers.items():
        row["peers"].append((name, answer(ask)))
    return row


def show(measured: dict[str, Any]) -> str:
    """Return the table of cases, and that of the scan."""
    lines = []
    for row in measured["cases"]:
        own = f"{row['lower']:.7g} to {row['upper']:.7g}" if "lower" in row else row["words"]
        known = "" if row["truth"] is None else f"{row['truth']:.8g}"
        lines.append((row["what"], known, "dpaudit", own, _own_verdict(row)))
        for name, says in row["peers"]:
            said = says if isinstance(says, str) else f"{says:.7g}"
            lines.append(("", "", name, said, _peer_verdict(row, says)))
    blocks = [table(("", "truth", "", "says", "against the truth"), lines)]
    if measured["scan"]:
        low, high = SMALL_DELTAS
        heading = f"{SCANNED} random plans, delta {low:g} to {high:g}"
        kinds = list(next(iter(measured["scan"].values())))
        counts = [
            (who, *(str(one[kind]) for kind in kinds)) for who, one in measured["scan"].items()
        ]
        blocks.append(table((heading, *kinds), counts))
    return titled("Where peers were seen to be wrong", *blocks)


def _own_verdict(row: dict[str, Any]) -> str:
    if row["truth"] is None or "lower" not in row:
        return ""
    slack = 1e-5 * row["truth"]  # truths are given to so many digits
    return "inside" if row["lower"] - slack <= row["truth"] <= row["upper"] + slack else "OUTSIDE"


def _peer_verdict(row: dict[str, Any], says: float | str) -> str:
    if isinstance(says, str) or "lower" not in row:
        return ""
    if row["truth"] is not None:
        return percent(says, row["truth"])
    if not math.isfinite(says):
        return "no bound"
    if says < row["lower"]:
        return f"{percent(says, row['lower'])}, against our lower end"
    return f"{percent(says, row['upper'])}, against our upper end"
