"""Export a finished run to MLflow and TensorBoard: parameters, metrics, tags, report."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpaudit.report.descriptions import claim_in_words, observers_in_words
from dpaudit.report.evidence import ReportEvidence
from dpaudit.report.report_pages import report_page
from dpaudit.report.text import as_json
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.audit import MembershipResult
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, MissingExtra, RunExists
from dpaudit.vocabulary.federation import FederatedConfig
from dpaudit.workflow.gate.verdict_history import count_steps, largest_lower_bound
from dpaudit.workflow.report.run_evidence import gather_evidence

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from tensorboardX import SummaryWriter

NO_VERDICT = "not judged"
MAX_PARAMETER_LENGTH = 500
"""The longest parameter value, in characters, that every MLflow server accepts."""


@dataclass(frozen=True)
class MetricPoint:
    """One number of a run after ``step`` steps.

    Attributes:
        name: Letters, digits and ``_./ -`` only, which every tool accepts.
        value: The number.
        step: Number of completed steps.
    """

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class ExportedRun:
    """The data of one run that other tools show.

    Attributes:
        run: The name of its directory.
        claim: The claim in one sentence, without which the figures have no meaning.
        parameters: The run's settings, and the assumptions of the claim.
        figures: Upper bounds on epsilon at a few steps, and measurements at the last step.
        tags: The verdict, and what identifies the run.
        evidence: All data of its report.
    """

    run: str
    claim: str
    parameters: dict[str, str]
    figures: tuple[MetricPoint, ...]
    tags: dict[str, str]
    evidence: ReportEvidence


def collect_export(run: RunDirectory) -> ExportedRun:
    """Collect the data to export from a finished run; what was not measured is left out.

    Args:
        run: The run.

    Returns:
        The data.

    Raises:
        IntegrityError: If the run is unfinished, a file is missing or altered, or audit or
            verdict are of another ledger.
    """
    ledger, evidence = run.read_finished(), gather_evidence(run)
    _require_one_ledger(evidence)
    claim, verdict = evidence.claim, evidence.verdict
    return ExportedRun(
        run=evidence.run,
        claim=claim_in_words(claim),
        parameters=_parameters(run, evidence),
        figures=(*_course(evidence), *_measured(evidence, count_steps(ledger))),
        tags={
            "dpaudit.verdict": NO_VERDICT if verdict is None else verdict.outcome.value,
            "dpaudit.ledger_head": claim.ledger_head,
            "dpaudit.version": claim.dpaudit_version,
        },
        evidence=evidence,
    )


def _course(evidence: ReportEvidence) -> tuple[MetricPoint, ...]:
    """Return upper bounds on epsilon at a few steps, by the accountant of the claim."""
    name = f"epsilon_at_most/{evidence.claim.accountant}"
    return tuple(
        MetricPoint(name, epsilon, step)
        for curve in evidence.curves
        if curve.accountant == evidence.claim.accountant
        for step, epsilon in zip(curve.steps, curve.epsilon, strict=True)
    )


def _measured(evidence: ReportEvidence, last: int) -> tuple[MetricPoint, ...]:
    claim, audit = evidence.claim, evidence.audit
    found = [("epsilon_claimed_at_most", claim.epsilon.upper)]
    found += [
        (f"epsilon_at_most/participant_{one.name}", one.epsilon.upper)
        for one in evidence.participants
        if one.epsilon is not None
    ]
    if audit is not None:
        lower = largest_lower_bound(audit.bounds, claim.delta)
        found += [] if lower is None else [("epsilon_at_least", lower)]
        found += [rate for result in audit.membership for rate in _rates(result)]
        accuracy = audit.heldout_accuracy
        found += [] if accuracy is None else [("heldout_accuracy", accuracy)]
        found += [] if audit.heldout_loss is None else [("heldout_loss", audit.heldout_loss)]
    return tuple(MetricPoint(name, value, last) for name, value in found)


def _rates(result: MembershipResult) -> list[tuple[str, float]]:
    """Return the upper ends of an attack's rates; an inconclusive attack has none."""
    if result.inconclusive is not None:
        return []
    attack = "".join(c if c.isascii() and c.isalnum() else "_" for c in result.attack)
    return [
        (f"tpr_at_most/{attack}/fpr_{rate.fpr:g}", rate.interval.upper)
        for rate in result.tpr_at_fpr
    ]


def _parameters(run: RunDirectory, evidence: ReportEvidence) -> dict[str, str]:
    claim = evidence.claim
    parameters = {
        "delta": f"{claim.delta!r}",
        "accountant": claim.accountant,
        "adjacency": claim.adjacency.value,
        "sampling": claim.sampling.value,
        "randomness": claim.randomness.value,
        "noise": "not recorded" if claim.noise is None else claim.noise.value,
        "unit": claim.unit.value,
        "released": claim.released.value,
        "releases": str(claim.releases),
        "unaccounted": ", ".join(claim.unaccounted) or "nothing that is known",
        "mechanism": evidence.mechanism_in_words,
    }
    if claim.federation is not None:
        parameters["protects_against"] = observers_in_words(claim.federation)
    return parameters | (_settings(run) if run.config.exists() else {})


