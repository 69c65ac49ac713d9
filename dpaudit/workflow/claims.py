"""Which claim a finished run makes of itself, and whether its ledger bears it out."""

from __future__ import annotations

import math

import msgspec

from dpaudit.accountants.answers import claim_of
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.verdict import Verdict

CLAIMING_ACCOUNTANT = "pld"


def claim_delta(run: RunDirectory) -> float:
    """Return the delta that a run was made for: its settings', or its claim's.

    Raises:
        InvalidArgument: it has neither.
    """
    if run.config.exists():
        return run.read_config().privacy.delta
    if run.claim.exists():
        return read_json(run.claim, Claim).delta
    raise InvalidArgument(
        "run", str(run.path), "one with settings or a claim, where no policy names a delta"
    )


def require_measured_before(run: RunDirectory, verdict: Verdict) -> None:
    """Refuse a verdict on other measurements than those that are there now.

    Raises:
        IntegrityError: something was measured, or taken away, since.
    """
    if verdict.measured != run.measured():
        raise IntegrityError(
            f"{run.verdict} is older than what was measured since: judge {run.path} again"
        )


def require_own_claim(run: RunDirectory, ledger: PrivacyLedger) -> None:
    """Refuse a written claim that is not its ledger's; the last digits may differ by machine.

    Raises:
        IntegrityError: it is of another ledger, or says another epsilon.
    """
    written = read_json(run.claim, Claim)
    again = claim_of(ledger, written.delta, written.accountant)
    same_ends = math.isclose(
        written.epsilon.upper, again.epsilon.upper, rel_tol=1e-6
    ) and math.isclose(written.epsilon.lower, again.epsilon.lower, rel_tol=1e-6)
    rest = msgspec.structs.replace(
        written, epsilon=again.epsilon, dpaudit_version=again.dpaudit_version
    )
    if not same_ends or rest != again:
        raise IntegrityError(
            f"{run.claim} is not what its ledger says: restore both from one copy of the run"
        )
