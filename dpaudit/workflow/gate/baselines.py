"""Baselines: the figures of a finished run, with which other runs are compared."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections import Counter
from pathlib import Path

from dpaudit.accountants.answers import (
    compared_by,
    compute_epsilon,
    costliest_ledger,
)
from dpaudit.files.archives import open_npz
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input
from dpaudit.gate.policy import Policy
from dpaudit.report.descriptions import partition_in_words
from dpaudit.runs.consistency import model_tensors
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.file_io import read_json, read_optional_json, require_new_file, sha256, write_json
from dpaudit.vocabulary.audit import AttackReport, AuditReport
from dpaudit.vocabulary.baseline import Baseline, ReleaseCount, measured_rates
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Composed, Repeated
from dpaudit.vocabulary.rounding import same_epsilon
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.gate.verification import require_bounds_match_counts, verify_measurements
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, claim_delta, claims_of_ledger

# Public facts about a run's data and model, for comparisons.

MAX_HEADER_BYTES = 100_000  # bytes of a table's first line
SHORT_DIGEST_LENGTH = 16  # digits of a digest that is shown


def public_data_facts(run: RunDirectory) -> dict[str, str]:
    """Return the public facts about a run's data, for comparisons.

    Args:
        run: The run.

    Returns:
        Descriptions by name; empty for your own training loop, which has no settings.

    Raises:
        IntegrityError: If the run's settings are broken.
    """
    if not run.config.exists():
        return {}
    settings = run.read_settings()
    data = settings.data
    scaled = "by its format" if data.feature_range is None else f"from {data.feature_range}"
    found = {
        "source": data.source,
        "label": data.label or "label, else the last column",
        "scaling": scaled,
        "held out": f"{data.test_fraction:g} of the records, split seed {data.split_seed}",
    }
    if isinstance(settings, FederatedConfig):
        found["partition"] = partition_in_words(settings.federation)
    columns = _columns(data)
    return found if columns is None else {**found, "columns": columns}


def public_model_facts(run: RunDirectory, ledger: PrivacyLedger) -> dict[str, str]:
    """Return the public facts about the model of a finished run: name, tensors and digest.

    Args:
        run: The run.
        ledger: Its ledger, whose seal holds the digest.

    Returns:
        Descriptions by name; empty where nothing is known.

    Raises:
        IntegrityError: If the run's settings are broken.
    """
    named = {"name": run.read_settings().model.model} if run.config.exists() else {}
    tensors = model_tensors(run.model)
    if not tensors:
        return named
    described = "; ".join(f"{name} {kind}" for name, kind in tensors.items())
    weights = {} if ledger.seal is None else ledger.seal.files
    return {
        **named,
        "tensors": str(len(tensors)),
        "architecture": _short(hashlib.sha256(described.encode()).hexdigest()),
        "weights": _short(weights.get(run.model.name, "")),
    }


def have_same_data(before: RunDirectory, after: RunDirectory) -> bool | None:
    """Compare the data files of two runs, as they are now.

    Args:
        before: The first run.
        after: The second run.

    Returns:
        Whether both files have the same bytes; None where a run names no file, a file is gone,
        or both runs name one file.
    """
    if not (before.config.exists() and after.config.exists()):
        return None
    first, second = (Path(run.read_settings().data.source) for run in (before, after))
    if first == second or not (first.is_file() and second.is_file()):
        return None
    return sha256(first) == sha256(second)


def _short(digest: str) -> str:
    return f"SHA-256 {digest[:SHORT_DIGEST_LENGTH]}" if digest else "not known"


def _columns(data: DataSettings) -> str | None:
    """Return the columns of a table, or the shape of a record; None where they are not known."""
    path = Path(data.source)
    try:
        if path.suffix == ".csv":
            with open_input(InputFile(path, limit=DATA_LIMIT)) as file:
                line = file.readline(MAX_HEADER_BYTES).decode()
            return ", ".join(next(csv.reader([line]), []))
        if path.suffix == ".npz":
            return _record_shape(path)
    except (DpauditError, ValueError, KeyError, csv.Error):
        return None  # the data may be gone or broken since the run was trained
    return None


def _record_shape(path: Path) -> str:
    with open_npz(InputFile(path, limit=DATA_LIMIT)) as archive:
        header = archive.headers["x"]
    return f"{math.prod(header.shape[1:])} features of type {header.dtype} and a label"


def baseline_of_run(run: RunDirectory, policy: Policy | None) -> Baseline:
    """Collect the figures of a finished run, after its measurements were verified.

    Args:
        run: The run.
        policy: Its section ``claim`` sets delta and accountant of the claim; None: the run's own.

    Returns:
        The figures; measurements of another ledger are left out.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If it is the ledger of one participant of a federation.
    """
    ledger = run.read_finished()
    federation = ledger.header.federation
    if federation is not None and federation.participant is not None:
        raise InvalidArgument("run", str(run.path), "the run of its federation")
    audit, attack = (
        read_optional_json(run.audit, AuditReport),
        read_optional_json(run.attack, AttackReport),
    )
    claim_at = claims_of_ledger(ledger)
    verify_measurements(run, ledger, audit, attack, claim_at)
    claim_policy = None if policy is None else policy.claim
    delta = claim_delta(run) if claim_policy is None else claim_policy.delta
    accountant = CLAIM_ACCOUNTANT if claim_policy is None else claim_policy.accountant
    return baseline_of_ledger(
        run,
        ledger,
        claim_at(delta, accountant),
        audit=audit,
        attack=attack,
    )


def baseline_of_ledger(
    run: RunDirectory,
    ledger: PrivacyLedger,
    claim: Claim,
    *,
    audit: AuditReport | None,
    attack: AttackReport | None,
) -> Baseline:
    """Collect the figures of a run that was read and verified.

    Args:
        run: The run.
        ledger: Its ledger.
        claim: Its claim.
        audit: Its audit; left out if it is of another ledger.
        attack: Its attack report; left out if it is of another ledger.

    Returns:
        The figures.
    """
    current = audit if audit is not None and audit.ledger_head == ledger.head else None
    further = attack if attack is not None and attack.ledger_head == ledger.head else None
    reports = [report for report in (current, further) if report is not None]
    costliest = costliest_ledger(ledger, claim.delta, compared_by(claim))
    counts = Counter((release.what, release.mechanism) for release in costliest.releases)
    return Baseline(
        run=run.name,
        claim=claim,
        clip_norm=costliest.header.clip_norm,
        recorded=tuple(
            ReleaseCount(what, release, times) for (what, release), times in counts.items()
        ),
        schedule_fixed_in_advance=costliest.header.schedule_fixed_in_advance,
        versions=ledger.header.versions,
        bounds=() if current is None else current.bounds,
        rates=tuple(rate for report in reports for rate in measured_rates(report.membership)),
        heldout_accuracy=None if current is None else current.heldout_accuracy,
        heldout_loss=None if current is None else current.heldout_loss,
        data=public_data_facts(run),
        model=public_model_facts(run, ledger),
    )


def require_other_run(baseline: Baseline, run: RunDirectory, ledger_head: str) -> None:
    """Refuse a run as its own baseline, as a run never exceeds its own figures.

    Args:
        baseline: The baseline.
        run: The run that is compared with it, for the message.
        ledger_head: Head of the run's ledger.

    Raises:
        InvalidArgument: If the baseline is of the same ledger.
    """
    if baseline.claim.ledger_head == ledger_head:
        allowed = f"the figures of an earlier run than {run.path}, which it was written from"
        raise InvalidArgument("baseline", baseline.run, allowed)


def read_baseline(path: Path, policy: Policy | None = None) -> Baseline:
    """Read a baseline file, or collect the figures of a run directory.

    Args:
        path: A file of ``dpaudit baseline write``, or a run directory.
        policy: For a run directory: its section ``claim`` sets delta and accountant.

    Returns:
        The baseline; its epsilon and lower bounds were recomputed from what it holds.

    Raises:
        InvalidArgument: If there is nothing at ``path``.
        IntegrityError: If the baseline is broken, altered, or of an unknown version.
    """
    if os.path.isdir(path):
        return baseline_of_run(open_run(path), policy)
    if not os.path.lexists(path):
        raise InvalidArgument("baseline", str(path), "a file that dpaudit baseline write wrote")
    baseline = read_json(path, Baseline)
    _require_own_claim(path, baseline)
    require_bounds_match_counts(path, baseline.bounds)
    return baseline


def _require_own_claim(path: Path, baseline: Baseline) -> None:
    """Refuse a baseline whose epsilon is not that of the releases that it lists.

    The cost of a schedule that was chosen during the run depends on the order of the releases,
    which a baseline does not hold: it is not recomputed.
    """
    claim = baseline.claim
    if not baseline.schedule_fixed_in_advance or not baseline.recorded:
        return
    mechanism = Composed(tuple(Repeated(one.mechanism, one.times) for one in baseline.recorded))
    again = compute_epsilon(
        claim.accountant, mechanism, claim.delta, claim.adjacency, claim.sampling
    ).epsilon
    if not same_epsilon(claim.epsilon.upper, again.upper):
        raise IntegrityError(
            f"{path}: epsilon of its claim is {claim.epsilon.upper:.9g}, the releases that it "
            f"lists give {again.upper:.9g}: write the baseline again from its run"
        )


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write a baseline; an older baseline is replaced, and no other file ever is.

    Args:
        path: Where to write it.
        baseline: The figures.

    Raises:
        InvalidArgument: If the path holds something else, or cannot be written.
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
