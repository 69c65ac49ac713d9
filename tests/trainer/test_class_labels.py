"""Labels that are no classes are refused, wherever labels are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from dpaudit.trainer.data import load_dataset, require_classes
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.attack.model_attacks import load_population

RECORDS = 200
DRAWS = np.random.default_rng(3)
FEATURES = DRAWS.standard_normal((RECORDS, 3)).astype(np.float32)
TARGETS = {
    "temperatures": np.round(DRAWS.normal(15, 5, RECORDS), 1),
    "few fractions": np.where(np.arange(RECORDS) % 2, 0.5, 1.0),
    "one fraction": np.where(np.arange(RECORDS) == 7, 1.5, np.arange(RECORDS) % 3),
    "prices": DRAWS.permutation(100_000)[:RECORDS],
    "whole prices as floats": DRAWS.permutation(100_000)[:RECORDS].astype(np.float64),
}
CLASSES = {
    "whole numbers as floats": np.arange(RECORDS) % 5 * 1.0,
    "negative floats": np.where(np.arange(RECORDS) % 2, -1.0, 1.0),
    "names": np.array(["cat", "dog"])[np.arange(RECORDS) % 2],
    "many classes": np.arange(RECORDS) % 70,
    "booleans": np.arange(RECORDS) % 2 == 0,
}


def save(folder: Path, labels: NDArray, suffix: str) -> Path:
    path = folder / f"data{suffix}"
    frame = pd.DataFrame(FEATURES, columns=["a", "b", "c"]).assign(target=labels)
    match suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path, index=False)
        case _:
            np.savez(path, x=FEATURES, y=labels)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("name", TARGETS)
def test_targets_of_regression_are_refused_by_their_column(
    tmp_path: Path, name: str, suffix: str
) -> None:
    data = DataSettings(source=str(save(tmp_path, TARGETS[name], suffix)))
    column = "y" if suffix == ".npz" else "target"
    for read in (
        lambda: load_dataset(data),
        lambda: load_population(data, max_records=None, seed=0),
    ):
        with pytest.raises(InvalidArgument, match=f"classes.*column '{column}'"):
            read()


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_any_type_are_read(tmp_path: Path, name: str, suffix: str) -> None:
    split = load_dataset(DataSettings(source=str(save(tmp_path, CLASSES[name], suffix))))
    assert len(split.classes) == len(np.unique(CLASSES[name]))


def test_a_small_test_set_may_hold_one_record_of_each_class(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    labels = np.arange(RECORDS) % 20
    np.savez(path, x_train=FEATURES, y_train=labels, x_test=FEATURES[:20], y_test=labels[:20])
    assert len(load_dataset(DataSettings(source=str(path))).classes) == 20


def test_targets_of_packed_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bits.npz"
    bits = np.packbits(FEATURES > 0, axis=1)
    np.savez(path, x_packed=bits, n_features=3, y=TARGETS["temperatures"])
    with pytest.raises(InvalidArgument, match="column 'y' with the value"):
        load_population(DataSettings(source=str(path)), max_records=None, seed=0)


def test_the_error_names_the_value_or_the_counts_and_what_to_do() -> None:
    with pytest.raises(InvalidArgument, match=r"cut the values into classes.*with the value 0\.25"):
        require_classes(np.array([0.0, 1.0, 0.25]), "price")
    with pytest.raises(InvalidArgument, match="30 different values in 30 records"):
        require_classes(np.array([f"person {i}" for i in range(30)]), "name")


def test_few_records_of_few_classes_are_classes() -> None:
    require_classes(np.arange(10), "digit")
    require_classes(np.array([0, 1, 1]), "label")
