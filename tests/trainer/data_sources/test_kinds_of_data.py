"""Data of every kind give the same steps, and empty batches; what cannot be used is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    SequentialSampler,
    Subset,
    TensorDataset,
)

from dpaudit.trainer.attach import make_private
from dpaudit.trainer.data_sources.batch_source import make_batch_source
from dpaudit.trainer.noise.randomness import Keystream
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, UserCodeError

RECORDS, WIDTH = 24, 3
X = torch.randn(RECORDS, WIDTH, generator=torch.Generator().manual_seed(3))
Y = torch.arange(RECORDS) % 3
NAMES = [f"f{number}" for number in range(WIDTH)]


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return RECORDS

    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]


class Arrays(Pairs):
    def __getitem__(self, index: int) -> Any:
        return X[index].double().numpy(), int(Y[index])


@dataclass
class Record:
    x: Tensor
    y: int


def collate_pairs(records: list[Any]) -> Any:
    if not records:
        raise RuntimeError("stack expects a non-empty list")
    return torch.stack([x for x, _ in records]), torch.stack([y for _, y in records])


def frame() -> pd.DataFrame:
    columns = {name: X[:, n].double().numpy() for n, name in enumerate(NAMES)}
    return pd.DataFrame({**columns, "y": Y.numpy()}, index=np.arange(RECORDS)[::-1])


def same(batch: Any) -> Any:
    return batch


def by_name(batch: Any) -> Any:
    return batch["x"], torch.as_tensor(batch["y"])


def of_frame(batch: Any) -> Any:
    return torch.stack([batch[name] for name in NAMES], dim=1), batch["y"]


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda: (X, Y), same),
    "list of columns": (lambda: [X, Y], same),
    "arrays": (lambda: (X.numpy(), Y.numpy()), same),
    "float64 and another byte order": (
        lambda: (X.double().numpy(), Y.numpy().astype(">i8")),
        same,
    ),
    "read-only array": (lambda: (np.broadcast_to(X.numpy(), X.shape), Y), same),
    "dict": (lambda: {"x": X.numpy(), "y": Y.tolist()}, by_name),
    "dict of lists": (lambda: {"x": X.tolist(), "y": Y}, by_name),
    "frame": (frame, of_frame),
    "frame and series": (lambda: (frame()[NAMES], frame()["y"]), same),
    "tensor data set": (lambda: TensorDataset(X, Y), same),
    "by index": (Pairs, same),
    "arrays by index": (Arrays, same),
    "subset": (lambda: ConcatDataset([Subset(Pairs(), list(range(RECORDS)))]), same),
    "list of tuples": (lambda: list(zip(X, Y, strict=True)), same),
    "list of lists": (lambda: [[x, y] for x, y in zip(X, Y, strict=True)], same),
    "list of dicts": (lambda: [{"x": x.tolist(), "y": int(y)} for x, y in zip(X, Y, strict=True)],
                      by_name),
    "list of dataclasses": (lambda: [Record(x, int(y)) for x, y in zip(X, Y, strict=True)],
                            lambda batch: (batch.x, batch.y)),
    "loader": (lambda: DataLoader(Pairs(), batch_size=4, shuffle=True), same),
    "loader with collate_fn": (lambda: DataLoader(Pairs(), 4, collate_fn=collate_pairs), same),
    "loader without batches": (lambda: DataLoader(Pairs(), batch_size=None), same),
    "loader of batches": (
        lambda: DataLoader(
            Pairs(), batch_sampler=BatchSampler(SequentialSampler(Pairs()), 4, drop_last=True)
        ),
        same,
    ),
}  # fmt: skip


def hugging_face(kind: str | None) -> Any:
    datasets = pytest.importorskip("datasets")
    found = datasets.Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()})
    return found.with_format(kind) if kind else found


def losses(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def trained(
    data: Any, unpack: Callable[[Any], Any] = same, rate: float = 0.5, **options: Any
) -> Tensor:
    """Return the weights after three steps."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "of the DataLoader")
        private = make_private(
            model, torch.optim.SGD(model.parameters(), lr=0.1), data, noise_multiplier=1.0,
            sampling_rate=rate, expected_batch_size=12, seed=0, **options,
        )  # fmt: skip
    for batch in private.batches(steps=3):
        private.step(lambda model, batch: losses(model, unpack(batch)), batch)
    assert private.steps == 3
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rate", [0.5, 1e-12])
def test_every_kind_of_data_gives_the_same_steps(name: str, rate: float) -> None:
    make, unpack = KINDS[name]
    assert torch.allclose(trained(make(), unpack, rate), trained((X, Y), rate=rate), atol=1e-5)


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_data_sets_of_hugging_face_give_the_same_steps(kind: str | None) -> None:
    got = trained(hugging_face(kind), by_name)
    assert torch.allclose(got, trained((X, Y)), atol=1e-5)


def test_collate_function_that_fails_on_nothing_is_not_called_with_nothing() -> None:
    got = trained(Pairs(), rate=1e-12, collate_fn=collate_pairs)
    assert torch.equal(got, trained((X, Y), rate=1e-12))


