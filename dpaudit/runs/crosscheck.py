"""Compare a run's ledger with the other files of its run, wherever a run is opened.

A ledger that is cut at the end of a line is a valid, shorter ledger. What contradicts it:

claim.json         names the head that the ledger has after its seal, and is on the disk before
                   the seal is: a sealed run has a claim, and of a claim the seal can be computed
model.safetensors  its metadata name the run and how many releases there were
observations.npz   has a row for each step
checkpoints/       progress.json says how many releases there were; the ledger may hold digests

Only small parts are read: metadata, shapes and progress. The model is hashed in one case, of a
run that has a claim and no seal.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpaudit.files.arrays import opened_npz
from dpaudit.files.opening import DATA, MIB, InputFile, opened
from dpaudit.runs.checkpoints import (
    complete_checkpoints,
    require_known_checkpoints,
    require_own_checkpoint,
)
from dpaudit.runs.files import read_if_there, sha256
from dpaudit.runs.layout import RunFiles
from dpaudit.runs.ledger_lines import Content, line_of
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import BookedRelease, PrivacyLedger, Seal
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    RandomAllocation,
    TreeAggregation,
)
from dpaudit.vocabulary.release_names import GRADIENT_SUM

RUN_KEY, RELEASES_KEY = "dpaudit_run", "dpaudit_releases"
"""Under which names a model's metadata hold the run's name and its number of releases."""

LONGEST_METADATA = 16 * MIB
"""The longest header of a .safetensors file that is read, in bytes."""


def require_consistent(run: RunFiles, content: Content) -> PrivacyLedger:
    """Return the ledger that counts, unless another file of its run contradicts it.

    A sealed run must have its claim.

    Args:
        run: Its files; those that are not there say nothing, but for the claim of a sealed run.
        content: Its ledger.

    Returns:
        The ledger, with the release that an incomplete last line stands for; without it, if
        the claim proves that the line is the seal.

    Raises:
        IntegrityError: Names the file that contradicts the ledger.
    """
    if content.ledger.seal is not None and not run.claim.exists():
        raise IntegrityError(
            f"{run.path} is sealed and has no claim.json: restore it, or write it with "
            "dpaudit finish"
        )
    return require_not_contradicted(run, content)


def require_not_contradicted(run: RunFiles, content: Content) -> PrivacyLedger:
    """Return what ``require_consistent`` does, also of a sealed run whose claim is missing.

    Raises:
        IntegrityError: Names the file that contradicts the ledger.
    """
    counted = content.ledger if _agrees_with_claim(run, content) else content.counted
    # Whole lines alone: what another file knows of was on the disk, so it was not incomplete.
    require_known_checkpoints(run.checkpoints, content.ledger)
    require_agreeing_model(run, content.ledger)
    _require_no_more_rows(run, content.ledger)
    return counted


def require_resumable(run: RunFiles, content: Content) -> PrivacyLedger:
    """Return what ``require_consistent`` does, unless the newest checkpoint was altered.

    Raises:
        IntegrityError: Names the file that contradicts the ledger.
    """
    counted = require_consistent(run, content)
    for newest in complete_checkpoints(run.checkpoints)[-1:]:
        require_own_checkpoint(newest, content.ledger)
    return counted


def seal_of(run: RunFiles, ledger: PrivacyLedger) -> Seal:
    """Return the seal that ends an unfinished run whose files are those that are there now.

    Raises:
        IntegrityError: A file cannot be read.
    """
    files = {path.name: sha256(path) for path in run.sealed_files}
    return Seal(len(ledger.releases), files)


def is_claimed(run: RunFiles, content: Content) -> bool:
    """Return whether the run has ended but for its seal: the claim proves what the seal is.

    An incomplete last line must be the beginning of this very seal.

    Raises:
        IntegrityError: A file cannot be read.
    """
    if content.ledger.seal is not None:
        return False
    claim = read_if_there(run.claim, Claim)
    if claim is None or claim.releases != len(content.ledger.releases):
        return False
    line, head = line_of(seal_of(run, content.ledger), content.ledger.head)
    rest = b"" if content.tail.complete else content.tail.text
    return claim.ledger_head == head and line.startswith(rest)


def model_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty if it has none, or is no such file.

    Whether the file is whole is checked where its weights are read or its digest is compared.
    """
    found = _safetensors_header(path).get("__metadata__")
    return found if isinstance(found, dict) else {}


