"""A first policy for a project, from a run of it."""

from __future__ import annotations

from pathlib import Path

from dpaudit.gate.audit_rules import contradicting
from dpaudit.gate.drafting import draft
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import require_new_file, write_bytes
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.rounding import round_down
from dpaudit.workflow.baselines import baseline_of_run, write_baseline
from dpaudit.workflow.judging import evidence_of
from dpaudit.workflow.policies import OWN_FILE, SHARED_FILE, shared_policy


def write_draft(run: RunDirectory, path: Path, baseline: Path | None = None) -> None:
    """Write a policy that ``run`` passes, unless it was seeded; and its figures, as a baseline.

    Raises:
        InvalidArgument: the file exists, cannot be written, or would stand above another
            policy; or the run's own audit contradicts its claim.
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    require_new_file("output", path)
    if path.exists():
        raise InvalidArgument("output", str(path), "a file that does not exist yet")
    if path.name == OWN_FILE and shared_policy(path.absolute().parent):
        allowed = f"a file that does not stand above [tool.dpaudit] of {SHARED_FILE}"
        raise InvalidArgument("output", str(path), allowed)
    figures, evidence = baseline_of_run(run, None), evidence_of(run, Policy())
    refuted = contradicting(evidence)
    if refuted:
        why = f"epsilon is at least {round_down(refuted[0].epsilon_lower)} by {refuted[0].name}"
        raise InvalidArgument("run", why, "one whose audit does not contradict its claim")
    if baseline is not None:
        write_baseline(baseline, figures)
    name = None if baseline is None else str(baseline)
    write_bytes(path, draft(figures.claim, evidence, name).encode())
