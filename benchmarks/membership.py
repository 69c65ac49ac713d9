"""Membership inference by the number of reference models: AUC and TPR at 0.1% FPR.

    python benchmarks/membership.py location30.npz                   # the table of the design
    python benchmarks/membership.py adult.csv --targets 4 --attack loss --attack rmia-online
    python benchmarks/membership.py location30.npz --json benchmarks/results/membership.json

Targets and references are trained once, together; each row takes the first so many of them.
What the attacks reach depends on how far the targets overfit: the loss attack's AUC says it.
CPU time is that of the process.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from side_by_side.tables import table, titled

import dpaudit
from dpaudit.attacks.membership import (
    RecordScores,
    lira_offline,
    lira_online,
    pool_scores,
    published_law,
    rmia_offline,
)
from dpaudit.attacks.membership.attack_registry import ATTACKS, REFERENCE_FREE_ATTACKS
from dpaudit.attacks.membership.evaluation import measure
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.attack.attack_settings import AttackSettings
from dpaudit.workflow.attack.attacked_target import AttackedTarget
from dpaudit.workflow.attack.model_attacks import (
    evaluate_attacks,
    load_population,
    train_targets,
)

REFERENCES = (1, 4, 16, 32)
FPR = 0.001
BY_DEFAULT = (
    *("loss", "calibrated", "lira-online", "lira-offline", "rmia-online", "rmia-offline"),
    *("informia-online", "informia-offline", "base-online", "base-offline"),
)

# On Location30, required true-positive rates.
TARGETS = {
    ("lira-online", 32): 0.34,
    ("rmia-offline", 32): 0.17,
    ("rmia-online", 1): 0.03,
}
SCALES = tuple(step / 10 for step in range(11))


def measured_rows(
    data: str, asked: AttackSettings, counts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Return a row for each attack and number of references, and the CPU seconds of each step."""
    start = time.process_time()
    source = DataSettings(source=data)
    records, classes = load_population(source, max_records=asked.records, seed=asked.seed)
    cases = train_targets(records, classes, asked)
    rows = [{"step": "training and signals", "cpu_seconds": time.process_time() - start}]
    for count in counts:
        start = time.process_time()
        some = [case.with_references(count) for case in cases]
        found = evaluate_attacks(some, asked, data).report.membership
        cpu = time.process_time() - start
        rows += [_row(one, count) for one in found]
        rows += _compared(some, count)
        rows.append({"step": f"attacks with {count} references", "cpu_seconds": cpu})
        print(f"{count} references: {cpu:.0f} CPU seconds", file=sys.stderr, flush=True)
    return rows


def _compared(cases: list[AttackedTarget], count: int) -> list[dict[str, Any]]:
    """Return rows of LiRA with the published laws, and of RMIA with the best fixed a.

    The best a is chosen afterwards, by the AUC on the targets: no attacker can do that.
    """
    laws = {
        "lira-online, published laws": partial(lira_online, law=published_law),
        "lira-offline, published laws": partial(lira_offline, law=published_law),
    }
    rows = [_row(_pooled(name, attack, cases), count) for name, attack in laws.items()]
    fixed = [
        _pooled(f"a = {scale:g}", partial(rmia_offline, offline_scale=scale), cases)
        for scale in SCALES
    ]
    best = max(fixed, key=lambda one: one.auc)
    return [*rows, {**_row(best, count), "attack": "rmia-offline, best fixed a", "a": best.attack}]


def _pooled(name: str, attack: Any, cases: list[AttackedTarget]) -> MembershipResult:
    parts = []
    for case in cases:
        scored = ~case.target.known_nonmembers
        references = case.target.require_references().references
        values = attack(case.target.confidences, references).values[scored]
        parts.append(RecordScores(values).split(case.member[scored]))
    return measure(name, pool_scores(parts), confidence=0.95)


def _row(one: MembershipResult, references: int) -> dict[str, Any]:
    rate = next((rate for rate in one.tpr_at_fpr if rate.fpr == FPR), None)
    return {
        "attack": one.attack,
        "references": 0 if one.attack in REFERENCE_FREE_ATTACKS else references,
        "auc": one.auc,
        "tpr": rate and rate.tpr,
        "interval": rate and [rate.interval.lower, rate.interval.upper],
        "members": one.members,
        "nonmembers": one.nonmembers,
        "target": TARGETS.get((one.attack, references)),
    }


def show(rows: list[dict[str, Any]], counts: tuple[int, ...]) -> str:
    """Return the table of the design: a row a number of references, a column an attack."""
    measured = [row for row in rows if "attack" in row]
    attacks = list(dict.fromkeys(row["attack"] for row in measured))
    cells = {(row["attack"], row["references"]): _cell(row) for row in measured}
    lines = [
        (
            str(count),
            *(
                cells.get((name, 0 if name in REFERENCE_FREE_ATTACKS else count), "-")
                for name in attacks
            ),
        )
        for count in counts
    ]
    seconds = [(row["step"], f"{row['cpu_seconds']:.0f}") for row in rows if "step" in row]
    return titled(
        "AUC / TPR at 0.1% FPR in % (interval at 95%)",
        table(("references", *attacks), lines),
        table(("step", "CPU seconds"), seconds),
    )


def _cell(row: dict[str, Any]) -> str:
    if row["tpr"] is None:
        return f"{row['auc']:.3f} / -"
    lower, upper = (100 * end for end in row["interval"])
    return f"{row['auc']:.3f} / {100 * row['tpr']:.1f} ({lower:.1f}-{upper:.1f})"


def facts(data: str, asked: AttackSettings) -> dict[str, Any]:
    """Return when, on what and with which settings the figures were measured."""
    settings = {name: getattr(asked, name) for name in asked.__dataclass_fields__}
    return {
        "date": datetime.date.today().isoformat(),
        "dpaudit": dpaudit.__version__,
        "torch": importlib.metadata.version("torch"),
        "processors": os.cpu_count(),
        "data": Path(data).name,
        "settings": settings,
    }


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--attack", choices=ATTACKS, action="append", help="repeatable")
    parser.add_argument("--references", type=int, nargs="+", default=list(REFERENCES))
    parser.add_argument("--targets", type=int, default=8)
    parser.add_argument("--records", type=int)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--queries", type=int, default=1, help="queries per record")
    parser.add_argument("--without-labels", action="store_true", help="of the attacker")
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args()
    asked = AttackSettings(
        attacks=tuple(given.attack or BY_DEFAULT),
        seed=given.seed,
        references=max(given.references),
        targets=given.targets,
        epochs=given.epochs,
        records=given.records,
        queries=given.queries,
        labels_known=not given.without_labels,
    )
    counts = tuple(sorted(given.references))
    rows = measured_rows(given.data, asked, counts)
    if given.json:
        found = facts(given.data, asked) | {"rows": rows}
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    print(show(rows, counts))


if __name__ == "__main__":
    main()
