"""Verdicts to write in every format, and the policy that asked for them."""

from __future__ import annotations

import tomllib
from datetime import UTC, date
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from dpaudit.gate.policy import RULE_NAMES
from dpaudit.gate.policy_layers import LoadedPolicy, PolicyLayer, key_lines, merge_layers
from dpaudit.report.verdicts.gate_result import GateResult
from dpaudit.vocabulary.privacy_terms import ReleaseScope, Unit
from dpaudit.vocabulary.verdict import (
    AppliedWaiver,
    InconclusiveHandling,
    Outcome,
    PolicyOverride,
    PolicySource,
    RuleOutcome,
    Verdict,
    VerdictBasis,
)
from tests.report.samples import make_basis, make_claim

POLICY = """\
[claim]
max_epsilon = 3.0
delta = 1e-5

[audit]
max_tpr_at_fpr = { "0.01" = 0.05 }

[[waiver]]
rule = "audit.evidence"
reason = "audited by hand"
expires = 2027-01-31
"""
NASTY = (
    "",
    "<script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    "</style><script>alert(1)</script>",
    "]]><failure message='x'/>",
    "a | b \\| c \\ | `d` ``| **e** ~~f~~ [g](javascript:alert(1)) ![h](//x)",
    "first\n\n## second\r\n| third |",
    "\n::error::planted\r::warning::planted",
    "%0A::error::planted ##[error]planted",
    "::set-output name=a::b,c=d",
    "@user #12 org/repo#3 GH-4 a@b.example www.example.com https://example.com :tada: !5 %6 ~7",
    "{{ 7 * 7 }} {% raw %} ${{ secrets.X }} $x$",
    "\x00\x01\x1b[31m\x7f\x85\x9b\u2028\ufffe\uffff",
    "not utf-8: \udcff",
    "名前 \u202e اسم 🎲 \u200b",
    "PASS: not at all",
    "WAIVED  FAIL  PASS",
    "&lt;b&gt; &#64;user &amp;",
    "- x\n* y\n1. z",
    "word " * 200,
    "x" * 2000,
)

words = st.sampled_from(NASTY) | st.text()
waivers = st.none() | st.builds(AppliedWaiver, words, st.dates(date(2020, 1, 1), date(2100, 1, 1)))
names = (
    st.sampled_from((*RULE_NAMES, "audit.max_tpr_at_fpr.0.001", "waiver.claim.sampling")) | words
)
rules = st.builds(RuleOutcome, names, st.sampled_from(Outcome), words, waivers)
claims = st.builds(
    lambda unit, released, public, left_out: msgspec.structs.replace(
        make_claim(), unit=unit, released=released, assumed_public=public, unaccounted=left_out
    ),
    st.sampled_from(Unit),
    st.sampled_from(ReleaseScope),
    st.lists(words, max_size=2).map(tuple),
    st.lists(words, max_size=2).map(tuple),
)
bases = st.builds(
    VerdictBasis,
    policy_digest=st.sampled_from(("ab" * 32, "cd" * 32)),
    project_digest=st.sampled_from(("", "ab" * 32)),
    layers=st.lists(st.builds(PolicySource, words, words), max_size=2).map(tuple),
    overrides=st.lists(st.builds(PolicyOverride, words, words, words), max_size=2).map(tuple),
    model_digest=words,
    dpaudit_version=words,
    judged=st.datetimes(timezones=st.just(UTC)),
)
verdicts = st.builds(
    Verdict,
    st.lists(rules, max_size=5).map(tuple),
    ledger_head=words,
    run=words,
    inconclusive=st.sampled_from(InconclusiveHandling),
    basis=st.none() | bases,
    warnings=st.lists(words, max_size=2).map(tuple),
    claim=st.none() | claims,
)


def loaded_policy(source: str = "dpaudit.toml", text: str = POLICY) -> LoadedPolicy:
    return merge_layers([PolicyLayer(source, tomllib.loads(text), key_lines(text))])


def judged(*rules: RuleOutcome, run: str = "runs", warn: bool = False) -> GateResult:
    wish = InconclusiveHandling.WARN if warn else InconclusiveHandling.FAIL
    verdict = Verdict(rules, "5f2b" * 16, run, wish, basis=make_basis())
    return GateResult(verdict, loaded_policy(), Path.cwd())


PASS = RuleOutcome("claim.sampling", Outcome.PASS, "sampling was poisson")
FAIL = RuleOutcome("claim.max_epsilon", Outcome.FAIL, "epsilon is at most 4, allowed is 3")
UNKNOWN = RuleOutcome("audit.max_tpr_at_fpr.0.01", Outcome.INCONCLUSIVE, "no attack on this run")
WAIVED = RuleOutcome(
    "audit.evidence",
    Outcome.INCONCLUSIVE,
    "the run was not audited",
    AppliedWaiver("audited by hand", date(2027, 1, 31)),
)
