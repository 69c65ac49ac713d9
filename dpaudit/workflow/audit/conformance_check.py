"""Check the conformance of a run's trainer, or of the user's own, and write the result."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.attacks.conformance import MakeTrainer, Record, check, conformance_result
from dpaudit.attacks.conformance.provenance import check_provenance
from dpaudit.files.archives import read_npz
from dpaudit.files.documents import read_toml_document
from dpaudit.files.regular_files import DATA_LIMIT, SETTINGS_LIMIT, InputFile
from dpaudit.files.user_code import import_object
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.file_io import PRIVATE, read_optional_json, write_json
from dpaudit.vocabulary.claim import Claim
from dpaudit.vocabulary.conformance import Assumption, ConformanceResult, StepClaim
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.settings import Progress, RunConfig
from dpaudit.vocabulary.validation_messages import explain_validation
from dpaudit.workflow.run_claims import CLAIM_ACCOUNTANT, claim_delta

REPLAY_RECORDS = 256
"""Number of a run's records that are replayed; a step on more records behaves the same."""


def check_run_conformance(
    run: RunDirectory,
    claim: StepClaim | None = None,
    probes: Path | int | None = None,
    progress: Progress | None = None,
    assumptions: Sequence[Assumption] = (),
) -> ConformanceResult:
    """Check the trainer that a finished run's settings describe, and the run's claim.

    The result is written into the run. The weights are not read: the check is that this
    trainer, under these settings, does what it claims. Of a federation that protects records the
    clients are checked, of one that protects participants the server.

    Args:
        run: A finished run.
        claim: The claim on each step; None: that of the settings.
        probes: An .npz with the arrays x and y: records to replay, as the trained part of the
            model takes them; None: such as are made from the run's records; a number: so many
            of these records as well.
        progress: Receives each finished check.
        assumptions: What is assumed instead of tested.

    Returns:
        The result, with each finding.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the run's data are gone, or the probes are no such file.
    """
    ledger = run.read_finished()
    config, given = run.read_settings(), _probes(probes)
    if isinstance(config, FederatedConfig):
        from dpaudit.workflow.audit.federated_conformance import (  # noqa: PLC0415 - torch
            check_federation,
        )

        found = check_federation(config, claim, given, progress, assumptions)
        result, recorded = found.result, found.recorded
    else:
        result = _check_trainer_of(config, claim, given, progress, assumptions)
        recorded = result.claim
    stated = read_optional_json(run.claim, Claim) or _own_claim(run, ledger)
    findings = [*result.findings, *check_provenance(ledger, stated, steps=recorded)]
    return _written(
        run, conformance_result(result.claim, findings, ledger.head, result.assumptions)
    )


def _check_trainer_of(
    config: RunConfig,
    claim: StepClaim | None,
    probes: list[Record] | int | None,
    progress: Progress | None,
    assumptions: Sequence[Assumption],
) -> ConformanceResult:
    """Check the trainer that the settings of a run of one trainer describe."""
    from dpaudit.trainer.conformance_trainers import RunTrainerFactory  # noqa: PLC0415 - torch
    from dpaudit.trainer.run import prepare_run  # noqa: PLC0415

    bench = RunTrainerFactory.of(prepare_run(config.without_canary_file()))
    records = bench.records(REPLAY_RECORDS)
    return check(
        bench, claim or bench.claim(), records=records, probes=probes, progress=progress,
        assumptions=assumptions,
    )  # fmt: skip


def _own_claim(run: RunDirectory, ledger: PrivacyLedger) -> Claim:
    return claim_from_ledger(ledger, claim_delta(run), CLAIM_ACCOUNTANT)


def _written(run: RunDirectory, result: ConformanceResult) -> ConformanceResult:
    write_json(run.conformance, result, PRIVATE)
    return result


def check_federated_factory(
    name: str,
    kind: str,
    claim: StepClaim,
    records: Path | None,
    probes: Path | int | None = None,
    progress: Progress | None = None,
    assumptions: Sequence[Assumption] = (),
) -> ConformanceResult:
    """Check the server or the clients that ``package.module:factory`` makes.

    Args:
        name: ``package.module:make_server`` or ``package.module:make_client``.
        kind: ``server`` or ``client``.
        claim: The claim on each round, or on each local step.
        records: An .npz with the arrays x and y, for a client; None: the attribute ``records`` of
            the module of ``make_client``.
        probes: An .npz with the arrays x and y: records to replay at a client; None: derived; a
            number: derived ones, and so many of the records.
        progress: Receives each finished check.
        assumptions: What is assumed instead of tested.

    Returns:
        The result, with each finding.

    Raises:
        InvalidArgument: If there is no such factory, or there are no records for a client, or
            records are given for a server.
    """
    from dpaudit.attacks.conformance.federated import check_client, check_server  # noqa: PLC0415
    from dpaudit.workflow.audit.federated_conformance import (  # noqa: PLC0415
        require_arguments,
        require_no_records_of_server,
    )

    factory = import_object(kind, name, f"package.module:make_{kind} that can be imported")
    require_arguments(kind, name, factory)
    if kind == "client":
        module = sys.modules[name.partition(":")[0]]
        found, given = _records(module, records), _probes(probes)
        return check_client(
            factory, claim, records=found, probes=given, progress=progress,
            assumptions=assumptions,
        )  # fmt: skip
    require_no_records_of_server(records=records, probes=probes, assumptions=assumptions or None)
    return check_server(factory, claim, progress=progress)


