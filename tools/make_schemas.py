"""Write the JSON Schema of every JSON that dpaudit writes; a test holds them up to date."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from dpaudit.gate.comparison import Comparison
from dpaudit.gate.policy import Policy
from dpaudit.report.text import EpsilonAnswers
from dpaudit.vocabulary.answers import DeltaAnswer, NoiseAnswer, RiskAnswer
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.claim import Claim, EpsilonAnswer
from dpaudit.vocabulary.conformance import ConformanceResult
from dpaudit.vocabulary.history import History
from dpaudit.vocabulary.ledger import LedgerLine
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.verdict import WrittenVerdict

FOLDER = Path(__file__).resolve().parent.parent / "dpaudit" / "vocabulary" / "schemas"
KINDS = {
    "attack": AttackReport,
    "audit": AuditReport,
    "baseline": Baseline,
    "claim": Claim,
    "comparison": Comparison,
    "conformance": ConformanceResult,
    "delta": DeltaAnswer,
    "epsilon": EpsilonAnswer,
    "epsilon-all": EpsilonAnswers,
    "history": History,
    "ledger-entry": LedgerLine,
    "mechanism": Mechanism,
    "noise": NoiseAnswer,
    "policy": Policy,
    "tradeoff": RiskAnswer,
    "verdict": WrittenVerdict,
}


def schema_text(kind: object) -> str:
    """Return the JSON Schema of ``kind``, as it is shipped."""
    return json.dumps(msgspec.json.schema(kind), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, kind in KINDS.items():
        (FOLDER / f"{name}.json").write_text(schema_text(kind))
