"""Every rule of a policy in words: what it demands, what that means, and what to do."""

from __future__ import annotations

from typing import NamedTuple

from dpaudit.report.verdicts.judged import NO_RULES


class RuleWords(NamedTuple):
    """One rule: its demand in a line, what it means, and what mends it."""

    demands: str
    means: str
    remedy: str


RULE_WORDS = {
    "claim.max_epsilon": RuleWords(
        "Epsilon is at most what the policy allows",
        "The upper end of epsilon, computed anew from the run's ledger at the policy's delta and "
        "by the policy's accountant, may not lie above claim.max_epsilon.",
        "Train with more noise, a lower sampling rate or fewer steps; dpaudit noise finds the "
        "noise for a budget.",
    ),
    "claim.adjacency": RuleWords(
        "The claim is for the demanded neighbours",
        "An epsilon under one notion of neighbouring data sets is not one under another.",
        "Account for the run under the adjacency that the policy demands.",
    ),
    "claim.unit": RuleWords(
        "The claim protects the demanded unit",
        "An epsilon for one record is not one for a user with many records, nor the reverse.",
        "Train with that unit (make_private(unit=...)), or set claim.unit to what is promised.",
    ),
    "claim.released": RuleWords(
        "The claim covers what is released",
        "A claim for the final model alone does not cover intermediate models.",
        "Publish the final model alone and set claim.released, or account for every step.",
    ),
    "claim.sampling": RuleWords(
        "Batches were drawn as the policy allows",
        "Amplification by sampling holds only for batches that were really drawn so; shuffled "
        "batches are no Poisson samples.",
        "Draw batches by a sampler that the policy lists in claim.sampling.",
    ),
    "claim.require_secure_randomness": RuleWords(
        "Noise and batches come from secure randomness",
        "Whoever knows the seed of a run knows its noise, and against them it has no privacy.",
        "Train without a seed.",
    ),
    "claim.may_leave_out": RuleWords(
        "The claim leaves out nothing that it may not",
        "What was done with the records and is not in the ledger costs privacy, too.",
        "Book it in the ledger, or list it in claim.may_leave_out.",
    ),
    "audit.evidence": RuleWords(
        "The run was audited in its present state",
        "The rules on measurements need an audit of this very ledger.",
        "Audit the run: dpaudit audit RUN.",
    ),
    "audit.require_conformance": RuleWords(
        "The trainer was tested, and does what it claims",
        "Replayed and sampled steps must clip, sample and add noise as the ledger says.",
        "Test the trainer: dpaudit conformance RUN, and mend what its findings name.",
    ),
    "audit.lower_bound": RuleWords(
        "No measurement contradicts the claim",
        "Canaries bound epsilon from below; a bound above the claim means that more is given "
        "away than is claimed, or that an assumption of the bound is false.",
        "Look for what the ledger does not book, and test the trainer: dpaudit conformance RUN. "
        "A run without canaries cannot be told: train with --canaries.",
    ),
    "audit.min_power_epsilon": RuleWords(
        "The audit could have seen an excess",
        "An audit that would have overlooked a true epsilon this far above the claim shows "
        "nothing by finding nothing.",
        "Train with more canaries.",
    ),
    "audit.max_tpr_at_fpr": RuleWords(
        "Attacks find few members at few false alarms",
        "The upper end of the interval of each attack's true-positive rate, at the given "
        "false-positive rate, may not lie above the given rate.",
        "Train with more noise or less long, or attack with more records where the interval is "
        "wide.",
    ),
    "regression.baseline": RuleWords(
        "There is a baseline to compare with",
        "The policy allows no regression, and what is compared with nothing shows none.",
        "Write one from an accepted run, dpaudit baseline write RUN -o baseline.json, and give "
        "it: --baseline baseline.json.",
    ),
    "regression.max_epsilon_increase": RuleWords(
        "Epsilon did not grow against the baseline",
        "The upper end of epsilon may exceed the baseline's by regression.max_epsilon_increase.",
        "Undo the change that the message names, or write a new baseline if it is wanted.",
    ),
    "regression.max_tpr_increase": RuleWords(
        "Attacks do not succeed more often than on the baseline",
        "The upper end of each attack's true-positive rate may exceed the baseline's by "
        "regression.max_tpr_increase.",
        "Undo the change, or attack with more records where growth and chance cannot be told "
        "apart.",
    ),
    "regression.max_lower_bound_increase": RuleWords(
        "Lower bounds on epsilon did not grow against the baseline",
        "Each lower bound may exceed the baseline's by regression.max_lower_bound_increase.",
        "Look for what the run gives away that its baseline did not.",
    ),
    "waiver": RuleWords(
        "Every waiver is in force",
        "A waiver that expired, or that reaches further ahead than waiver_max_days, waives "
        "nothing and is a violation by itself.",
        "Fix what was waived and delete the waiver, or decide again with a nearer date.",
    ),
    NO_RULES.rule: RuleWords(
        "The policy names a rule",
        "A policy without rules demands nothing, and its verdict says nothing.",
        "Add a section claim or audit to the policy: dpaudit init RUN writes one.",
    ),
}


def key_of(rule: str) -> str | None:
    """Return the key that ``rule`` is of, such as ``audit.max_tpr_at_fpr``; None if of none."""
    keys = (key for key in RULE_WORDS if rule == key or rule.startswith(f"{key}."))
    return next(keys, None)