def check_trainer_factory(
    name: str,
    claim: StepClaim,
    records: Path | None,
    run: RunDirectory | None = None,
    probes: Path | int | None = None,
    progress: Progress | None = None,
    assumptions: Sequence[Assumption] = (),
) -> ConformanceResult:
    """Check the trainer that ``package.module:make_trainer`` makes.

    The result is written into ``run``, if there is one. Then its ledger is compared with the
    claim, too. Nothing shows that this trainer made the run.

    Args:
        name: ``package.module:make_trainer``.
        claim: The claim on each step.
        records: An .npz with the arrays x and y; None: the attribute ``records`` of the module
            of ``make_trainer``.
        run: A finished run that the trainer is claimed to have made.
        probes: An .npz with the arrays x and y: records to replay; None: probes are made; a
            number: so many of the records as well.
        progress: Receives each finished check.
        assumptions: What is assumed instead of tested.

    Returns:
        The result, with each finding.

    Raises:
        InvalidArgument: If there is no such trainer, or there are no records.
        IntegrityError: If the run is unfinished, or a file is missing or altered.
    """
    ledger = None if run is None else run.read_finished()  # before the check, which takes minutes
    module, make_trainer = _found(name)
    given = _probes(probes)
    found = _records(module, records)
    result = check(
        make_trainer, claim, records=found, probes=given, progress=progress,
        assumptions=assumptions,
    )  # fmt: skip
    if run is None or ledger is None:
        return result
    stated = read_optional_json(run.claim, Claim) or _own_claim(run, ledger)
    findings = [*result.findings, *check_provenance(ledger, stated, steps=result.claim)]
    return _written(
        run, conformance_result(result.claim, findings, ledger.head, result.assumptions)
    )


def read_step_claim(path: Path) -> StepClaim:
    """Read the claim on each step from a TOML file.

    Args:
        path: The file.

    Returns:
        The claim.

    Raises:
        InvalidArgument: If there is no such file, or it holds no such claim.
    """
    content = read_toml_document(InputFile(path, "claim", SETTINGS_LIMIT))
    try:
        return msgspec.convert(content, StepClaim)
    except msgspec.ValidationError as error:
        allowed = f"a claim of each step in TOML {explain_validation(error, content, StepClaim)}"
        raise InvalidArgument("claim", str(path), allowed) from error
    except (ValueError, ArithmeticError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidArgument("claim", str(path), f"a claim in TOML: {error}") from error


def _found(name: str) -> tuple[Any, MakeTrainer]:
    allowed = "a run, or package.module:make_trainer that can be imported"
    make_trainer: MakeTrainer = import_object("trainer", name, allowed)
    _require_records_and_seed(name, make_trainer)
    return sys.modules[name.partition(":")[0]], make_trainer


def _require_records_and_seed(name: str, make_trainer: Any) -> None:
    if not callable(make_trainer):
        raise InvalidArgument("trainer", name, "a function of (records, seed)")
    try:
        signature = inspect.signature(make_trainer)
    except (TypeError, ValueError):  # C code without a signature
        return
    try:
        signature.bind((), 0)
    except TypeError as error:
        allowed = f"a function of (records, seed); its signature is {signature}"
        raise InvalidArgument("trainer", name, allowed) from error


def _records(module: Any, path: Path | None) -> list[Record]:
    if path is not None:
        return _pairs("records", path)
    found = getattr(module, "records", None)
    if found is None:
        raise InvalidArgument("records", None, "given by --records, or beside make_trainer")
    return list(found)


def _probes(given: Path | int | None) -> list[Record] | int | None:
    return _pairs("probes", given) if isinstance(given, Path) else given


def _pairs(name: str, path: Path) -> list[Record]:
    """Read the records of an .npz with the arrays x and y of equal length."""
    arrays = read_npz(InputFile(path, name, DATA_LIMIT))
    shapes = {key: array.shape[:1] for key, array in arrays.items() if key in ("x", "y")}
    if len(shapes) < 2 or shapes["x"] != shapes["y"] or not shapes["x"]:
        allowed = "an .npz with the arrays x and y, of as many records"
        raise InvalidArgument(name, sorted(arrays), allowed)
    return list(zip(arrays["x"], arrays["y"], strict=True))
