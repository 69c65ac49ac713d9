"""A verdict for programs: what verdict.json holds."""

from __future__ import annotations

import json

import msgspec

from dpaudit.vocabulary.verdict import Verdict, WrittenVerdict


def verdict_json(verdict: Verdict) -> str:
    """Return indented JSON in ASCII, which no terminal's encoding can break."""
    return json.dumps(msgspec.to_builtins(WrittenVerdict.of(verdict)), indent=2)
