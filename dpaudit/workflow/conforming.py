"""Does a trainer do what it claims? The trainer of a run, or one of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.accountants.answers import claim_of
from dpaudit.attacks.conformance import MakeTrainer, Record, check, result_of
from dpaudit.attacks.conformance.provenance import check_provenance
from dpaudit.files.arrays import read_npz
from dpaudit.files.documents import read_toml_document
from dpaudit.files.opening import DATA, SETTINGS, InputFile
from dpaudit.files.user_code import imported
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import PRIVATE, read_if_there, write_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.workflow.claims import CLAIMING_ACCOUNTANT, claim_delta

RUN_RECORDS = 256
"""Of a run's records, so many are looked at: a step on more is no other step."""


def check_run(
    run: RunDirectory, claim: StepClaim | None = None, probes: Path | None = None
) -> ConformanceResult:
    """Check the trainer that a finished run's settings describe, and the run's claim.

    What is found is written into the run. The weights are not looked at: what is checked is
    that this trainer, under these settings, does what it claims.

    Args:
        run: A finished run.
        claim: What is claimed of each step; None: what the settings say.
        probes: An .npz with the arrays x and y: records to replay, as the trained part of the
            model takes them; None: such as are made from the run's records.

    Raises:
        IntegrityError: the run is unfinished, or a file is missing or altered.
        InvalidArgument: its data are gone, or the probes are no such file.
    """
    from dpaudit.trainer.conforming import RunBench  # noqa: PLC0415 - torch
    from dpaudit.trainer.run import prepare  # noqa: PLC0415

    ledger = run.read_finished()
    bench = RunBench.of(prepare(run.read_config()))
    asked = claim or bench.claim()
    records, given = bench.records(RUN_RECORDS), _probes(probes)
    findings = list(check(bench, asked, records=records, probes=given).findings)
    said = read_if_there(run.claim, Claim) or _own_claim(run, ledger)
    findings += check_provenance(ledger, said, steps=asked)
    return _written(run, result_of(asked, findings, ledger.head))


def _own_claim(run: RunDirectory, ledger: PrivacyLedger) -> Claim:
    return claim_of(ledger, claim_delta(run), CLAIMING_ACCOUNTANT)


def _written(run: RunDirectory, result: ConformanceResult) -> ConformanceResult:
    write_json(run.conformance, result, PRIVATE)
    return result


def check_factory(
    name: str,
    claim: StepClaim,
    records: Path | None,
    run: RunDirectory | None = None,
    probes: Path | None = None,
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
        probes: An .npz with the arrays x and y: records to replay; None: such as are made.

    Raises:
        InvalidArgument: there is no such trainer, or there are no records.
        IntegrityError: the run is unfinished, or a file is missing or altered.
    """
    ledger = None if run is None else run.read_finished()  # before minutes are spent
    module, make_trainer = _found(name)
    given = _probes(probes)
    result = check(make_trainer, claim, records=_records(module, records), probes=given)
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
    content = read_toml_document(InputFile(path, "claim", SETTINGS))
    try:
        return msgspec.convert(content, StepClaim)
    except (ValueError, ArithmeticError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument("claim", str(path), f"a claim in TOML: {error}") from error


def _found(name: str) -> tuple[Any, MakeTrainer]:
    allowed = "a run, or package.module:make_trainer that can be imported"
    make_trainer: MakeTrainer = imported("trainer", name, allowed)
    return sys.modules[name.partition(":")[0]], make_trainer


def _records(module: Any, path: Path | None) -> list[Record]:
    if path is not None:
        return _pairs("records", path)
    found = getattr(module, "records", None)
    if found is None:
        raise InvalidArgument("records", None, "given by --records, or beside make_trainer")
    return list(found)


def _probes(path: Path | None) -> list[Record] | None:
    return None if path is None else _pairs("probes", path)


def _pairs(name: str, path: Path) -> list[Record]:
    """Return the records of an .npz with the arrays x and y, of one length."""
    arrays = read_npz(InputFile(path, name, DATA))
    shapes = {key: array.shape[:1] for key, array in arrays.items() if key in ("x", "y")}
    if len(shapes) < 2 or shapes["x"] != shapes["y"] or not shapes["x"]:
        allowed = "an .npz with the arrays x and y, of as many records"
        raise InvalidArgument(name, sorted(arrays), allowed)
    return list(zip(arrays["x"], arrays["y"], strict=True))
