"""Random plans, far into the corners: CPU time, width, and every refusal, error and NaN."""

from __future__ import annotations

import math
import warnings
from typing import Any

from dpaudit.vocabulary.errors import DpauditError
from side_by_side import ours
from side_by_side.clock import one_line, timed
from side_by_side.plans import Question, random_questions
from side_by_side.tables import fixed, quantile, short, table, titled

RELATIVE, ABSOLUTE = 1e-3, 1e-6
"""Widths of which one is to be met."""

MEDIAN_MS, LATE_MS = 50.0, 200.0
SHOWN = 5


def measure(*, count: int, seed: int) -> dict[str, Any]:
    """Return one row a question, in the order of the seed."""
    rows = [_row(question) for question in random_questions(count, seed=seed)]
    return {"count": count, "seed": seed, "rows": rows, "summary": summary(rows)}


def _row(question: Question) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asked = timed(lambda _: ours.epsilon(question.plan, question.delta), 1)
    row: dict[str, Any] = {
        "question": str(question),
        "plan": [
            (entry.sampling_rate, entry.noise_multiplier, entry.steps)
            for entry in question.plan.entries
        ],
        "delta": question.delta,
        "ms": asked.best,
        "warnings": sorted({" ".join(str(one.message).split()) for one in warned}),
    }
    if asked.error is not None:
        kind = "refusal" if isinstance(asked.error, DpauditError) else "untyped exception"
        return row | {kind: one_line(asked.error)}
    bound = asked.value
    assert bound is not None
    width = bound.upper - bound.lower
    return row | {
        "lower": bound.lower,
        "upper": bound.upper,
        "nan": math.isnan(bound.lower) or math.isnan(bound.upper),
        "width": width,
        "relative": width / bound.upper if bound.upper > 0 else 0.0,
    }


def is_wide(row: dict[str, Any]) -> bool:
    """Return whether an interval meets neither width; NaN meets none."""
    return not (row["relative"] <= RELATIVE or row["width"] <= ABSOLUTE)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that have targets."""
    took = [row["ms"] for row in rows]
    answered = [row for row in rows if "width" in row]
    # Widths below the absolute target are good, whatever they are relative to epsilon.
    relative = [0.0 if row["width"] <= ABSOLUTE else row["relative"] for row in answered]
    return {
        "median_ms": quantile(took, 0.5),
        "p99_ms": quantile(took, 0.99),
        "max_ms": max(took, default=math.nan),
        "median_relative": quantile([row["relative"] for row in answered], 0.5),
        "p99_relative": quantile(relative, 0.99),
        "max_relative": max(relative, default=math.nan),
        "wide": sum(map(is_wide, answered)),
        "refusals": sum("refusal" in row for row in rows),
        "untyped_exceptions": sum("untyped exception" in row for row in rows),
        "nan": sum(row["nan"] for row in answered),
        "with_warnings": sum(bool(row["warnings"]) for row in rows),
    }


def show(measured: dict[str, Any]) -> str:
    """Return the figures, the extremes, and all that went wrong."""
    rows, figures = measured["rows"], measured["summary"]
    answered = [row for row in rows if "width" in row]
    blocks = [_figures(figures, len(rows))]
    for kind in ("refusal", "untyped exception"):
        wrong = [(row["question"], row[kind]) for row in rows if kind in row]
        if wrong:
            blocks.append(table((kind, ""), wrong))
    said = sorted({message for row in rows for message in row["warnings"]})
    if said:
        blocks.append(table(("warnings, each once",), [(message[:120],) for message in said]))
    blocks.append(_extremes("slowest", sorted(rows, key=lambda row: -row["ms"])))
    blocks.append(
        _extremes(
            f"widest of those above {ABSOLUTE:g}",
            sorted(
                (row for row in answered if not row["width"] <= ABSOLUTE),
                key=lambda row: -row["relative"],
            ),
        )
    )
    title = f"{measured['count']} random plans, seed {measured['seed']}, both directions"
    return titled(title, *blocks)


def _figures(figures: dict[str, Any], count: int) -> str:
    wide = f"wider than {RELATIVE:g} and than {ABSOLUTE:g} absolutely"
    return table(
        ("", "", "target"),
        [
            ("CPU ms, median", fixed(figures["median_ms"], 1), f"{MEDIAN_MS:g}"),
            ("CPU ms, 99th percentile", fixed(figures["p99_ms"], 1), f"{LATE_MS:g}"),
            ("CPU ms, most", fixed(figures["max_ms"], 1), ""),
            ("relative width, median", short(figures["median_relative"]), ""),
            (
                f"relative width, 99th percentile (0 below {ABSOLUTE:g} absolutely)",
                short(figures["p99_relative"]),
                f"{RELATIVE:g}",
            ),
            ("relative width, most", short(figures["max_relative"]), f"{RELATIVE:g}"),
            (wide, str(figures["wide"]), "0"),
            ("refusals", str(figures["refusals"]), f"{count // 1000}"),
            ("untyped exceptions", str(figures["untyped_exceptions"]), "0"),
            ("NaN", str(figures["nan"]), "0"),
            ("plans with warnings", str(figures["with_warnings"]), "0"),
        ],
    )


def _extremes(what: str, rows: list[dict[str, Any]]) -> str:
    return table(
        (what, "ms", "at least", "at most", "relative width"),
        [
            (
                row["question"],
                fixed(row["ms"], 1),
                short(row.get("lower")),
                short(row.get("upper")),
                short(row.get("relative")),
            )
            for row in rows[:SHOWN]
        ],
    )
