"""What can be checked of a policy before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date

import msgspec

from dpaudit.gate.claim_rules import claim_rules
from dpaudit.gate.policy import Policy
from dpaudit.gate.waivers import waive
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import PrivacySettings
from dpaudit.vocabulary.verdict import RuleOutcome, Verdict
from dpaudit.workflow.judging import utc_today
from dpaudit.workflow.plans import planned_claim


def check_policy(
    policy: Policy, plans: Mapping[str, PrivacySettings], *, today: date | None = None
) -> Verdict:
    """Hold plans against the claim that ``policy`` demands, and waivers against the day.

    Args:
        policy: What is demanded.
        plans: Settings of runs, by the name of their file.
        today: None: this day, in UTC.

    Returns:
        The rules of the claim for each plan, and each waiver that expired: no rule at all
        where there is neither.

    Raises:
        InvalidArgument: there are plans, and the policy demands nothing of a claim.
    """
    planned = [rule for name, plan in plans.items() for rule in _planned(policy, name, plan)]
    return Verdict(tuple(waive(planned, policy, today or utc_today())), "")


def _planned(policy: Policy, name: str, plan: PrivacySettings) -> Iterator[RuleOutcome]:
    asked = policy.claim
    if asked is None:
        raise InvalidArgument("policy", "no section [claim]", "one with [claim], to check plans by")
    claim = planned_claim(plan, asked.delta, asked.accountant)
    for rule in claim_rules(asked, claim):
        yield msgspec.structs.replace(rule, why=f"{name}: {rule.why}")
