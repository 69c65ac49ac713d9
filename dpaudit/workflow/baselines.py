"""The figures of a finished run, as other runs are compared with it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from dpaudit.accountants.answers import claim_of, epsilon_by
from dpaudit.gate.policy import Policy
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.files import read_if_there, read_json, require_new_file, write_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline, Booked, rates_of
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Repeated
from dpaudit.vocabulary.tolerance import same_epsilon
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta
from dpaudit.workflow.public_figures import public_data, public_model
from dpaudit.workflow.recomputed_bounds import checked_measurements, require_bounds


def baseline_of_run(run: RunDirectory, policy: Policy | None) -> Baseline:
    """Return the figures of ``run``, its claim as ``policy`` asks for it, or as it has it.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    ledger = run.read_finished()
    audit, attack = read_if_there(run.audit, AuditReport), read_if_there(run.attack, AttackReport)
    checked_measurements(run, ledger, audit, attack)
    asked = None if policy is None else policy.claim
    delta = claim_delta(run) if asked is None else asked.delta
    accountant = CLAIMING_ACCOUNTANT if asked is None else asked.accountant
    return baseline_of(
        run,
        ledger,
        claim_of(ledger, delta, accountant),
        audit=audit,
        attack=attack,
    )


def baseline_of(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    *,
    audit: AuditReport | None,
    attack: AttackReport | None,
) -> Baseline:
    """Return the figures of a run that was read; what is of another ledger is left out."""
    current = audit if audit is not None and audit.ledger_head == ledger.head else None
    further = attack if attack is not None and attack.ledger_head == ledger.head else None
    reports = [report for report in (current, further) if report is not None]
    counts = Counter((release.what, release.mechanism) for release in ledger.releases)
    return Baseline(
        run=run.name,
        claim=claim,
        clip_norm=ledger.header.clip_norm,
        booked=tuple(Booked(what, release, times) for (what, release), times in counts.items()),
        schedule_fixed_in_advance=ledger.header.schedule_fixed_in_advance,
        versions=ledger.header.versions,
        bounds=() if current is None else current.bounds,
        rates=tuple(rate for report in reports for rate in rates_of(report.membership)),
        heldout_accuracy=None if current is None else current.heldout_accuracy,
        data=public_data(run),
        model=public_model(run, ledger),
    )


def require_other_run(baseline: Baseline, run: RunDirectory, ledger_head: str) -> None:
    """Refuse a run as its own baseline: it would be no worse than itself whatever it is.

    Raises:
        InvalidArgument: The baseline is of the very same ledger.
    """
    if baseline.claim.ledger_head == ledger_head:
        allowed = f"the figures of an earlier run than {run.path}, which it was written from"
        raise InvalidArgument("baseline", baseline.run, allowed)


def read_baseline(path: Path, policy: Policy | None = None) -> Baseline:
    """Read what ``dpaudit baseline write`` wrote, or the figures of a run directory.

    The claim of a run directory is the one that ``policy`` asks for.

    Raises:
        InvalidArgument: there is nothing.
        IntegrityError: it is broken, or an unknown version.
    """
    if os.path.isdir(path):
        return baseline_of_run(open_run(path), policy)
    if not os.path.lexists(path):
        raise InvalidArgument("baseline", str(path), "a file that dpaudit baseline write wrote")
    baseline = read_json(path, Baseline)
    _require_own_claim(path, baseline)
    require_bounds(path, baseline.bounds)
    return baseline


def _require_own_claim(path: Path, baseline: Baseline) -> None:
    """Refuse a baseline whose epsilon is not that of the releases that it lists.

    A schedule that was chosen during the run is priced by a filter, in their order, which a
    baseline does not hold.
    """
    claim = baseline.claim
    if not baseline.schedule_fixed_in_advance or not baseline.booked:
        return
    mechanism = Composed(tuple(Repeated(one.mechanism, one.times) for one in baseline.booked))
    again = epsilon_by(
        claim.accountant, mechanism, claim.delta, claim.adjacency, claim.sampling
    ).epsilon
    if not same_epsilon(claim.epsilon.upper, again.upper):
        raise IntegrityError(
            f"{path}: epsilon of its claim is {claim.epsilon.upper:.9g}, the releases that it "
            f"lists give {again.upper:.9g}: write the baseline again from its run"
        )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write ``baseline``; an older baseline is replaced, and nothing else ever is.

    Raises:
        InvalidArgument: the path holds something else, or cannot be written.
    """
    require_new_file("output", path)
    if os.path.lexists(path):
        _require_baseline(path)
    write_json(path, baseline)


def _require_baseline(path: Path) -> None:
    try:
        read_json(path, Baseline)
    except IntegrityError as error:
        raise InvalidArgument("output", str(path), "a new file, or an older baseline") from error
