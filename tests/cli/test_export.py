"""dpaudit export: what was written is read back by the tool that it is for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from calling import Call
from places import ROOT
from warm_python import WarmPython


def claimed(run: Path) -> float:
    return float(json.loads((run / "claim.json").read_text())["epsilon"]["upper"])


def test_tensorboard_finds_epsilon_over_the_steps_and_the_claim(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    result = call("export", "tensorboard", trained, "--folder", tmp_path / "events")
    assert (result.code, result.err) == (0, "")
    scalars, texts = read_events(tmp_path / "events" / "small")
    course = scalars["epsilon_at_most/pld"]
    assert course[0][0] == 1
    assert course[-1] == (30, pytest.approx(claimed(trained), rel=1e-6))  # it stores float32
    assert [value for _, value in course] == sorted(value for _, value in course)
    assert texts["claim/text_summary"].startswith("At delta 1e-05, epsilon is at most")
    assert texts["dpaudit.verdict/text_summary"] == "not judged"
    assert texts["sampling_rate/text_summary"] == "0.1"


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Read TensorBoard's event file: length (8 bytes), checksum (4), an Event, checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    content, at = file.read_bytes(), 0
    scalars: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, str] = {}
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        event = Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars, texts


def test_a_run_is_not_written_twice_into_one_place(
    call: Call, trained: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    assert call("export", "tensorboard", trained, "--folder", tmp_path).code == 0
    before = list((tmp_path / "small").iterdir())
    result = call("export", "tensorboard", trained, "--folder", tmp_path)
    assert result.code == 2
    assert "exists" in result.err
    assert list((tmp_path / "small").iterdir()) == before


def test_a_folder_that_cannot_be_made_exits_2(call: Call, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra tensorboard")
    (tmp_path / "file").touch()
    assert call("export", "tensorboard", trained, "--folder", tmp_path / "file").code == 2


def test_mlflow_finds_figures_tags_parameters_and_files(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    result = call("export", "mlflow", trained, "--tracking-uri", uri, "--experiment", "ours")
    assert result.code == 0, result.err
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    assert run.data.params["noise_multiplier"] == "2.0"
    assert run.data.tags["dpaudit.verdict"] == "not judged"
    assert run.data.tags["dpaudit.claim"].startswith("At delta 1e-05, epsilon is at most")
    assert math.isclose(run.data.metrics["epsilon_claimed_at_most"], claimed(trained))
    course = client.get_metric_history(run.info.run_id, "epsilon_at_most/pld")
    assert [one.step for one in course][-1] == 30
    assert len(course) > 5
    where = {"run_id": run.info.run_id, "tracking_uri": uri, "dst_path": str(tmp_path)}
    written = json.loads(Path(download_artifacts(artifact_path="claim.json", **where)).read_text())
    assert written["ledger_head"] == run.data.tags["dpaudit.ledger_head"]
    page = Path(download_artifacts(artifact_path="report.html", **where)).read_text()
    assert "<script" not in page


def test_an_mlflow_run_that_could_not_be_written_whole_has_failed(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr(MlflowClient, "log_text", full)
    uri = (tmp_path / "store").as_uri()
    result = call("export", "mlflow", trained, "--tracking-uri", uri)
    assert result.code == 2
    assert "no space left" in result.err
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("dpaudit").experiment_id])
    assert run.info.status == "FAILED"


def test_invalid_tracking_store_exits_2_in_one_line(call: Call, trained: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    result = call("export", "mlflow", trained, "--tracking-uri", "gopher://nowhere")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "tracking_uri" in result.err


@pytest.mark.parametrize("command", ["tensorboard --folder x", "mlflow --tracking-uri x"])
def test_a_run_that_is_not_there_exits_2(call: Call, tmp_path: Path, command: str) -> None:
    tool, *options = command.split()
    library = {"tensorboard": "tensorboardX"}.get(tool, tool)
    pytest.importorskip(library, reason=f"needs the extra {tool}")
    assert call("export", tool, tmp_path / "nowhere", *options).code == 2


@pytest.mark.parametrize(
    ("command", "library"),
    [("tensorboard --folder x", "tensorboardX"), ("mlflow --tracking-uri x", "mlflow")],
)
def test_without_its_library_it_says_which_extra_to_install(
    trained: Path, gate_program: WarmPython, command: str, library: str
) -> None:
    tool, *options = command.split()
    code = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"sys.argv = ['dpaudit', 'export', {tool!r}, {str(trained)!r}, *{options!r}]\n"
        "from dpaudit.cli.entry_point import main; main()"
    )
    result = gate_program.run(code, ROOT)
    assert result.returncode == 2
    expected = f"dpaudit: error DPA601: {library} is not installed: pip install 'dpaudit[{tool}]'\n"
    assert result.stderr == expected
