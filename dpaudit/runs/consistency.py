"""Cross-checks between a run's ledger and its other files, whenever a run is opened.

A ledger that is cut at the end of a line is a valid, shorter ledger. These files contradict it:

claim.json         names the head that the ledger has after its seal, and is on disk before the
                   seal: a sealed run has a claim, and the claim determines the seal
model.safetensors  metadata name the run and the number of releases
observations.npz   has one row per step
checkpoints/       progress.json has the number of releases; the ledger may hold digests

Only small parts are read: metadata, shapes and progress. The model is hashed only if the run has
a claim and no seal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpaudit.files.archives import open_npz
from dpaudit.files.regular_files import DATA_LIMIT, MIB, InputFile, open_input
from dpaudit.runs.checkpoints import (
    complete_checkpoints,
    require_known_checkpoints,
    require_own_checkpoint,
)
from dpaudit.runs.file_io import read_optional_json, sha256
from dpaudit.runs.ledger_format import LedgerContent, encode_line
from dpaudit.runs.run_files import RunFiles
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import GRADIENT_SUM, PrivacyLedger, ReleaseEntry, Seal
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    BinnedMatrixFactorization,
    RandomAllocation,
    TreeAggregation,
)

RUN_KEY, RELEASES_KEY = "dpaudit_run", "dpaudit_releases"
"""Keys of a model's metadata: the run's name and its number of releases."""

MAX_METADATA_BYTES = 16 * MIB
"""The longest header of a .safetensors file that is read, in bytes."""


def require_consistent(run: RunFiles, content: LedgerContent) -> PrivacyLedger:
    """Return the ledger to account for, unless another file of its run contradicts it.

    Args:
        run: The files of the run. Missing files are no contradiction, except for the claim of a
            sealed run.
        content: The run's ledger.

    Returns:
        The ledger, with the release that an incomplete last line counts as. Without that
        release if the claim proves that the line is the seal.

    Raises:
        IntegrityError: If a file contradicts the ledger, or a sealed run has no claim; the
            error names the file.
    """
    federation = content.ledger.header.federation
    participant = None if federation is None else federation.participant
    # The ledger of a participant has no claim: the server's covers it.
    if content.ledger.seal is not None and participant is None and not run.claim.exists():
        raise IntegrityError(
            f"{run.path} is sealed and has no claim.json: restore it, or write it with "
            "dpaudit finish"
        )
    return require_not_contradicted(run, content)


def require_not_contradicted(run: RunFiles, content: LedgerContent) -> PrivacyLedger:
    """Do the checks of ``require_consistent``, but accept a sealed run without a claim.

    Args:
        run: The files of the run.
        content: The run's ledger.

    Returns:
        The ledger to account for.

    Raises:
        IntegrityError: If a file contradicts the ledger; the error names it.
    """
    counted = content.ledger if _agrees_with_claim(run, content) else content.counted
    # Only whole lines count here: a release that another file records was on disk before, so
    # its line cannot be the incomplete one.
    require_known_checkpoints(run.checkpoints, content.ledger)
    require_agreeing_model(run, content.ledger)
    _require_no_more_rows(run, content.ledger)
    return counted


def require_resumable(run: RunFiles, content: LedgerContent) -> PrivacyLedger:
    """Do the checks of ``require_consistent``, and verify the newest checkpoint.

    Args:
        run: The files of the run.
        content: The run's ledger.

    Returns:
        The ledger to account for.

    Raises:
        IntegrityError: If a file contradicts the ledger, or the checkpoint was altered.
    """
    counted = require_consistent(run, content)
    for newest in complete_checkpoints(run.checkpoints)[-1:]:
        require_own_checkpoint(newest, content.ledger)
    return counted


def expected_seal(run: RunFiles, ledger: PrivacyLedger) -> Seal:
    """Return the seal of an unfinished run over the files that exist now.

    Args:
        run: The files of the run, which are hashed.
        ledger: The run's ledger.

    Returns:
        The seal.

    Raises:
        IntegrityError: If a file cannot be read.
    """
    return Seal(len(ledger.releases), sealed_digests(run))


def sealed_digests(run: RunFiles) -> dict[str, str]:
    """Return the digests that the seal of a run records.

    Args:
        run: The files of the run, which are hashed.

    Returns:
        SHA-256 by the name within the run directory, participants' ledgers included.

    Raises:
        IntegrityError: If a file cannot be read.
    """
    return {run.sealed_name(path): sha256(path) for path in run.sealed_files}


def is_proven_by_claim(run: RunFiles, content: LedgerContent) -> bool:
    """Return whether a run has ended but lacks its seal, which the claim determines.

    Args:
        run: The files of the run.
        content: The run's ledger. An incomplete last line must be the beginning of this seal.

    Returns:
        True if the claim's head is that of the ledger followed by the expected seal.

    Raises:
        IntegrityError: If a file cannot be read.
    """
    if content.ledger.seal is not None:
        return False
    claim = read_optional_json(run.claim, Claim)
    if claim is None or claim.releases != content.ledger.release_count:
        return False
    line, head = encode_line(expected_seal(run, content.ledger), content.ledger.head)
    rest = b"" if content.tail.complete else content.tail.text
    return claim.ledger_head == head and line.startswith(rest)


def model_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file.

    Whether the file is complete is checked elsewhere: where its weights are read, or its digest
    is compared.

    Args:
        path: The file.

    Returns:
        Text by key; empty if there is none, or the file has another format.
    """
    found = _safetensors_header(path).get("__metadata__")
    return found if isinstance(found, dict) else {}


