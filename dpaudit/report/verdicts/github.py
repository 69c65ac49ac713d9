"""A verdict as workflow commands, which GitHub shows beside the lines of the policy.

No line but these commands holds foreign words: in any other, they might be commands.
"""

from __future__ import annotations

from collections.abc import Mapping

from dpaudit.report.verdicts.judged import (
    Judged,
    Standing,
    explained,
    facts,
    headline,
    label,
    shown_rules,
    standing,
)
from dpaudit.report.verdicts.places import place_of
from dpaudit.report.verdicts.printable import one_line
from dpaudit.vocabulary.verdict import RuleOutcome

COMMANDS = {
    Standing.VIOLATED: "error",
    Standing.INCONCLUSIVE: "error",
    Standing.WARNING: "warning",
    Standing.WAIVED: "notice",
}
WARNING, EVIDENCE = "policy warning", "claim and evidence"
DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
PROPERTY = DATA | str.maketrans({":": "%3A", ",": "%2C"})


def verdict_github(judged: Judged) -> str:
    """Return the outcome, then a command for each rule that does not hold."""
    stands = ((rule, standing(rule, judged.verdict)) for rule in shown_rules(judged.verdict))
    commands = [_command(COMMANDS[one], rule, judged) for rule, one in stands if one in COMMANDS]
    notes = [
        f"::warning title={WARNING}::{_escaped(warning, DATA)}"
        for warning in judged.verdict.warnings
    ]
    return "\n".join(
        [f"dpaudit gate: {headline(judged.verdict)}", *commands, *notes, *_evidence(judged)]
    )


def _evidence(judged: Judged) -> list[str]:
    """Return one notice for all facts: the service shows ten of a kind at most."""
    lines = [f"{name}: {_escaped(value, DATA)}" for name, value in facts(judged.verdict)]
    return [f"::notice title={EVIDENCE}::{'%0A'.join(lines)}"] if lines else []


def _command(name: str, rule: RuleOutcome, judged: Judged) -> str:
    properties = _place(rule, judged) | {"title": f"{label(rule)} {rule.rule}"}
    listed = ",".join(f"{key}={_escaped(value, PROPERTY)}" for key, value in properties.items())
    return f"::{name} {listed}::{_escaped(explained(rule), DATA)}"


def _place(rule: RuleOutcome, judged: Judged) -> dict[str, str]:
    place = place_of(rule.rule, judged)
    if place is None:
        return {}
    line = {} if place.line is None else {"line": str(place.line)}
    return {"file": place.file.as_posix(), **line}


def _escaped(text: str, escapes: Mapping[int, str]) -> str:
    return one_line(text).translate(escapes)
