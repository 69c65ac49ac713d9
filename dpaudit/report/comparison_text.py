"""Two runs side by side for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from dpaudit.gate.comparison import Comparison, Cost
from dpaudit.report.text import table
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.rounding import round_down, round_near, round_up


def comparison_text(found: Comparison) -> str:
    """Return both runs' figures in columns, then the differences, by cause."""
    before, after = _figures(found.before), _figures(found.after)
    rows = [("", found.before.run, found.after.run)]
    rows += [
        (name, before.get(name, "not measured"), after.get(name, "not measured"))
        for name in dict.fromkeys((*before, *after))
    ]
    causes = [line for cost in found.costs for line in _cause(cost)]
    shown = [tuple(one_line(cell) for cell in row) for row in rows]
    return "\n".join([*table(shown), "", *(causes or ["nothing differs"])])


def _figures(run: Baseline) -> dict[str, str]:
    claim = run.claim
    figures = {
        f"epsilon at most (delta {claim.delta:g}, {claim.accountant})": round_up(
            claim.epsilon.upper
        ),
        **{
            f"epsilon at least ({bound.kind.value}: {bound.name})": round_down(bound.epsilon_lower)
            for bound in run.bounds
        },
        **{
            f"TPR at most of {rate.attack} at FPR {rate.fpr:g}": round_up(rate.tpr.upper)
            for rate in run.rates
        },
    }
    if run.heldout_accuracy is not None:
        figures["held-out accuracy"] = round_near(run.heldout_accuracy)
    return figures


def _cause(cost: Cost) -> Iterator[str]:
    yield one_line(str(cost.difference))
    if cost.epsilon is not None:
        yield f"    by itself: epsilon at most {round_up(cost.epsilon)}"
