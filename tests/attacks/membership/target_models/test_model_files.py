"""Every kind of model file says the same of the same records."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.attacks.membership.target_models.model_files import open_model
from dpaudit.attacks.membership.target_models.sklearn_model import SklearnModel
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

FEATURES = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)


def make_net(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 6), nn.Dropout(0.5), nn.Linear(6, classes))


def make_nothing(shape: tuple[int, ...], classes: int) -> None:
    return None


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return make_net((4,), 3).eval()


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "nets_of_a_user", sys.modules[__name__])
    return "nets_of_a_user:make_net"


def opened(path: Path, factory: str | None = None) -> TargetModel:
    return open_model(path, factory=factory, shape=(4,), classes=3)


def assert_same(model: TargetModel, net: nn.Module) -> None:
    with torch.no_grad():
        expected = net(torch.from_numpy(FEATURES)).numpy()
    assert model.predict(FEATURES) == pytest.approx(expected, abs=1e-5)


def test_safetensors_with_a_factory(tmp_path: Path, net: nn.Module, factory: str) -> None:
    path = tmp_path / "net.safetensors"
    save_model(net, str(path))
    assert_same(opened(path, factory), net)


def test_onnx(tmp_path: Path, net: nn.Module) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    weights = [p.detach().numpy() for p in net.parameters()]
    initial = [onnx.numpy_helper.from_array(w, f"w{place}") for place, w in enumerate(weights)]
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "w0", "w1"], ["hidden"], transB=1),
        onnx.helper.make_node("Gemm", ["hidden", "w2", "w3"], ["y"], transB=1),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, size])
        for name, size in (("x", 4), ("y", 3))
    ]
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], initial)
    opset = [onnx.helper.make_opsetid("", 17)]
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    assert_same(opened(path), net)


def fitted() -> object:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(FEATURES, np.arange(11) % 3)


def test_an_estimator_of_scikit_learn(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    path = tmp_path / "net.skops"
    classifier = fitted()
    skops.dump(classifier, path)
    expected = classifier.predict_proba(FEATURES)  # type: ignore[attr-defined]
    assert np.exp(opened(path).predict(FEATURES)) == pytest.approx(expected)


class Untrusted:
    """A type that skops knows nothing of."""

    def predict_proba(self, features: object) -> object:
        return features


def test_types_that_skops_does_not_trust_are_refused(tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io")
    path = tmp_path / "net.skops"
    skops.dump(Untrusted(), path)
    with pytest.raises(InvalidArgument, match="Untrusted"):
        opened(path)


def test_an_estimators_probabilities_become_logits_and_images_rows() -> None:
    found = SklearnModel(fitted()).predict(FEATURES.reshape(11, 2, 2))
    expected = fitted().predict_proba(FEATURES)  # type: ignore[attr-defined]
    assert np.exp(found) == pytest.approx(expected)


@pytest.mark.parametrize(("kind", "library"), [(".onnx", "onnxruntime"), (".skops", "skops.io")])
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, kind: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    path = tmp_path / f"net{kind}"
    path.write_bytes(b"x")
    with pytest.raises(MissingExtra, match=r"pip install 'dpaudit\["):
        opened(path)


@pytest.mark.parametrize("kind", [".pt", ".pt2", ".safetensors", ".onnx", ".skops"])
def test_a_broken_file_is_refused(tmp_path: Path, factory: str, kind: str) -> None:
    for library in {".onnx": ["onnxruntime"], ".skops": ["skops"]}.get(kind, []):
        pytest.importorskip(library)
    path = tmp_path / f"net{kind}"
    path.write_bytes(b"no model at all")
    with pytest.raises(InvalidArgument, match="checkpoint"):
        opened(path, factory)


@pytest.mark.parametrize("name", [None, "mlp", "nowhere:make", "nets_of_a_user:gone"])
def test_weights_want_a_factory_that_exists(
    tmp_path: Path, net: nn.Module, factory: str, name: str | None
) -> None:
    path = tmp_path / "net.safetensors"
    save_model(net, str(path))
    with pytest.raises(InvalidArgument, match="model"):
        opened(path, name)


def test_a_factory_that_makes_no_module_is_refused(
    tmp_path: Path, net: nn.Module, factory: str
) -> None:
    path = tmp_path / "net.safetensors"
    save_model(net, str(path))
    with pytest.raises(InvalidArgument, match=r"torch\.nn\.Module"):
        opened(path, factory.replace("make_net", "make_nothing"))


def test_a_file_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "net.pkl"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidArgument, match=r"\.safetensors"):
        opened(pickled)
    with pytest.raises(InvalidArgument, match="No such file"):
        opened(tmp_path / "gone.pt")
