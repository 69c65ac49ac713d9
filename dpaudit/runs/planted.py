"""Canaries of ``dpaudit canaries make`` that a loop of your own was given, as its run keeps them.

Their file is copied beside the ledger and its digest is in the ledger before the first step. The
file names the digest of the auditor's, so that the coins were fixed by then, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import PrivacyLedger

COUNT, SECRET_DIGEST = "count", "secret_sha256"
"""Arrays of the trainer's file: how many canaries had a coin, and the digest of the auditor's."""


@dataclass(frozen=True)
class RecordedCanaries:
    """What a ledger records of them.

    Attributes:
        count: How many had a coin, m; the included ones alone were trained on.
        secret_sha256: Digest of the auditor's file, which holds all of them with their coins.
    """

    count: int
    secret_sha256: str


def recorded_canaries(run: RunDirectory, ledger: PrivacyLedger) -> RecordedCanaries | None:
    """Return what the ledger of a run records of them; None if it records no such file.

    Raises:
        IntegrityError: The file is missing, altered, or lacks what ``canaries make`` writes.
    """
    path, begun = run.planted_canaries, ledger.begun
    if begun is None or path.name not in begun.files:
        return None
    run.require_unaltered({path.name: begun.files[path.name]})
    arrays = read_arrays(path)
    missing = [name for name in (COUNT, SECRET_DIGEST) if name not in arrays]
    if missing:
        raise IntegrityError(f"{path} lacks {', '.join(missing)}: it is no trainer's canary file")
    return RecordedCanaries(int(arrays[COUNT]), str(arrays[SECRET_DIGEST]))
