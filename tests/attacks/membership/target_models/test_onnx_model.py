"""ONNX models of other inputs and outputs: typed errors, and batches of a fixed size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.attacks.membership.target_models.model_files import open_model
from dpaudit.attacks.membership.target_models.onnx_model import load
from dpaudit.attacks.membership.target_models.sandbox import ProcessLimits
from dpaudit.files.regular_files import GIB, InputFile
from dpaudit.vocabulary.errors import InvalidArgument

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FEATURES = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)


def saved(path: Path, inputs: list[Any], nodes: list[Any], output: Any, kind: int = 1) -> Path:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    initial = [onnx.numpy_helper.from_array(WEIGHTS.astype(dtype), "w")]
    graph = onnx.helper.make_graph(nodes, "net", inputs, [output], initial)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def value(name: str, shape: list[Any], kind: int = 1) -> Any:
    return onnx.helper.make_tensor_value_info(name, kind, shape)


def node(operation: str, inputs: list[str], output: str) -> Any:
    return onnx.helper.make_node(operation, inputs, [output])


PRODUCT = [node("MatMul", ["x", "w"], "y")]


def opened(path: Path) -> TargetModel:
    return open_model(path, factory=None, shape=(4,), classes=3)


@pytest.mark.parametrize("rows", [None, "n", 1, 3, 4])
def test_a_batch_of_fixed_size_is_kept(tmp_path: Path, rows: object) -> None:
    path = saved(tmp_path / "net.onnx", [value("x", [rows, 4])], PRODUCT, value("y", [rows, 3]))
    assert opened(path).predict(FEATURES) == pytest.approx(FEATURES @ WEIGHTS, abs=1e-5)


def test_doubles_are_given_doubles(tmp_path: Path) -> None:
    ends = value("x", [None, 4], 11), value("y", [None, 3], 11)
    path = saved(tmp_path / "net.onnx", [ends[0]], PRODUCT, ends[1], kind=11)
    assert opened(path).predict(FEATURES) == pytest.approx(FEATURES @ WEIGHTS, abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "nodes", "output"),
    [
        ([value("x", [None, 5])], [node("Identity", ["x"], "y")], value("y", [None, 5])),
        ([value("x", [None, 2, 2])], [node("Identity", ["x"], "y")], value("y", [None, 2, 2])),
        ([value("x", [5, 4])], PRODUCT, value("y", [5, 3])),
        (
            [value("x", [None, 4]), value("z", [None, 4])],
            [node("Add", ["x", "z"], "y")],
            value("y", [None, 4]),
        ),
        ([value("x", [None, 4], 7)], [node("Identity", ["x"], "y")], value("y", [None, 4], 7)),
        ([value("x", [None, 4])], [node("ReduceSum", ["x"], "y")], value("y", None)),
        ([value("x", None)], [node("MatMul", ["w", "x"], "y")], value("y", None)),
    ],
)
def test_inputs_and_outputs_of_another_shape_are_refused(
    tmp_path: Path, inputs: list[Any], nodes: list[Any], output: Any
) -> None:
    path = saved(tmp_path / "net.onnx", inputs, nodes, output)
    with pytest.raises(InvalidArgument, match="checkpoint must be a"):
        opened(path).predict(FEATURES)


def test_weights_in_another_file_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "one.onnx", [value("x", [None, 4])], PRODUCT, value("y", [None, 3]))
    model = onnx.load(path)
    onnx.save(
        model,
        tmp_path / "two.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(InvalidArgument, match="no ONNX model in one file"):
        opened(tmp_path / "two.onnx")


BOOL, INT = onnx.TensorProto.BOOL, onnx.TensorProto.INT64
MAKE = onnx.helper


def constants(**values: Any) -> list[Any]:
    return [
        MAKE.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.array(of)))
        for name, of in values.items()
    ]


def hungry(sides: list[int]) -> list[Any]:
    """Return nodes that fill memory, whose sum is added to the outputs."""
    one = MAKE.make_tensor("one", 1, [1], [1.0])
    return [
        *constants(sides=np.array(sides)),
        MAKE.make_node("ConstantOfShape", ["sides"], ["ones"], value=one),
        MAKE.make_node("ReduceSum", ["ones"], ["sum"], keepdims=0),
        node("MatMul", ["x", "w"], "product"),
        node("Add", ["product", "sum"], "y"),
    ]


def endless(trips: int) -> list[Any]:
    body = MAKE.make_graph(
        [node("Identity", ["on"], "still"), node("Identity", ["a"], "b")],
        "body",
        [value("trip", [], INT), value("on", [], BOOL), value("a", [None, 3])],
        [value("still", [], BOOL), value("b", [None, 3])],
    )
    return [
        *constants(trips=trips, yes=True),
        node("MatMul", ["x", "w"], "product"),
        MAKE.make_node("Loop", ["trips", "yes", "product"], ["y"], body=body),
    ]


@pytest.mark.parametrize(
    ("nodes", "limits"),
    [
        (hungry([1 << 31]), ProcessLimits(seconds=60)),
        (hungry([1 << 14, 1 << 14]), ProcessLimits(seconds=60, memory=GIB // 2)),
        (endless(1 << 40), ProcessLimits(seconds=60, cpu_seconds=2)),
    ],
)
def test_a_model_that_takes_too_much_is_ended(
    tmp_path: Path, nodes: list[Any], limits: ProcessLimits
) -> None:
    path = saved(tmp_path / "net.onnx", [value("x", [None, 4])], nodes, value("y", [None, 3]))
    with pytest.raises(InvalidArgument, match="checkpoint must be a model that runs within"):
        load(InputFile(path, "checkpoint", GIB), limits).predict(FEATURES)


def test_an_endless_model_is_ended(tmp_path: Path) -> None:
    nodes = endless(1 << 60)
    path = saved(tmp_path / "net.onnx", [value("x", [None, 4])], nodes, value("y", [None, 3]))
    model = load(InputFile(path, "checkpoint", GIB), ProcessLimits(seconds=60))
    model.process.limits = ProcessLimits(seconds=0.5)  # of the run alone: the start takes longer
    with pytest.raises(InvalidArgument, match=r"over 0\.5 s"):
        model.predict(FEATURES)


def test_a_loop_that_ends_is_no_fault(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", [value("x", [None, 4])], endless(3), value("y", [None, 3]))
    assert opened(path).predict(FEATURES) == pytest.approx(FEATURES @ WEIGHTS, abs=1e-5)


@pytest.mark.parametrize("rows", [3, None])
def test_more_records_than_a_batch_are_all_answered(tmp_path: Path, rows: object) -> None:
    path = saved(tmp_path / "net.onnx", [value("x", [rows, 4])], PRODUCT, value("y", [rows, 3]))
    features = np.random.default_rng(1).standard_normal((4101, 4)).astype(np.float32)
    assert opened(path).predict(features) == pytest.approx(features @ WEIGHTS, abs=1e-4)
