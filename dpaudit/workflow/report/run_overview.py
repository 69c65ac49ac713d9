"""Collect the state of one run or of all runs of a folder; needs no torch and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dpaudit.accountants.answers import claim_from_ledger, costliest_ledger
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import read_json, read_optional_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.errors import DpauditError, IntegrityError, InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.run_overview import (
    LedgerSummary,
    RunFile,
    RunList,
    RunOverview,
    RunState,
    RunSummary,
)
from dpaudit.vocabulary.settings import RunConfig
from dpaudit.vocabulary.verdict import Verdict
from dpaudit.workflow.gate.policy_sources import project_digest
from dpaudit.workflow.gate.verdict_history import count_steps
from dpaudit.workflow.run_claims import (
    CLAIM_ACCOUNTANT,
    claim_delta,
    require_claim_of_ledger,
    require_current_verdict,
)
from dpaudit.workflow.train.federated_plan import planned_steps

T = TypeVar("T")
DEFAULT_DELTA = 1e-5  # compares the participants of a run whose own delta is not known


@dataclass
class _Reader:
    """Reads the parts of one run and collects what fails.

    ``damaged`` is set by what an intact run never has; a verdict that is out of date, or an
    epsilon without a bound, is a problem of an intact run.
    """

    problems: list[str]
    damaged: bool = False

    def read(self, part: Callable[[], T], *, of_intact_run: bool = False) -> T | None:
        """Return what ``part`` returns, or None if it fails."""
        try:
            return part()
        except (DpauditError, OSError) as error:
            self.problems.append(str(error))
            self.damaged |= not of_intact_run
            return None


def list_runs(folder: Path) -> RunList:
    """Summarize every run in a folder, or one run.

    Args:
        folder: A folder of run directories, or a run directory.

    Returns:
        One summary per run, by name; other folders are left out.

    Raises:
        InvalidArgument: If there is no such folder.
    """
    if not folder.is_dir():
        raise InvalidArgument("folder", str(folder), "a folder of runs that exists")
    found = [folder] if RunDirectory(folder).ledger.exists() else sorted(folder.iterdir())
    runs = (RunDirectory(path) for path in found)
    return RunList(tuple(describe_run(run).summary for run in runs if run.ledger.exists()))


def describe_run(run: RunDirectory) -> RunOverview:
    """Collect settings, ledger, files, claim and verdict of a run in any state.

    Epsilon is recomputed from the ledger. The files of a finished run are verified.

    Args:
        run: The run; it may be unfinished or damaged.

    Returns:
        All parts that can be read, and one message for each of the others.
    """
    reader = _Reader([])
    config = reader.read(run.read_settings) if run.config.exists() else None
    ledger = reader.read(lambda: _ledger(run))
    claim, verdict = None, None
    if ledger is not None and ledger.seal is None and run.claim.exists():
        reader.read(
            run.read_finished
        )  # its seal is missing, or cut off: it cannot be shown as whole
    if ledger is not None and ledger.seal is not None:
        own = ledger.header.federation
        alone = own is not None and own.participant is not None  # a participant has no claim
        claim = reader.read(lambda: _verified_claim(run, ledger), of_intact_run=alone)
    if ledger is not None:
        verdict = reader.read(lambda: _current_verdict(run, ledger), of_intact_run=True)
    shown = claim
    if shown is None and ledger is not None and ledger.release_count and not reader.damaged:
        shown = reader.read(lambda: _claim_so_far(run, ledger), of_intact_run=True)
    if ledger is not None and _ended_without_noise(ledger):
        reader.problems.append("it has ended without any noise: it has no claim, and no privacy")
    problems = tuple(dict.fromkeys(reader.problems))
    delta = DEFAULT_DELTA if shown is None else shown.delta
    return RunOverview(
        summary=RunSummary(
            run=run.name,
            state=_state(ledger, reader),
            problem="; ".join(problems),
            steps=None if ledger is None else count_steps(ledger),
            planned_steps=None if config is None else planned_steps(config),
            epsilon_upper=None if shown is None else shown.epsilon.upper,
            delta=None if shown is None else shown.delta,
            outcome=None if verdict is None else verdict.outcome,
            other_policy=_is_by_other_policy(verdict),
        ),
        settings=config if isinstance(config, RunConfig) else None,
        federated_settings=config if isinstance(config, FederatedConfig) else None,
        ledger=None if ledger is None else _summary(ledger, delta),
        files=tuple(
            RunFile(run.sealed_name(path), path.stat().st_size)
            for path in sorted((*run.all_files, *run.participant_ledgers))
            if path.is_file()
        ),
        claim=claim,
        verdict=verdict,
        problems=problems,
    )


def _is_by_other_policy(verdict: Verdict | None) -> bool:
    """Return whether a verdict is by another policy than that of the working directory."""
    basis = None if verdict is None else verdict.basis
    return basis is not None and not basis.is_of_project(project_digest())


def _state(ledger: PrivacyLedger | None, reader: _Reader) -> RunState:
    if ledger is None or reader.damaged:
        return RunState.DAMAGED
    if ledger.seal is not None:
        return RunState.FINISHED
    return RunState.ENDED if _ended_without_noise(ledger) else RunState.UNFINISHED


def _ended_without_noise(ledger: PrivacyLedger) -> bool:
    return ledger.ended is not None and not ledger.release_count


def _ledger(run: RunDirectory) -> PrivacyLedger:
    """Return the ledger; the files of a finished run are those that it was sealed with."""
    ledger = run.read_unfinished()
    return ledger if ledger.seal is None else run.read_finished()


def _verified_claim(run: RunDirectory, ledger: PrivacyLedger) -> Claim:
    require_claim_of_ledger(run, ledger)
    return read_json(run.claim, Claim)


def _claim_so_far(run: RunDirectory, ledger: PrivacyLedger) -> Claim:
    return claim_from_ledger(ledger, claim_delta(run), CLAIM_ACCOUNTANT)


def _current_verdict(run: RunDirectory, ledger: PrivacyLedger) -> Verdict | None:
    verdict = read_optional_json(run.verdict, Verdict)
    if verdict is None:
        return None
    if verdict.ledger_head != ledger.head:
        raise IntegrityError(f"{run.verdict} is of another ledger: run dpaudit gate {run.path}")
    require_current_verdict(run, verdict)
    return verdict


def _summary(ledger: PrivacyLedger, delta: float) -> LedgerSummary:
    """Summarize a ledger; the participants of a federation are compared at ``delta``."""
    header = ledger.header
    return LedgerSummary(
        releases=ledger.release_count,
        adjacency=header.adjacency,
        unit=header.unit,
        sampling=header.sampling,
        randomness=header.randomness,
        clip_norm=header.clip_norm,
        unaccounted=ledger.unaccounted,
        head=ledger.head,
        mechanism=_mechanism(ledger, delta),
        federation=header.federation,
        spot_checks="" if header.federation else ledger.spot_checks,
        participants={name: len(one.releases) for name, one in ledger.participants.items()},
        noise=header.noise,
    )


def _mechanism(ledger: PrivacyLedger, delta: float) -> Mechanism | None:
    """Return what the claim accounts for; None without a release, or where none has a bound."""
    if not ledger.accounted_ledgers:
        return None
    try:
        return costliest_ledger(ledger, delta).mechanism
    except DpauditError:  # epsilon is not known either, and the summary says why
        return None
