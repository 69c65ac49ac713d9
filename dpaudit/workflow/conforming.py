"""Does a trainer do what it claims? The trainer of a run, or one of the user's own."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.accountants.answers import claim_of
from dpaudit.attacks.conformance import MakeTrainer, Record, check, result_of
from dpaudit.attacks.conformance.provenance import check_provenance
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import read_arrays, read_if_there, write_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta

RUN_RECORDS = 256
"""Of a run's records, so many are looked at: a step on more is no other step."""


def check_run(run: RunDirectory, claim: StepClaim | None = None) -> ConformanceResult:
    """Check the trainer that a finished run's settings describe, and the run's claim.

    What is found is written into the run. The weights are not looked at: what is checked is
    that this trainer, under these settings, does what it claims.

    Args:
        run: A finished run.
        claim: What is claimed of each step; None: what the settings say.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
        InvalidArgument: its data are gone, or its model cannot be replayed.
    """
    from dpaudit.trainer.conforming import RunBench  # noqa: PLC0415 - torch
    from dpaudit.trainer.run import prepare  # noqa: PLC0415

    ledger = run.read_finished()
    bench = RunBench.of(prepare(run.read_config()))
    asked = claim or bench.claim()
    findings = list(check(bench, asked, records=bench.records(RUN_RECORDS)).findings)
    said = read_if_there(run.claim, Claim) or _own_claim(run, ledger)
    findings += check_provenance(ledger, said, steps=asked)
    return _written(run, result_of(asked, findings, ledger.head))


def _own_claim(run: RunDirectory, ledger: PrivacyLedger) -> Claim:
    return claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)


def _written(run: RunDirectory, result: ConformanceResult) -> ConformanceResult:
    write_json(run.conformance, result)
    return result


def check_factory(
    name: str, claim: StepClaim, records: Path | None, run: RunDirectory | None = None
) -> ConformanceResult:
    """Check the trainer that ``package.module:make_trainer`` makes.

    What is found is written into ``run``, if there is one: whether its ledger books what is
    claimed is checked, too. That this trainer made the run, nothing shows.

    Args:
        name: Where it is.
        claim: What is claimed of each step.
        records: An .npz with the arrays x and y; None: those that stand beside
            ``make_trainer`` under the name ``records``.
        run: A finished run that the trainer is said to have made.

    Raises:
        InvalidArgument: there is no such trainer, or there are no records.
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    ledger = None if run is None else run.read_finished()  # before minutes are spent
    module, make_trainer = _found(name)
    result = check(make_trainer, claim, records=_records(module, records))
    if run is None or ledger is None:
        return result
    said = read_if_there(run.claim, Claim) or _own_claim(run, ledger)
    findings = [*result.findings, *check_provenance(ledger, said, steps=claim)]
    return _written(run, result_of(claim, findings, ledger.head))


def read_claim(path: Path) -> StepClaim:
    """Read what is claimed of each step from a TOML file.

    Raises:
        InvalidArgument: there is no such file, or it is no such claim.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), StepClaim)
    except OSError as error:
        raise InvalidArgument("claim", str(path), f"a file ({error.strerror})") from error
    except (ValueError, msgspec.MsgspecError) as error:
        raise InvalidArgument("claim", str(path), f"a claim in TOML: {error}") from error


def _found(name: str) -> tuple[Any, MakeTrainer]:
    where, _, what = name.partition(":")
    try:
        module = importlib.import_module(where)
        return module, getattr(module, what)
    except (ImportError, AttributeError, ValueError) as error:
        allowed = f"a run, or package.module:make_trainer that can be imported ({error})"
        raise InvalidArgument("trainer", name, allowed) from error


def _records(module: Any, path: Path | None) -> list[Record]:
    if path is not None:
        arrays = read_arrays(path)
        if not {"x", "y"} <= set(arrays):
            raise InvalidArgument("records", sorted(arrays), "an .npz with the arrays x and y")
        return list(zip(arrays["x"], arrays["y"], strict=True))
    found = getattr(module, "records", None)
    if found is None:
        raise InvalidArgument("records", None, "given by --records, or beside make_trainer")
    return list(found)
