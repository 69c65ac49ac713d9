"""Write the JSON Schema of every JSON that dpaudit writes; a test keeps them up to date."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.gate.policy import Policy
from dpaudit.gate.run_differences import RunComparison
from dpaudit.report.text import EpsilonAnswers
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import (
    Claim,
    DeltaAnswer,
    EpsilonAnswer,
    NoiseAnswer,
    RiskAnswer,
    RiskNoiseAnswer,
    SplitAnswer,
)
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.ledger import LedgerEntry
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.run_overview import RunList, RunOverview
from dpaudit.vocabulary.verdict import RunHistory, VerdictDocument

FOLDER = Path(__file__).resolve().parent.parent / "dpaudit" / "vocabulary" / "schemas"
KINDS = {
    "attack": AttackReport,
    "audit": AuditReport,
    "baseline": Baseline,
    "claim": Claim,
    "comparison": RunComparison,
    "conformance": ConformanceResult,
    "delta": DeltaAnswer,
    "epsilon": EpsilonAnswer,
    "epsilon-all": EpsilonAnswers,
    "history": RunHistory,
    "ledger-entry": LedgerEntry,
    "mechanism": Mechanism,
    "noise": NoiseAnswer,
    "noise-risk": RiskNoiseAnswer,
    "policy": Policy,
    "run-list": RunList,
    "run-show": RunOverview,
    "split": SplitAnswer,
    "tradeoff": RiskAnswer,
    "verdict": VerdictDocument,
}


def normalised(schema: Any) -> Any:
    """Return a schema without the parts that depend on the version that generates it.

    - Descriptions are docstrings. Python 3.13 and msgspec 0.23 remove their indentation;
      earlier versions keep it. Their examples are Python: a schema omits them.
    - msgspec 0.22 changed the position of null among alternatives. The order of ``anyOf``
      has no meaning.
    """
    if isinstance(schema, list):
        return [normalised(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: normalised(value) for key, value in schema.items()}
    # A property may be called "description" or "anyOf"; its value is a schema, so a dict.
    if isinstance(schema.get("description"), str):
        schema["description"] = inspect.cleandoc(schema["description"]).split("\n\nExample:")[0]
    if isinstance(schema.get("anyOf"), list):
        schema["anyOf"].sort(key=_text)
    return schema


def schema_text(kind: object) -> str:
    """Return the JSON Schema of ``kind``, as it is shipped."""
    return _text(normalised(msgspec.json.schema(kind))) + "\n"


def _text(schema: Any) -> str:
    return json.dumps(schema, indent=2, sort_keys=True)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, kind in KINDS.items():
        (FOLDER / f"{name}.json").write_text(schema_text(kind))