def model_tensors(path: Path) -> dict[str, str]:
    """Return type and shape of each tensor of a .safetensors file.

    Args:
        path: The file.

    Returns:
        Text such as ``F32 [10, 4]`` for each name; empty if the file has another format.
    """
    found = {}
    for name, one in sorted(_safetensors_header(path).items()):
        if name != "__metadata__" and isinstance(one, dict):
            found[name] = f"{one.get('dtype')} {one.get('shape')}"
    return found


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Return the header of a .safetensors file; empty if it has another format.

    The format begins with the header's length, 8 bytes, little-endian; the header is JSON.
    """
    try:
        with open_input(InputFile(path, limit=DATA_LIMIT)) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= MAX_METADATA_BYTES else {}
    except (IntegrityError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def model_releases(run: RunFiles, ledger: PrivacyLedger) -> int | None:
    """Return after how many releases the model was made.

    Args:
        run: The files of the run.
        ledger: The run's ledger.

    Returns:
        The number in the model's metadata; None if they have none.

    Raises:
        IntegrityError: If the model is of another run, or the number is invalid.
    """
    metadata = model_metadata(run.model)
    if RUN_KEY not in metadata:
        return None
    if metadata[RUN_KEY] != ledger.header.run:
        raise IntegrityError(f"{run.model} is the model of another run than its ledger")
    releases = metadata.get(RELEASES_KEY)
    if not isinstance(releases, str) or not (releases.isascii() and releases.isdecimal()):
        raise IntegrityError(f"{run.model} has no valid number of releases in its metadata")
    return int(releases)


def require_agreeing_model(run: RunFiles, ledger: PrivacyLedger) -> None:
    """Refuse a model of another run, or made by more releases than the ledger holds.

    Args:
        run: The files of the run.
        ledger: The run's ledger.

    Raises:
        IntegrityError: If it is one of these.
    """
    releases = model_releases(run, ledger)
    if releases is not None and releases > ledger.release_count:
        raise IntegrityError(
            f"{run.model} was made by {releases} releases, its ledger holds "
            f"{ledger.release_count}: the ledger was cut, restore it from a copy"
        )


def _agrees_with_claim(run: RunFiles, content: LedgerContent) -> bool:
    """Return whether the run has ended, as its claim proves; refuse a contradiction."""
    ledger, claim = content.ledger, read_optional_json(run.claim, Claim)
    if claim is None:
        return ledger.seal is not None
    if ledger.seal is not None:
        if (claim.ledger_head, claim.releases) != (ledger.head, ledger.release_count):
            raise IntegrityError(
                f"{run.claim} belongs to another ledger than {run.ledger}: restore both from one "
                "copy"
            )
    elif not is_proven_by_claim(run, content):
        raise IntegrityError(
            f"{run.path} has the claim of a ledger with {claim.releases} releases, and its ledger "
            f"holds {ledger.release_count} and no seal that fits: the ledger or another file was "
            "cut or altered, restore the run from a copy"
        )
    return True


def _require_no_more_rows(run: RunFiles, ledger: PrivacyLedger) -> None:
    """Refuse more rows of observations than the ledger can have steps."""
    rows = _rows(run.observations)
    steps = _most_steps(ledger)
    if rows is not None and steps is not None and rows > steps:
        raise IntegrityError(
            f"{run.observations} holds {rows} steps, its ledger at most {steps}: the ledger was "
            "cut, restore it from a copy"
        )


def _most_steps(ledger: PrivacyLedger) -> int | None:
    """Return an upper bound on the steps of the recorded sums; None if there is none."""
    steps = 0
    for release in ledger.releases:
        most = _steps_of(release, ledger)
        if most is None:
            return None
        steps += most
    return steps


def _steps_of(release: ReleaseEntry, ledger: PrivacyLedger) -> int | None:
    """Return an upper bound on the steps of one release, which may cover a whole pass."""
    if release.what != GRADIENT_SUM:
        return 0
    if not ledger.header.sampling.records_every_step:
        match release.mechanism:
            case (
                RandomAllocation()
                | TreeAggregation()
                | BandedMatrixFactorization()
                | BinnedMatrixFactorization()
            ):
                return release.mechanism.steps
            case _:
                return None
    return 1


def _rows(observations: Path) -> int | None:
    """Return the number of rows of observations; None without a readable file.

    A broken file is not refused here, but where it is read or its digest is compared.
    """
    try:
        with open_npz(InputFile(observations, limit=DATA_LIMIT)) as archive:
            shape = archive.headers["rows"].shape
    except (IntegrityError, KeyError):
        return None
    return shape[0] if shape else None
