"""A first policy for a project, from a run of it."""

from __future__ import annotations

from pathlib import Path

from dpaudit.gate.drafting import draft
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import require_new_file, write_bytes
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.baselines import baseline_of_run
from dpaudit.workflow.judging import evidence_of


def write_draft(run: RunDirectory, path: Path) -> None:
    """Write a policy that ``run`` passes, unless it was seeded.

    Raises:
        InvalidArgument: the file exists, or cannot be written.
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    require_new_file("output", path)
    if path.exists():
        raise InvalidArgument("output", str(path), "a file that does not exist yet")
    claim = baseline_of_run(run, None).claim
    write_bytes(path, draft(claim, evidence_of(run, Policy())).encode())