def test_collate_function_gets_the_rows_of_columns() -> None:
    def collate(records: list[Any]) -> Any:
        assert all(record["x"].shape == (WIDTH,) for record in records)
        return torch.stack([one["x"] for one in records]), torch.stack(
            [one["y"] for one in records]
        )

    assert torch.equal(trained({"x": X, "y": Y}, collate_fn=collate), trained((X, Y)))


def test_a_tensor_data_set_that_changes_its_records_is_read_by_index() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return 2 * x, y

    assert torch.allclose(trained(Doubled(X, Y)), trained((2 * X, Y)), atol=1e-5)


def test_float64_is_kept_for_a_model_of_float64() -> None:
    source = make_batch_source((X.double().numpy(), Y), None, floating=torch.float64)
    assert source(np.array([0]), Keystream.seeded(0), 0)[0].dtype is torch.float64


def test_a_loader_is_named_with_what_is_replaced() -> None:
    model = nn.Linear(WIDTH, 3)
    with pytest.warns(UserWarning, match=r"RandomSampler and batch_size=4 are replaced") as caught:
        private = make_private(
            model, torch.optim.SGD(model.parameters(), lr=0.1),
            DataLoader(Pairs(), batch_size=4, shuffle=True), noise_multiplier=1.0,
            dataset_size=RECORDS,
        )  # fmt: skip
    assert caught[0].filename == __file__
    assert private.step_settings.expected_batch_size == 4
    with pytest.warns(UserWarning, match="of the DataLoader") as caught:
        next(private.batches(DataLoader(Pairs(), 2)))
    assert caught[0].filename == __file__


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Broken(Pairs):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, index: int) -> Any:
        if index == 7:
            raise self._error
        return super().__getitem__(index)


class Differing(Pairs):
    def __init__(self, other: Any) -> None:
        self._other = other

    def __getitem__(self, index: int) -> Any:
        return self._other if index == 7 else {"x": X[index], "y": int(Y[index])}


class Endless:
    def __getitem__(self, index: int) -> Any:
        return X[0], Y[0]


REFUSED: dict[str, tuple[Any, str]] = {
    "stream": (Stream(), "Poisson sampling draws each record"),
    "loader of a stream": (DataLoader(Stream()), "Poisson sampling draws each record"),
    "generator": ((pair for pair in zip(X, Y, strict=True)), "Poisson sampling"),
    "without length": (Endless(), "records by index with a length"),
    "text": ("train.csv", "data must be"),
    "number": (5, "data must be"),
    "set": ({1, 2}, "data must be"),
    "no records": ([], "without records"),
    "KeyError": (Broken(KeyError("label")), r"data\[7\] raised KeyError: 'label'"),
    "IndexError": (Broken(IndexError("out of range")), r"data\[7\] raised IndexError"),
    "TypeError": (Broken(TypeError("no str")), r"data\[7\] raised TypeError: no str"),
    "missing key": (Differing({"x": X[0]}), r"record 7: \['x'\]"),
    "other shape": (Differing({"x": X[0][:2], "y": 1}), r"record \d+, field x: shape"),
    "other type": (Differing({"x": "text", "y": 1}), r"record 7, field x: a str"),
    "no record": (Differing(None), "record 7: NoneType"),
    "objects": ([(object(), 1)] * RECORDS, "record 0, field 0: a object"),
    "tensors of one shape": (list(X), "tuple of columns, or one tensor"),
    "columns of other lengths": ((X, Y[:5]), "records as their first dimension"),
    "masked array": ((np.ma.masked_array(X.numpy()), Y), "without a mask"),
    "missing values": (pd.DataFrame({"a": pd.array([1, None], dtype="Int64")}), "column a"),
    "ragged column": ({"input_ids": [[1, 2], [3]], "y": Y[:2]}, "PadTokens.*column input_ids"),
    "ragged list": ([[1, 2], [3]], "PadTokens"),
    "ragged vectors": ([torch.arange(n % 3 + 1) for n in range(9)], "PadTokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used_are_refused_with_the_reason(name: str) -> None:
    data, why = REFUSED[name]
    with pytest.raises((InvalidArgument, UserCodeError), match=why) as caught:
        trained(data, rate=1.0)
    assert isinstance(caught.value, DpauditError)
    assert "\n" not in str(caught.value)


def test_a_dict_of_data_sets_is_refused() -> None:
    data = hugging_face(None)
    with pytest.raises(InvalidArgument, match=r"one data set, as data\['train'\]"):
        trained({"train": data, "test": data})


@pytest.mark.parametrize(
    ("collate", "why"),
    [
        (lambda records: records[0]["label"], "collate_fn, given .* raised"),
        (lambda records: (X[:2], Y[:2]), "one row per record"),
        (lambda records: {"x": X[: len(records)], "size": 3}, "a int in it"),
    ],
)
def test_a_collate_function_that_fails_is_named(collate: Any, why: str) -> None:
    with pytest.raises((InvalidArgument, UserCodeError), match=why):
        trained(Pairs(), rate=1.0, collate_fn=collate)


def test_data_are_given_somewhere() -> None:
    with pytest.raises(InvalidArgument, match="given to make_private or to batches"):
        trained(None)
