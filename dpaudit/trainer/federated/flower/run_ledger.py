"""The ledger of a Flower server: begun in a run directory, or continued after a restart.

A ServerApp that restarts runs the same code again. So opening a ledger continues one that is
there: an earlier release of the same run always counts. No torch, and no Flower.
"""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from msgspec.structs import replace

import dpaudit
from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.directory import RunDirectory, create_run, seal_run
from dpaudit.runs.ledger_file import has_no_release
from dpaudit.trainer.federated.ledgers import FederationLedger
from dpaudit.trainer.session.release_account import PrivacyBudget
from dpaudit.vocabulary.errors import InvalidArgument, RunLocked
from dpaudit.vocabulary.ledger import LedgerHeader, PrivacyLedger, ResumeEntry

CLAIM_ACCOUNTANT = "pld"


def library_versions() -> dict[str, str]:
    """Return the versions of dpaudit and Flower; the latter is not imported.

    Returns:
        Version by name of the library, without one that is not installed.
    """
    found = {"dpaudit": dpaudit.__version__}
    with suppress(PackageNotFoundError):  # the accountant is usable without it
        found["flwr"] = version("flwr")
    return found


def open_ledger(
    out: Path, header: LedgerHeader, *, step: int = 0, budget: PrivacyBudget | None = None
) -> FederationLedger:
    """Begin the ledger of a server, or continue the one that is in its run directory.

    Args:
        out: The run directory.
        header: The header of a new ledger. An earlier one must agree with it, apart from the
            run's name, the versions and the source of randomness.
        step: The first round of this process, for the line that records the resumption.
        budget: The budget; None: there is none.

    Returns:
        The ledger; every earlier release is counted.

    Raises:
        RunExists: If the run is finished, or the path is in use.
        RunLocked: If another process is writing the ledger.
        InvalidArgument: If the earlier run has other settings.
        IntegrityError: If the earlier ledger is damaged, or another file contradicts it.
    """
    run = RunDirectory(out)
    if not run.ledger.exists() or has_no_release(run.ledger):
        create_run(out)
        return FederationLedger.begin(run.ledger, header, budget)
    found = run.read_unfinished()
    require_same_settings(found, header)
    resumed = ResumeEntry(step, header.randomness)
    ledger = FederationLedger.resume(run.ledger, found, resumed, budget)
    if ledger.writer is not None and ledger.writer.releases != len(found.releases):
        ledger.close()  # another process wrote between reading and locking
        raise RunLocked(f"{out} was written by another process: try again")
    return ledger


def require_same_settings(found: PrivacyLedger, header: LedgerHeader) -> None:
    """Refuse to continue a ledger of other settings.

    Args:
        found: The earlier ledger.
        header: The header that a new ledger would have.

    Raises:
        InvalidArgument: If a field differs that the guarantee depends on; the error names it.
    """
    earlier = found.header
    same = replace(
        header, run=earlier.run, versions=earlier.versions, randomness=earlier.randomness
    )
    for name in header.__struct_fields__:
        now, before = getattr(same, name), getattr(earlier, name)
        if now != before:
            allowed = f"{before} as in the ledger that is continued, or the run another one"
            raise InvalidArgument(name, str(now), allowed)


def finish_run(ledger: FederationLedger, delta: float) -> RunDirectory:
    """Write the claim and seal the ledger of a server.

    Args:
        ledger: The ledger, with at least one release; nothing can be recorded afterwards.
        delta: Delta of the claim, in (0, 1).

    Returns:
        The finished run.

    Raises:
        IntegrityError: If no release is recorded, or a file of the run was altered.
        InvalidArgument: If the ledger is in memory alone.
    """
    if ledger.writer is None:
        raise InvalidArgument("ledger", "one in memory", "one in a run directory")
    run = RunDirectory(ledger.writer.path.parent)
    claim = claim_from_ledger(run.read_ledger(), delta, CLAIM_ACCOUNTANT)
    seal_run(run, ledger.writer, claim)
    return run
