"""Tell an MLflow tracking server of a run."""

from __future__ import annotations

import os
import time

from dpaudit.report.html import render
from dpaudit.report.text import as_json
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.workflow.exporting import Exported

# What a run gives away is not for MLflow's own usage statistics.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
try:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
except ImportError as error:  # pragma: no cover - needs an environment without mlflow
    raise MissingExtra("mlflow", "mlflow") from error

LONGEST_PARAMETER = 500
"""What every MLflow server takes."""


def to_mlflow(exported: Exported, tracking_uri: str, experiment: str) -> str:
    """Write one MLflow run with its claim.json and report.html; return its id.

    Raises:
        InvalidArgument: there is no such store, or it does not take the run.
    """
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        return _written(client, exported, experiment)
    except (MlflowException, OSError) as error:
        allowed = f"a tracking store that takes the run ({error})"
        raise InvalidArgument("tracking_uri", tracking_uri, allowed) from error


def _written(client: MlflowClient, exported: Exported, experiment: str) -> str:
    page = render(exported.evidence)  # may refuse: before anything is written
    known = client.get_experiment_by_name(experiment)
    place = client.create_experiment(experiment) if known is None else known.experiment_id
    run_id = str(client.create_run(place, run_name=exported.run).info.run_id)
    try:
        _fill(client, run_id, exported)
        client.log_text(run_id, page, "report.html")
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return run_id


def _fill(client: MlflowClient, run_id: str, exported: Exported) -> None:
    now = int(1000 * time.time())
    tags = exported.tags | {"dpaudit.claim": exported.claim}
    client.log_batch(
        run_id,
        metrics=[Metric(one.name, one.value, now, one.step) for one in exported.figures],
        params=[Param(name, v[:LONGEST_PARAMETER]) for name, v in exported.parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    client.log_text(run_id, as_json(exported.evidence.claim), "claim.json")
