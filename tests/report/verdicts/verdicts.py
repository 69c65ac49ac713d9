"""Verdicts to write in every format, and the policy that asked for them."""

from __future__ import annotations

import tomllib
from datetime import UTC, date
from pathlib import Path

import msgspec
from hypothesis import strategies as st

from dpaudit.gate.layers import Layer, LoadedPolicy, put_together
from dpaudit.gate.lines import key_lines
from dpaudit.gate.policy import RULES
from dpaudit.report.verdicts.judged import Judged
from dpaudit.vocabulary.basis import Basis, Override, PolicyLayer
from dpaudit.vocabulary.unit import Released, Unit
from dpaudit.vocabulary.verdict import OnInconclusive, Outcome, RuleOutcome, Verdict, Waived
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
    "HOLDS: not at all",
    "WAIVED  VIOLATED  HOLDS",
    "&lt;b&gt; &#64;user &amp;",
    "- x\n* y\n1. z",
    "word " * 200,
    "x" * 2000,
)

words = st.sampled_from(NASTY) | st.text()
waivers = st.none() | st.builds(Waived, words, st.dates(date(2020, 1, 1), date(2100, 1, 1)))
names = st.sampled_from((*RULES, "audit.max_tpr_at_fpr.0.001", "waiver.claim.sampling")) | words
rules = st.builds(RuleOutcome, names, st.sampled_from(Outcome), words, waivers)
claims = st.builds(
    lambda unit, released, public, left_out: msgspec.structs.replace(
        make_claim(), unit=unit, released=released, takes_as_public=public, leaves_out=left_out
    ),
    st.sampled_from(Unit),
    st.sampled_from(Released),
    st.lists(words, max_size=2).map(tuple),
    st.lists(words, max_size=2).map(tuple),
)
bases = st.builds(
    Basis,
    policy_digest=st.sampled_from(("ab" * 32, "cd" * 32)),
    project_digest=st.sampled_from(("", "ab" * 32)),
    layers=st.lists(st.builds(PolicyLayer, words, words), max_size=2).map(tuple),
    overrides=st.lists(st.builds(Override, words, words, words), max_size=2).map(tuple),
    model_digest=words,
    dpaudit_version=words,
    judged=st.datetimes(timezones=st.just(UTC)),
)
verdicts = st.builds(
    Verdict,
    st.lists(rules, max_size=5).map(tuple),
    ledger_head=words,
    run=words,
    inconclusive=st.sampled_from(OnInconclusive),
    basis=st.none() | bases,
    warnings=st.lists(words, max_size=2).map(tuple),
    claim=st.none() | claims,
)


def loaded_policy(source: str = "dpaudit.toml", text: str = POLICY) -> LoadedPolicy:
    return put_together([Layer(source, tomllib.loads(text), key_lines(text))])


def judged(*rules: RuleOutcome, run: str = "runs", warn: bool = False) -> Judged:
    wish = OnInconclusive.WARN if warn else OnInconclusive.FAIL
    verdict = Verdict(rules, "5f2b" * 16, run, wish, basis=make_basis())
    return Judged(verdict, loaded_policy(), Path.cwd())


HOLDS = RuleOutcome("claim.sampling", Outcome.HOLDS, "sampling was poisson")
VIOLATED = RuleOutcome("claim.max_epsilon", Outcome.VIOLATED, "epsilon is at most 4, allowed is 3")
UNKNOWN = RuleOutcome("audit.max_tpr_at_fpr.0.01", Outcome.INCONCLUSIVE, "no attack on this run")
WAIVED = RuleOutcome(
    "audit.evidence",
    Outcome.INCONCLUSIVE,
    "the run was not audited",
    Waived("audited by hand", date(2027, 1, 31)),
)