def model_tensors(path: Path) -> dict[str, str]:
    """Return type and shape of each tensor of a .safetensors file, in words, by its name.

    Empty if it has none, or is no such file.
    """
    found = {}
    for name, one in sorted(_safetensors_header(path).items()):
        if name != "__metadata__" and isinstance(one, dict):
            found[name] = f"{one.get('dtype')} {one.get('shape')}"
    return found


def _safetensors_header(path: Path) -> dict[str, Any]:
    """Return the header of a .safetensors file; empty if it is no such file.

    The format begins with the header's length, 8 bytes, little-endian; the header is JSON.
    """
    try:
        with opened(InputFile(path, limit=DATA)) as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= LONGEST_METADATA else {}
    except (IntegrityError, ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def model_releases(run: RunFiles, ledger: PrivacyLedger) -> int | None:
    """Return after how many releases the model was made; None if it does not say.

    Raises:
        IntegrityError: It is of another run, or names no number.
    """
    metadata = model_metadata(run.model)
    if RUN_KEY not in metadata:
        return None
    if metadata[RUN_KEY] != ledger.header.run:
        raise IntegrityError(f"{run.model} is the model of another run than its ledger is of")
    releases = metadata.get(RELEASES_KEY)
    if not isinstance(releases, str) or not (releases.isascii() and releases.isdecimal()):
        raise IntegrityError(f"{run.model} does not say after how many releases it was made")
    return int(releases)


def require_agreeing_model(run: RunFiles, ledger: PrivacyLedger) -> None:
    """Refuse a model of another run, or one that was made by more releases than are recorded.

    Raises:
        IntegrityError: It is one of these.
    """
    releases = model_releases(run, ledger)
    if releases is not None and releases > len(ledger.releases):
        raise IntegrityError(
            f"{run.model} was made by {releases} releases, its ledger holds "
            f"{len(ledger.releases)}: the ledger was cut, restore it from a copy"
        )


def _agrees_with_claim(run: RunFiles, content: Content) -> bool:
    """Return whether the run has ended, as its claim proves; False for one that goes on.

    Raises:
        IntegrityError: Claim and ledger contradict each other.
    """
    ledger, claim = content.ledger, read_if_there(run.claim, Claim)
    if claim is None:
        return ledger.seal is not None
    if ledger.seal is not None:
        if (claim.ledger_head, claim.releases) != (ledger.head, len(ledger.releases)):
            raise IntegrityError(
                f"{run.claim} is of another ledger than {run.ledger}: restore both from one copy"
            )
    elif not is_claimed(run, content):
        raise IntegrityError(
            f"{run.path} has the claim of a ledger with {claim.releases} releases, and its ledger "
            f"holds {len(ledger.releases)} and no seal that fits: the ledger or another file was "
            "cut or altered, restore the run from a copy"
        )
    return True


def _require_no_more_rows(run: RunFiles, ledger: PrivacyLedger) -> None:
    rows = _rows(run.observations)
    steps = _most_steps(ledger)
    if rows is not None and steps is not None and rows > steps:
        raise IntegrityError(
            f"{run.observations} holds {rows} steps, its ledger at most {steps}: the ledger was "
            "cut, restore it from a copy"
        )


def _most_steps(ledger: PrivacyLedger) -> int | None:
    """Return how many steps the recorded sums can have been; None if the ledger does not say."""
    steps = 0
    for release in ledger.releases:
        most = _steps_of(release, ledger)
        if most is None:
            return None
        steps += most
    return steps


def _steps_of(release: BookedRelease, ledger: PrivacyLedger) -> int | None:
    """Return how many steps one release can cover; one release of a pass covers the pass."""
    if release.what != GRADIENT_SUM:
        return 0
    if not ledger.header.sampling.records_every_step:
        match release.mechanism:
            case RandomAllocation() | TreeAggregation() | BandedMatrixFactorization():
                return release.mechanism.steps
            case _:
                return None
    return 1


def _rows(observations: Path) -> int | None:
    """Return how many rows a file of observations has; None if there is no such file.

    A broken file says nothing here: whoever reads it, or compares its digest, refuses it.
    """
    try:
        with opened_npz(InputFile(observations, limit=DATA)) as archive:
            shape = archive.headers["rows"].shape
    except (IntegrityError, KeyError):
        return None
    return shape[0] if shape else None
