"""Whether a run keeps the policy."""

from __future__ import annotations

from pathlib import Path

from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.vocabulary.verdict import Outcome
from dpaudit.workflow.asserting.words import told
from dpaudit.workflow.baselines import read_baseline, require_other_run
from dpaudit.workflow.judging import Judging, PolicySources, evidence_of
from dpaudit.workflow.policies import load_policy


def why_not_holding(run: RunDirectory | Path | str, policy: Path, baseline: Path | None) -> str:
    """Return the verdict, rule by rule, where it is anything but HOLDS; else nothing.

    What is not waived and cannot be told fails. Nothing is written into the run.

    Raises:
        InvalidArgument: there is no such run, policy or baseline.
        IntegrityError: the run is unfinished, or was altered.
    """
    directory = run if isinstance(run, RunDirectory) else open_run(Path(run))
    loaded = load_policy(policy, environment={})  # the file alone, wherever the tests run
    compared = None if baseline is None else read_baseline(baseline, loaded.policy)
    judging = Judging(loaded.policy, compared, sources=PolicySources.of(loaded))
    evidence = evidence_of(directory, loaded.policy)
    if compared is not None:
        require_other_run(compared, directory, evidence.stated.ledger_head)
    verdict = judging.verdict(evidence)
    if verdict.outcome is Outcome.HOLDS:
        return ""
    broken = [rule for rule in verdict.rules if rule.counts and rule.outcome is not Outcome.HOLDS]
    lines = [told(f"{rule.outcome.value} {rule.rule}", ("why", rule.why)) for rule in broken]
    return "\n".join([f"{directory.path} does not keep {policy}", *(lines or ["it has no rules"])])
