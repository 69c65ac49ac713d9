"""The end of a run: its claim is on the disk before its seal.

Order: model.safetensors, observations.npz, a ledger line with their digests, claim.json, seal.
The claim names the head that the ledger has after the seal, which is computed from the digests
of the files. So a process that
dies at any point leaves a run that goes on, or one whose claim proves the seal that it lacks
(``ledger_file.complete_seal`` writes it), or a finished one.
"""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace

from dpaudit.runs.crosscheck import seal_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import sha256, write_json
from dpaudit.runs.ledger_file import LedgerWriter, complete_seal
from dpaudit.runs.ledger_lines import Content, line_of
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import DpauditError, IntegrityError


def seal_run(run: RunDirectory, writer: LedgerWriter, claim: Claim) -> None:
    """Write the claim, then seal the ledger over the run's files, which are all there.

    Args:
        run: Where the files are.
        writer: The run's ledger; it is closed.
        claim: Computed from the ledger as it is now; its ``ledger_head`` is filled in.

    Raises:
        ForkedSession: This process is not the one that opened the ledger.
        IntegrityError: A file cannot be read, the claim is of another number of releases, or
            somebody else wrote the ledger.
        InvalidArgument: The claim cannot be written; then the run goes on without one.
    """
    writer.require_writable()
    with writer.exclusive:
        if claim.releases != writer.releases:
            raise IntegrityError(
                f"the claim is of {claim.releases} releases, {writer.path} holds {writer.releases}"
            )
        files = {path.name: sha256(path) for path in run.sealed_files}
        writer.end(files)
        _write_claim(run, replace(claim, ledger_head=writer.head_after_seal(files)))
        writer.seal(files)


def seal_dead_run(run: RunDirectory, content: Content, claim: Claim) -> None:
    """Write the claim and the seal of a run whose process died between model and seal.

    Args:
        run: Where the files are.
        content: Its ledger; an incomplete last line must be the beginning of the seal.
        claim: Computed from that ledger; its ``ledger_head`` is filled in.

    Raises:
        IntegrityError: A file cannot be read, or contradicts the ledger.
        InvalidArgument: The claim cannot be written.
        RunExists: A process writes the ledger.
    """
    _, head = line_of(seal_of(run, content.ledger), content.ledger.head)
    _write_claim(run, replace(claim, ledger_head=head))
    complete_seal(run)


def _write_claim(run: RunDirectory, claim: Claim) -> None:
    try:
        write_json(run.claim, claim)
    except DpauditError:
        # It may be there, and not surely on the disk: without its seal it would end the run.
        with suppress(OSError):
            run.claim.unlink(missing_ok=True)
        raise
