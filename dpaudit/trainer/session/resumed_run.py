"""What a resumed run must have in common with the run that was interrupted."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import read_unfinished
from dpaudit.trainer.canaries.canary_file import CanaryFile
from dpaudit.trainer.canaries.run_canaries import GradientCanaries, RunCanaries
from dpaudit.vocabulary.errors import InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import PrivacyLedger


def read_unfinished_run(ledger: Path) -> PrivacyLedger:
    """Return the ledger of an unfinished run, checked against the run's other files."""
    run = RunDirectory(ledger.parent)
    found = run.read_unfinished() if run.ledger == ledger else read_unfinished(ledger)
    if found.seal is not None:
        raise RunExists(f"{ledger.parent} is finished: there is nothing to resume")
    return found


def recorded_canaries(ledger: Path, found: PrivacyLedger) -> RunCanaries | None:
    """Return the canaries that an interrupted run was begun with, if any; refuse altered files."""
    run = RunDirectory(ledger.parent)
    if found.begun is None or run.secret_canaries.name not in found.begun.files:
        return None
    run.require_unaltered(found.begun.files)
    return RunCanaries.read(run)


def require_same_canaries(
    given: RunCanaries | GradientCanaries | None, recorded: RunCanaries | None
) -> None:
    """Refuse to resume with another number of gradient canaries than the run began with."""
    if given is recorded or isinstance(given, RunCanaries):
        return
    count = 0 if recorded is None else len(recorded.gradient_included)
    if (0 if given is None else given.count) != count:
        raise InvalidArgument(
            "canaries", given, f"{count} gradient canaries, as at the beginning of the run"
        )


def require_same_canary_file(given: CanaryFile | None, ledger: Path, found: PrivacyLedger) -> None:
    """Refuse to resume with another canary file than the one at the run's beginning."""
    run, begun = RunDirectory(ledger.parent), found.begun
    recorded = None if begun is None else begun.files.get(run.canary_file_copy.name)
    digest = None if given is None else hashlib.sha256(given.content).hexdigest()
    if recorded != digest:
        path = None if given is None else str(given.path)
        raise InvalidArgument("canary_file", path, "the file that the run was begun with, or None")
