"""Records from files: bundled digits, .npz, .csv, .parquet, IDX files and image folders.

Nothing here looks at the records to decide how to scale them: a least or greatest value
taken from the data would be a release that no ledger knows of.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.archives import gunzip
from dpaudit.files.arrays import opened_npz
from dpaudit.files.opening import DATA, InputFile, opened, read
from dpaudit.files.tables import read_table
from dpaudit.trainer.class_labels import require_classes
from dpaudit.vocabulary.errors import DpauditError, InvalidArgument, MissingExtra
from dpaudit.vocabulary.settings import DataSettings

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")  # others may start programs
FORMATS = "digits, a .npz, .csv or .parquet file, IDX files or a folder of images by class"
NPZ_NAMES = (("x_train", "y_train"), ("x_test", "y_test"), ("x", "y"), ("features", "labels"))
BYTE_RANGE = (0.0, 255.0)
MOST_SHOWN = 20
"""So many names of arrays are listed in an error."""


@dataclass(frozen=True)
class Records:
    """Features of shape ``(records, *shape)``, float32, and labels ``(records,)``, int64."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: NDArray[Any]) -> Records:
        return Records(self.features[which], self.labels[which])


@dataclass(frozen=True)
class Split:
    """Records to train on, records held out, and the label set, which is taken as public."""

    train: Records
    heldout: Records
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record."""
        return self.train.features.shape[1:]


@dataclass(frozen=True)
class _Part:
    """Features and labels as a file holds them, and the public range to scale from, if any."""

    features: NDArray[Any]
    labels: NDArray[Any]
    feature_range: tuple[float, float] | None = None
    column: str = "label"


def load(settings: DataSettings) -> Split:
    """Read, check, scale and split the records that ``settings`` name.

    Raises:
        InvalidArgument: the source is missing, of no known format, holds NaN or infinity,
            has features and labels of different lengths, labels that are no classes, or fewer
            than two classes.
    """
    try:
        return _load(settings)
    except DpauditError:
        raise
    except Exception as error:  # a file can be broken in any way that its reader knows
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidArgument("data", settings.source, why) from error


def _load(settings: DataSettings) -> Split:
    source = settings.source
    parts = _read(source, settings.label)
    labels = np.concatenate([_labels(part, source) for part in parts])
    require_classes(labels, parts[0].column)
    label_set = np.unique(labels)
    if len(label_set) < 2:
        raise InvalidArgument("data", source, "records of at least two classes")
    records = [_records(part, label_set, settings.feature_range, source) for part in parts]
    if len(records) == 1:
        # Coin i is the i-th draw: a record more at the end moves no other record's coin.
        coins = np.random.default_rng(settings.split_seed).random(len(records[0]))
        held = coins < settings.test_fraction
        records = [records[0][~held], records[0][held]]
    train, heldout = records
    if min(len(train), len(heldout)) == 0:
        raise InvalidArgument("data", source, "records both to train on and to hold out")
    shapes = [part.features.shape[1:] for part in records]
    if shapes[0] != shapes[1]:
        raise InvalidArgument("data", source, f"records of one shape, not {shapes}")
    return Split(train, heldout, tuple(str(label) for label in label_set))


def _labels(part: _Part, source: str) -> NDArray[Any]:
    labels = part.labels
    if labels.ndim != 1:
        raise InvalidArgument("data", source, f"labels of shape (records,), not {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InvalidArgument("data", source, "labels without NaN or infinity")
    return labels


def _records(
    part: _Part, label_set: NDArray[Any], asked: tuple[float, float] | None, source: str
) -> Records:
    features, labels = part.features, part.labels
    _require_pair(features.shape, labels.shape, source)
    if features.dtype.kind not in "buif":
        raise InvalidArgument("data", source, f"numeric features, not {features.dtype}")
    values = features.astype(np.float32)
    bad = ~np.isfinite(values.reshape(len(values), math.prod(values.shape[1:]))).all(axis=1)
    if bad.any():
        raise InvalidArgument(
            "data", source, f"finite features; record {int(bad.argmax())} holds NaN or infinity"
        )
    if (scale := asked or part.feature_range) is not None:
        least, greatest = scale
        values = np.clip((values - least) / (greatest - least), 0.0, 1.0)
    indices = np.searchsorted(label_set, labels).astype(np.int64)
    return Records(np.ascontiguousarray(values, dtype=np.float32), indices)


def _require_pair(features: tuple[int, ...], labels: tuple[int, ...], source: str) -> None:
    if len(features) < 2 or features[:1] != labels[:1] or 0 in features[1:]:
        raise InvalidArgument(
            "data",
            source,
            f"features of shape (records, ...) and as many labels, not {features} and {labels}",
        )


def _source(path: Path) -> InputFile:
    return InputFile(path, "data", DATA)


def _read(source: str, label: str | None) -> list[_Part]:
    if source == "digits":
        return _read_digits()
    path = Path(source)
    if not os.path.lexists(path):
        raise InvalidArgument("data", source, f"one of: {FORMATS}; no such file or folder")
    name = path.name.removesuffix(".gz")
    if os.path.isdir(path):
        return _read_idx(path) if _idx_files(path) else _read_images(path)
    if name.endswith(".npz"):
        return _read_npz(path)
    if name.endswith((".csv", ".parquet")):
        return _read_frame(path, label)
    if "-images" in name and "idx" in name:
        return _read_idx(path.parent)
    raise InvalidArgument("data", source, f"one of: {FORMATS}")


def _read_digits() -> list[_Part]:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    digits = load_digits()
    return [_Part(digits.images, digits.target, (0.0, 16.0))]


def _read_npz(path: Path) -> list[_Part]:
    with opened_npz(_source(path)) as archive:
        shown = archive.headers
        pairs = [(x, y) for x, y in NPZ_NAMES if x in shown and y in shown]
        if not pairs or len(pairs) > 2 or ("x_test" in shown) != (len(pairs) == 2):
            raise InvalidArgument(
                "data",
                str(path),
                f"an .npz with x_train, y_train (and x_test, y_test), or x and y; it has "
                f"{sorted(shown)[:MOST_SHOWN]}",
            )
        for x, y in pairs:  # before anything is inflated
            _require_pair(shown[x].shape, shown[y].shape, str(path))
        arrays = archive.read({name for pair in pairs for name in pair})
    return [
        _Part(arrays[x], arrays[y], BYTE_RANGE if arrays[x].dtype == np.uint8 else None, y)
        for x, y in pairs
    ]


def _read_frame(path: Path, label: str | None) -> list[_Part]:
    try:
        import pandas as pd  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pandas", "train") from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = read_table(_source(path), low_memory=False)
    column = label or ("label" if "label" in frame.columns else str(frame.columns[-1]))
    if column not in frame.columns:
        raise InvalidArgument("label", column, f"a column of {path}: {list(frame.columns)}")
    labels = frame[column]
    if bool(labels.isna().any()):
        raise InvalidArgument("data", str(path), f"a label in every row of column {column!r}")
    if labels.dtype == object and len({type(value) for value in labels}) > 1:
        raise InvalidArgument("data", str(path), f"labels of one kind in column {column!r}")
    # Text columns become one column a category; the set of categories is taken as public.
    features = pd.get_dummies(frame.drop(columns=[column]), dtype=np.float32)
    others = list(features.select_dtypes(exclude=["number", "bool"]).columns)
    if others:
        raise InvalidArgument("data", str(path), f"a table of numbers and text, not {others}")
    values = features.to_numpy(dtype=np.float32, na_value=np.nan)
    return [_Part(values, labels.to_numpy(), column=column)]


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the IDX files of a folder by what they hold: train-images, t10k-labels, ..."""
    return {
        "-".join(path.name.replace(".", "-").split("-")[:2]): path
        for path in sorted(folder.iterdir())
        if "idx" in path.name and "ubyte" in path.name
    }