def _settings(run: RunDirectory) -> dict[str, str]:
    config = run.read_settings()
    if isinstance(config, FederatedConfig):
        return _federated_settings(config)
    privacy, model = config.privacy, config.model
    return {
        "noise_multiplier": f"{privacy.noise_multiplier!r}",
        "sampling_rate": f"{privacy.sampling_rate!r}",
        "clip_norm": f"{privacy.clip_norm!r}",
        "steps": str(privacy.steps),
        "model": model.model,
        "optimizer": model.optimizer,
    }


def _federated_settings(config: FederatedConfig) -> dict[str, str]:
    federation, privacy = config.federation, config.privacy
    return {
        "strategy": federation.strategy,
        "participants": str(federation.participants),
        "rounds": str(federation.rounds),
        "partition": federation.partition,
        "participation_rate": f"{privacy.participation_rate!r}",
        "noise_multiplier": f"{privacy.noise_multiplier!r}",
        "clip_norm": f"{privacy.clip_norm!r}",
        "local_steps": str(config.local.local_steps),
        "sampling_rate": f"{config.local.sampling_rate!r}",
        "model": config.model.model,
        "optimizer": config.model.optimizer,
    }


def _require_one_ledger(evidence: ReportEvidence) -> None:
    head = evidence.claim.ledger_head
    for name, part in (("audit", evidence.audit), ("verdict", evidence.verdict)):
        if part is not None and part.ledger_head != head:
            raise IntegrityError(
                f"the {name} is of another ledger than the claim: make the {name} again"
            )


# Export to MLflow.


def export_to_mlflow(exported: ExportedRun, tracking_uri: str, experiment: str) -> str:
    """Write one MLflow run, with claim.json and report.html as artifacts.

    MLflow's own usage statistics are turned off: they could disclose facts about the run.

    Args:
        exported: The data of the run.
        tracking_uri: The MLflow server or store.
        experiment: Name of the experiment; it is created if it does not exist.

    Returns:
        The id of the MLflow run. If the export fails part way, that run is marked FAILED.

    Raises:
        InvalidArgument: If there is no such store, or if it does not accept the run.
        MissingExtra: If mlflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before mlflow is imported
    try:
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
    except ImportError as error:  # pragma: no cover - needs an environment without mlflow
        raise MissingExtra("mlflow", "mlflow") from error
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        return _write_mlflow_run(client, exported, experiment)
    except (MlflowException, OSError) as error:
        allowed = f"a tracking store that takes the run ({error})"
        raise InvalidArgument("tracking_uri", tracking_uri, allowed) from error


def _write_mlflow_run(client: MlflowClient, exported: ExportedRun, experiment: str) -> str:
    page = report_page(exported.evidence)  # may raise, so it comes before anything is written
    known = client.get_experiment_by_name(experiment)
    place = client.create_experiment(experiment) if known is None else known.experiment_id
    run_id = str(client.create_run(place, run_name=exported.run).info.run_id)
    try:
        _log_to_mlflow(client, run_id, exported)
        client.log_text(run_id, page, "report.html")
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _log_to_mlflow(client: MlflowClient, run_id: str, exported: ExportedRun) -> None:
    from mlflow.entities import Metric, Param, RunTag  # noqa: PLC0415

    now = int(1000 * time.time())
    tags = exported.tags | {"dpaudit.claim": exported.claim}
    client.log_batch(
        run_id,
        metrics=[Metric(one.name, one.value, now, one.step) for one in exported.figures],
        params=[Param(name, v[:MAX_PARAMETER_LENGTH]) for name, v in exported.parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    client.log_text(run_id, as_json(exported.evidence.claim), "claim.json")


# Export to TensorBoard.


def export_to_tensorboard(exported: ExportedRun, folder: Path) -> Path:
    """Write a TensorBoard event file into a new folder with the run's name.

    Args:
        exported: The data of the run.
        folder: The log directory of TensorBoard.

    Returns:
        The new folder inside ``folder``.

    Raises:
        RunExists: If that folder exists; TensorBoard would show both as one run.
        InvalidArgument: If the folder cannot be written.
        MissingExtra: If tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter  # noqa: PLC0415
    except ImportError as error:  # pragma: no cover - needs an environment without tensorboardX
        raise MissingExtra("tensorboardX", "tensorboard") from error
    place = folder / exported.run
    if place.exists():
        raise RunExists(f"{place} exists: choose another --folder, or remove it")
    try:
        place.mkdir(parents=True)
        with SummaryWriter(str(place)) as writer:
            _write_events(exported, writer)
    except OSError as error:
        raise InvalidArgument("folder", str(folder), f"writable ({error.strerror})") from error
    return place


def _write_events(exported: ExportedRun, writer: SummaryWriter) -> None:
    for figure in exported.figures:
        writer.add_scalar(figure.name, figure.value, figure.step)
    for name, words in {
        "claim": exported.claim,
        **exported.tags,
        **exported.parameters,
    }.items():
        writer.add_text(name, words)
