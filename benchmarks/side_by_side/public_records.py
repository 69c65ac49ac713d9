"""Write the records of a preset as a file that ``dpaudit train`` reads.

No value is scaled by what the records hold: ranges and categories are those of the published
description of the data set.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# UCI Adult: numeric columns with public ranges, and text columns with public categories, as its
# file adult.names lists them. ``fnlwgt`` is a weight of the census and left out.
ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week"),
    *("native-country", "income"),
)
ADULT_RANGES = {"age": (17, 90), "education-num": (1, 16), "hours-per-week": (1, 99)}
ADULT_LOGARITHMS = {"capital-gain": 99_999, "capital-loss": 4_356}
ADULT_CATEGORIES = {
    "workclass": "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov "
    "Without-pay Never-worked",
    "marital-status": "Married-civ-spouse Divorced Never-married Separated Widowed "
    "Married-spouse-absent Married-AF-spouse",
    "occupation": "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
    "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving "
    "Priv-house-serv Protective-serv Armed-Forces",
    "relationship": "Wife Own-child Husband Not-in-family Other-relative Unmarried",
    "race": "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black",
    "sex": "Female Male",
    "native-country": "United-States",  # of the others, each has at most 2%
}


def _adult_features(row: dict[str, str]) -> list[float]:
    """Return one record's features in [0, 1]; an unknown category is a row of zeros."""
    found = [(float(row[name]) - low) / (high - low) for name, (low, high) in ADULT_RANGES.items()]
    for name, most in ADULT_LOGARITHMS.items():
        found += [math.log1p(float(row[name])) / math.log1p(most), float(float(row[name]) > 0)]
    for name, categories in ADULT_CATEGORIES.items():
        found += [float(row[name] == one) for one in categories.split()]
    return [min(max(value, 0.0), 1.0) for value in found]


def _adult_part(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file, skipinitialspace=True) if len(row) == 15]
    records = [dict(zip(ADULT_COLUMNS, row, strict=True)) for row in rows]
    features = np.array([_adult_features(one) for one in records], dtype=np.float32)
    return features, np.array([one["income"].startswith(">50K") for one in records], np.int64)


def write_adult(folder: Path, target: Path) -> None:
    """Write UCI Adult, with its own test set."""
    train, test = (_adult_part(folder / f"adult.{part}.csv.gz") for part in ("data", "test"))
    np.savez(target, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])


def write_cifar10(folder: Path, target: Path) -> None:
    """Write the images of ``cifar10_jpeg_full.npz``, channels first; JPEG has altered them."""
    found: dict[str, NDArray[np.generic]] = {}
    with np.load(folder / "cifar10_jpeg_full.npz", allow_pickle=False) as file:
        for part in ("train", "test"):
            jpeg, at = file[f"jpeg_{part}"], file[f"off_{part}"]
            images = [_decoded(jpeg[at[i] : at[i + 1]]) for i in range(len(at) - 1)]
            found[f"x_{part}"] = np.stack(images).transpose(0, 3, 1, 2)
            found[f"y_{part}"] = file[f"y_{part}"]
    np.savez(target, **found)  # type: ignore[arg-type]


def _decoded(jpeg: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


PREPARED: dict[str, Callable[[Path, Path], None]] = {
    "adult-mlp": write_adult,
    "cifar10-scattering": write_cifar10,
    "cifar10-wrn": write_cifar10,
}
"""By preset: writes the records of a folder of published files to a .npz file."""