def _read_idx(folder: Path) -> list[_Part]:
    files = _idx_files(folder)
    if not {"train-images", "train-labels"} <= set(files):
        raise InvalidArgument(
            "data", str(folder), "IDX files train-images-idx3-ubyte and train-labels-idx1-ubyte"
        )
    sets = ["train", "t10k"] if {"t10k-images", "t10k-labels"} <= set(files) else ["train"]
    return [
        _Part(_idx_array(files[f"{name}-images"]), _idx_array(files[f"{name}-labels"]), BYTE_RANGE)
        for name in sets
    ]


def _idx_array(path: Path) -> NDArray[np.uint8]:
    """Return the array of one IDX file: magic 0, 0, 8 (bytes), dimensions, then sizes, data."""
    raw = gunzip(_source(path)) if path.suffix == ".gz" else read(_source(path))
    zeros, kind, dimensions = struct.unpack(">HBB", raw[:4])
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    if zeros != 0 or kind != 8:
        allowed = f"an IDX file of bytes, whose magic begins 000008, not {raw[:4].hex()}"
        raise InvalidArgument("data", str(path), allowed)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(group.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield group.name, path


@contextmanager
def _opened_image(path: Path) -> Iterator[Any]:
    """Open an image of a known format; one of too many pixels is refused, not warned of."""
    from PIL import Image  # noqa: PLC0415  heavy: only where needed

    with opened(_source(path)) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            yield image


def _read_images(folder: Path) -> list[_Part]:
    try:
        import PIL  # noqa: F401, PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pillow", "train") from error
    found = list(_images(folder))
    if not found:
        raise InvalidArgument("data", str(folder), "a folder with one sub-folder of images a class")
    arrays: list[NDArray[np.uint8]] = []
    for _, path in found:
        with _opened_image(path) as image:
            grey = image.mode in {"1", "L", "I;16"}
            array = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
        if arrays and array.shape != arrays[0].shape:
            raise InvalidArgument(
                "data", str(path), f"an image of shape {arrays[0].shape} like the first one"
            )
        arrays.append(array)
    features = np.stack(arrays)
    if features.ndim == 4:  # channels first, as torch has it
        features = features.transpose(0, 3, 1, 2)
    return [_Part(features, np.array([name for name, _ in found]), BYTE_RANGE)]
