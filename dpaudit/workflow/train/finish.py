"""Complete a run whose process died at its very end; nothing is trained. No torch.

Files are written only where the existing ones prove that only the claim or the seal is missing:

sealed, no claim     the digests of the seal agree: an older version died before the claim
claimed, no seal     the claim holds the head that the seal gives the ledger
neither              the ledger's last line holds the digests of the released files
"""

from __future__ import annotations

from enum import Enum

from msgspec.structs import replace

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.checkpoints import remove_checkpoints
from dpaudit.runs.consistency import expected_seal, is_proven_by_claim
from dpaudit.runs.directory import RunDirectory, seal_interrupted_run
from dpaudit.runs.file_io import read_json, read_optional_json, sha256, write_json
from dpaudit.runs.ledger_file import complete_seal, ledger_lock, read_interrupted_run
from dpaudit.runs.ledger_format import LedgerContent, encode_line
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, require_delta
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, require_claim_of_ledger


class CompletedPart(Enum):
    """The part that was missing, as a clause about the run."""

    NOTHING = "is finished already: nothing was written"
    CLAIM = "was sealed without its claim: claim.json was written"
    SEAL = "had its claim without its seal: the seal was written"
    BOTH = "had its model alone: claim.json and the seal were written"


def finish_run(run: RunDirectory, delta: float | None) -> CompletedPart:
    """Write the missing parts of a run that has ended, if its files prove that it has ended.

    Args:
        run: The run; no process may be writing it.
        delta: Delta of a claim that is written; None: that of the run's settings.

    Returns:
        What was missing.

    Raises:
        IntegrityError: If the files contradict each other; nothing was written.
        InvalidArgument: If the run has not ended, if no delta is known, or if the existing claim
            has another delta.
        RunExists: If a process is writing the run.
    """
    if delta is not None:
        require_delta("delta", delta)
    with ledger_lock(run.ledger):
        content = read_interrupted_run(run)
    ledger = content.ledger
    if ledger.seal is not None:
        return _finish_sealed(run, content, delta)
    if is_proven_by_claim(run, content):
        _require_delta_of_claim(run, delta)
        require_claim_of_ledger(run, _sealed(run, content))
        complete_seal(run)
        done = CompletedPart.SEAL
    else:
        _require_ended(run, content)
        claim = claim_from_ledger(ledger, _delta(run, delta), CLAIM_ACCOUNTANT)
        seal_interrupted_run(run, content, claim)
        done = CompletedPart.BOTH
    run.read_finished()
    if run.config.exists():  # as dpaudit train does: checkpoints hold more than the released model
        remove_checkpoints(run.checkpoints)
    return done


def _finish_sealed(run: RunDirectory, content: LedgerContent, delta: float | None) -> CompletedPart:
    ledger = content.ledger
    assert ledger.seal is not None
    run.require_unaltered(ledger.seal.files)
    done = CompletedPart.SEAL if content.tail.complete else CompletedPart.NOTHING
    if run.claim.exists():
        _require_delta_of_claim(run, delta)
        require_claim_of_ledger(run, ledger)
    else:
        write_json(run.claim, claim_from_ledger(ledger, _delta(run, delta), CLAIM_ACCOUNTANT))
        done = CompletedPart.CLAIM
    if content.tail.complete:
        complete_seal(run)
    run.read_finished()
    return done


def _sealed(run: RunDirectory, content: LedgerContent) -> PrivacyLedger:
    """Return the ledger as it will be once it is sealed."""
    seal = expected_seal(run, content.ledger)
    head = encode_line(seal, content.ledger.head)[1]
    return replace(content.ledger, lines=(*content.ledger.lines, seal), head=head)


def _require_ended(run: RunDirectory, content: LedgerContent) -> None:
    """Refuse a run that may not have ended."""
    ledger = content.ledger
    if ledger.ended is not None and not ledger.accounted_ledgers:
        raise InvalidArgument(
            "run", str(run.path), "one with noise: it has ended and released nothing with noise, "
            "so there is nothing to claim",
        )  # fmt: skip
    text = b"" if content.tail.complete else content.tail.text
    # An older version wrote no such line; then an incomplete seal may hold the digest.
    proven = ledger.ended is not None or _names_the_model(run, text)
    if ledger.ended is not None:
        run.require_unaltered(ledger.ended.files)
    if proven and encode_line(expected_seal(run, ledger), ledger.head)[0].startswith(text):
        return
    raise InvalidArgument(
        "run", str(run.path), "one whose last step is done: resume it with dpaudit train "
        "--resume --out RUN, or by make_private(resume=...) in your own training loop",
    )  # fmt: skip


def _names_the_model(run: RunDirectory, text: bytes) -> bool:
    """Return whether an incomplete last line holds the digest of the existing model."""
    return run.model.is_file() and sha256(run.model).encode() in text


def _delta(run: RunDirectory, delta: float | None) -> float:
    if delta is not None:
        return delta
    if run.config.exists():
        return run.read_settings().privacy.delta
    raise InvalidArgument("delta", None, "given by --delta: the run has no settings that set it")


def _require_delta_of_claim(run: RunDirectory, delta: float | None) -> None:
    claim = read_optional_json(run.claim, Claim)
    if claim is not None and delta not in (None, claim.delta):
        raise InvalidArgument("delta", delta, f"{claim.delta}, as in the run's claim.json")


def finish_and_read_claim(run: RunDirectory, delta: float) -> Claim:
    """Complete a run if parts are missing, and read its claim.

    Args:
        run: The run.
        delta: Delta of the claim.

    Returns:
        The claim of the finished run.

    Raises:
        IntegrityError: If the files contradict each other.
        InvalidArgument: If the run has not ended, or its claim has another delta.
        RunExists: If a process is writing the run.
    """
    finish_run(run, delta)
    return read_json(run.claim, Claim)
