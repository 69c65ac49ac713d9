"""Complete a run whose process died at its very end; nothing is trained and torch is not needed.

It is written only where the files prove that nothing is missing but claim or seal:

sealed, no claim     the digests of the seal agree: an older version died before the claim
claimed, no seal     the claim names the head that the seal gives the ledger
neither              the ledger's last line holds the digests of what ships
"""

from __future__ import annotations

from enum import Enum

from msgspec.structs import replace

from dpaudit.accountants.answers import claim_of
from dpaudit.runs.checkpoints import remove_checkpoints
from dpaudit.runs.crosscheck import is_claimed, seal_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_if_there, sha256, write_json
from dpaudit.runs.ledger_file import complete_seal, locked, read_dead_run
from dpaudit.runs.ledger_lines import Content, line_of
from dpaudit.runs.sealing import seal_dead_run
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import InvalidArgument, require_delta
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, require_own_claim


class Finished(Enum):
    """What was missing, in words."""

    NOTHING = "is finished already: nothing was written"
    CLAIM = "was sealed without its claim: claim.json was written"
    SEAL = "had its claim without its seal: the seal was written"
    BOTH = "had its model alone: claim.json and the seal were written"


def finish(run: RunDirectory, delta: float | None) -> Finished:
    """Write what a run that has ended lacks, if its files prove that it has ended.

    Args:
        run: The run; no process may be writing it.
        delta: Of a claim that is written; None: that of the run's settings.

    Returns:
        What was missing.

    Raises:
        IntegrityError: The files contradict each other; nothing was written.
        InvalidArgument: The run has not ended, or no delta is known, or the claim that is
            there is of another one.
        RunExists: A process writes the run.
    """
    if delta is not None:
        require_delta("delta", delta)
    with locked(run.ledger):
        content = read_dead_run(run)
    ledger = content.ledger
    if ledger.seal is not None:
        return _finish_sealed(run, content, delta)
    if is_claimed(run, content):
        _require_delta_of_claim(run, delta)
        require_own_claim(run, _sealed(run, content))
        complete_seal(run)
        done = Finished.SEAL
    else:
        _require_ended(run, content)
        claim = claim_of(ledger, _delta(run, delta), CLAIMING_ACCOUNTANT)
        seal_dead_run(run, content, claim)
        done = Finished.BOTH
    run.read_finished()
    if run.config.exists():  # as dpaudit train does: they hold more than the model
        remove_checkpoints(run.checkpoints)
    return done


def _finish_sealed(run: RunDirectory, content: Content, delta: float | None) -> Finished:
    ledger = content.ledger
    assert ledger.seal is not None
    run.require_unaltered(ledger.seal.files)
    done = Finished.SEAL if content.tail.complete else Finished.NOTHING
    if run.claim.exists():
        _require_delta_of_claim(run, delta)
        require_own_claim(run, ledger)
    else:
        write_json(run.claim, claim_of(ledger, _delta(run, delta), CLAIMING_ACCOUNTANT))
        done = Finished.CLAIM
    if content.tail.complete:
        complete_seal(run)
    run.read_finished()
    return done


def _sealed(run: RunDirectory, content: Content) -> PrivacyLedger:
    """Return the ledger as it will be once it is sealed."""
    seal = seal_of(run, content.ledger)
    head = line_of(seal, content.ledger.head)[1]
    return replace(content.ledger, lines=(*content.ledger.lines, seal), head=head)


def _require_ended(run: RunDirectory, content: Content) -> None:
    """Refuse a run that may still have steps to take.

    Raises:
        IntegrityError: Its model is of another run.
        InvalidArgument: Nothing proves that it has ended.
    """
    ledger = content.ledger
    text = b"" if content.tail.complete else content.tail.text
    # An older version wrote no such line, but the beginning of its seal may be there.
    bound = ledger.ended is not None or _names_the_model(run, text)
    if ledger.ended is not None:
        run.require_unaltered(ledger.ended.files)
    if bound and line_of(seal_of(run, ledger), ledger.head)[0].startswith(text):
        return
    raise InvalidArgument(
        "run", str(run.path), "one that has taken its last step: resume it with dpaudit train "
        "--resume --out RUN, or by make_private(resume=...) in a loop of your own",
    )  # fmt: skip


def _names_the_model(run: RunDirectory, text: bytes) -> bool:
    """Return whether an incomplete last line holds the digest of the model that is there."""
    return run.model.is_file() and sha256(run.model).encode() in text


def _delta(run: RunDirectory, delta: float | None) -> float:
    if delta is not None:
        return delta
    if run.config.exists():
        return run.read_config().privacy.delta
    raise InvalidArgument("delta", None, "given by --delta: the run has no settings that name it")


def _require_delta_of_claim(run: RunDirectory, delta: float | None) -> None:
    claim = read_if_there(run.claim, Claim)
    if claim is not None and delta not in (None, claim.delta):
        raise InvalidArgument("delta", delta, f"{claim.delta}, as in the run's claim.json")
