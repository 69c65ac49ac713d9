"""Read records: bundled digits, .npz, .csv, .parquet, IDX files and image folders.

Records are never inspected to choose a feature range: a minimum or maximum computed from the
data would be a release that the ledger does not record.
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

from dpaudit.files.archives import gunzip, open_npz
from dpaudit.files.documents import read_table
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input, read_bytes
from dpaudit.vocabulary.errors import (
    DpauditError,
    InvalidArgument,
    InvalidData,
    MissingExtra,
    UnreadableFile,
)
from dpaudit.vocabulary.settings import DataSettings

# Labels must be classes: real-valued targets and identifiers are refused.

ALLOWED_LABELS = (
    "a column of classes, as models here are classifiers and attacks compare records of a class: "
    "select another column with --label, cut the values into classes, or attack regression models "
    "with --task regression"
)
MAX_VALUES_UNCHECKED = (
    10  # up to this many distinct values are classes, whatever the number of records
)
MIN_RECORDS_PER_CLASS = 2  # on average


def require_classes(labels: NDArray[Any], column: str) -> None:
    """Refuse labels that are not classes.

    Whole numbers stored as floats are classes. A model cannot learn a class of which it had no
    training record. With about one record per class, every held-out record would resemble a
    non-member.

    Args:
        labels: Labels of all records, shape ``(records,)``, without NaN or infinity.
        column: Name of the label column, for the message.

    Raises:
        InvalidArgument: If a label is a fraction, or nearly every record has its own label.
    """
    if labels.dtype.kind == "f" and (fractions := labels != np.floor(labels)).any():
        given = f"column {column!r} with the value {float(labels[fractions][0]):g}"
        raise InvalidArgument("label", given, ALLOWED_LABELS)
    distinct = len(np.unique(labels))
    if distinct > MAX_VALUES_UNCHECKED and len(labels) < MIN_RECORDS_PER_CLASS * distinct:
        given = f"column {column!r} with {distinct} different values in {len(labels)} records"
        raise InvalidArgument("label", given, ALLOWED_LABELS)


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
IMAGE_FORMATS = (
    "PNG",
    "JPEG",
    "BMP",
    "GIF",
    "WEBP",
)  # decoders of other formats may start programs
DATA_FORMATS = (
    "digits, a .npz, .csv or .parquet file, IDX files, a folder of images by class, or a .txt or "
    ".bytes file of text"
)
NPZ_NAMES = (("x_train", "y_train"), ("x_test", "y_test"), ("x", "y"), ("features", "labels"))
BYTE_RANGE = (0.0, 255.0)
MAX_VALUES_SHOWN = 20
"""Number of array names that an error lists."""


@dataclass(frozen=True)
class RecordArrays:
    """Records as arrays.

    Attributes:
        features: Shape ``(records, *shape)``, float32.
        labels: Class of each record, shape ``(records,)``, int64.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: NDArray[Any]) -> RecordArrays:
        return RecordArrays(self.features[which], self.labels[which])


@dataclass(frozen=True)
class DatasetSplit:
    """Records to train on, and records held out.

    Attributes:
        train: The records to train on.
        heldout: The records held out.
        classes: Names of the classes by label, taken as public.
    """

    train: RecordArrays
    heldout: RecordArrays
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one record, without the dimension of records."""
        return self.train.features.shape[1:]


@dataclass(frozen=True)
class _RawRecords:
    """Features and labels as a file holds them, and the public range to scale from, if any."""

    features: NDArray[Any]
    labels: NDArray[Any]
    feature_range: tuple[float, float] | None = None
    column: str = "label"


def load_dataset(settings: DataSettings) -> DatasetSplit:
    """Read, check, scale and split the records that ``settings`` name.

    Args:
        settings: Source, label column, feature range, test fraction and seed of the split.

    Returns:
        Records to train on and held-out records. The source's own test set is held out if it
        has one; else a random fraction.

    Raises:
        UnreadableFile: If the source is missing, or of no known format.
        InvalidData: If it holds NaN or infinity, has features and labels of different lengths,
            labels that are not classes, or fewer than two classes.
        InvalidArgument: If the settings name token sequences, which have no classes.
    """
    if settings.has_tokens:
        allowed = (
            "records with classes for this purpose: token sequences have none (score them "
            "yourself, and give the scores with --scores)"
        )
        raise InvalidArgument("data", settings.source, allowed)
    try:
        return _load(settings)
    except DpauditError:
        raise
    except Exception as error:  # readers raise many kinds of errors on broken files
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidData("data", settings.source, why) from error


def _load(settings: DataSettings) -> DatasetSplit:
    """Read and split the records; errors of file readers are not converted here."""
    source = settings.source
    parts = _read(source, settings.label)
    labels = np.concatenate([_labels(part, source) for part in parts])
    require_classes(labels, parts[0].column)
    label_set = np.unique(labels)
    if len(label_set) < 2:
        raise InvalidData("data", source, "records of at least two classes")
    records = [_records(part, label_set, settings.feature_range, source) for part in parts]
    if len(records) == 1:
        # Draw i belongs to record i: appending a record changes no other record's part.
        coins = np.random.default_rng(settings.split_seed).random(len(records[0]))
        held = coins < settings.test_fraction
        records = [records[0][~held], records[0][held]]
    train, heldout = records
    if min(len(train), len(heldout)) == 0:
        raise InvalidData("data", source, "records both to train on and to hold out")
    shapes = [part.features.shape[1:] for part in records]
    if shapes[0] != shapes[1]:
        raise InvalidData("data", source, f"records of one shape, not {shapes}")
    return DatasetSplit(train, heldout, tuple(str(label) for label in label_set))


def load_regression_records(
    settings: DataSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Read all records of a source whose labels are real values.

    Args:
        settings: Source and label column; the split is not used.

    Returns:
        Features, shape ``(records, ...)``, and values, shape ``(records,)``. Training and test
        records of a source with both are joined.

    Raises:
        UnreadableFile: If the source is missing, or of no known format.
        InvalidData: If it holds NaN or infinity, labels that are no numbers, equal labels, or
            features and labels of different lengths.
    """
    source = settings.source
    try:
        parts = _read(source, settings.label)
        found = [_regression_part(part, settings, source) for part in parts]
        features = np.concatenate([features for features, _ in found])
        values = np.concatenate([values for _, values in found])
    except DpauditError:
        raise
    except Exception as error:  # readers raise many kinds of errors on broken files
        why = f"readable: {type(error).__name__}: {error}"
        raise InvalidData("data", source, why) from error
    if np.ptp(values) == 0:
        raise InvalidData("data", source, "records with at least two different labels")
    return features, values


def _regression_part(
    part: _RawRecords, settings: DataSettings, source: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return features and real-valued labels of a part."""
    labels = _labels(part, source)
    if labels.dtype.kind not in "buif":
        raise InvalidData("data", source, f"labels that are numbers, not {labels.dtype}")
    same = np.zeros(len(labels), dtype=np.int64)  # classes are not read
    records = _records(
        _RawRecords(part.features, same, part.feature_range, part.column),
        np.zeros(1, dtype=np.int64),
        settings.feature_range,
        source,
    )
    return records.features, labels.astype(np.float64)


def load_training_column(settings: DataSettings, column: str) -> NDArray[Any]:
    """Read one column of a table, for the training records of ``load_dataset``.

    Args:
        settings: Source and split, as for ``load_dataset``.
        column: Name of the column, which may be among the features or the label.

    Returns:
        Values as text, shape ``(records,)``, in the order of the training records.

    Raises:
        InvalidArgument: If the source is no table, or lacks the column.
        UnreadableFile: If the source is missing.
    """
    return load_column(settings, column, "partition")[0]


def load_column(
    settings: DataSettings, column: str, option: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read one column of a table, in the order of the records of ``load_dataset``.

    Args:
        settings: Source and split, as for ``load_dataset``.
        column: Name of the column, which may be among the features or the label.
        option: What names the column, for messages.

    Returns:
        Values as text of the training records, and those of the held-out records.

    Raises:
        InvalidArgument: If the source is no table, or lacks the column.
        UnreadableFile: If the source is missing.
    """
    path = Path(settings.source)
    if not path.name.removesuffix(".gz").endswith((".csv", ".parquet")):
        raise InvalidArgument(option, "column", f"another one: {settings.source} is no table")
    frame = read_table(_source(path), low_memory=False)
    if column not in frame.columns:
        allowed = f"a column of {settings.source}: {list(frame.columns)[:MAX_VALUES_SHOWN]}"
        raise InvalidArgument(f"{option}_column", column, allowed)
    values = frame[column].astype(str).to_numpy()
    held = np.random.default_rng(settings.split_seed).random(len(values)) < settings.test_fraction
    return np.asarray(values[~held]), np.asarray(values[held])


def _labels(part: _RawRecords, source: str) -> NDArray[Any]:
    """Return the labels of a part; refuse any other shape than ``(records,)``, NaN and infinity."""
    labels = part.labels
    if labels.ndim != 1:
        raise InvalidData("data", source, f"labels of shape (records,), not {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InvalidData("data", source, "labels without NaN or infinity")
    return labels


def _records(
    part: _RawRecords,
    label_set: NDArray[Any],
    chosen_range: tuple[float, float] | None,
    source: str,
) -> RecordArrays:
    """Return features scaled to [0, 1] where a public range is known, and class indices."""
    features, labels = part.features, part.labels
    _require_pair(features.shape, labels.shape, source)
    if features.dtype.kind not in "buif":
        raise InvalidData("data", source, f"numeric features, not {features.dtype}")
    values = features.astype(np.float32)
    bad = ~np.isfinite(values.reshape(len(values), math.prod(values.shape[1:]))).all(axis=1)
    if bad.any():
        raise InvalidData(
            "data", source, f"finite features; record {int(bad.argmax())} holds NaN or infinity"
        )
    if (scale := chosen_range or part.feature_range) is not None:
        least, greatest = scale
        values = np.clip((values - least) / (greatest - least), 0.0, 1.0)
    indices = np.searchsorted(label_set, labels).astype(np.int64)
    return RecordArrays(np.ascontiguousarray(values, dtype=np.float32), indices)


def _require_pair(features: tuple[int, ...], labels: tuple[int, ...], source: str) -> None:
    """Refuse shapes of features and labels that are not those of the same records."""
    if len(features) < 2 or features[:1] != labels[:1] or 0 in features[1:]:
        raise InvalidData(
            "data",
            source,
            f"features of shape (records, ...) and as many labels, not {features} and {labels}",
        )


def _source(path: Path) -> InputFile:
    """Return the path as an input file with the size limit of data."""
    return InputFile(path, "data", DATA_LIMIT)


def _read(source: str, label: str | None) -> list[_RawRecords]:
    """Return the records of a source: one part, or a training part and a test part."""
    if source == "digits":
        return _read_digits()
    path = Path(source)
    if not os.path.lexists(path):
        raise UnreadableFile("data", source, f"one of: {DATA_FORMATS}; no such file or folder")
    name = path.name.removesuffix(".gz")
    if os.path.isdir(path):
        return _read_idx(path) if _idx_files(path) else _read_images(path)
    if name.endswith(".npz"):
        return _read_npz(path)
    if name.endswith((".csv", ".parquet")):
        return _read_frame(path, label)
    if "-images" in name and "idx" in name:
        return _read_idx(path.parent)
    raise UnreadableFile("data", source, f"one of: {DATA_FORMATS}")


def _read_digits() -> list[_RawRecords]:
    """Return scikit-learn's bundled digits, whose pixels range from 0 to 16."""
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    digits = load_digits()
    return [_RawRecords(digits.images, digits.target, (0.0, 16.0))]


def _read_npz(path: Path) -> list[_RawRecords]:
    """Return one or two pairs of arrays of an .npz file, checked before decompression."""
    with open_npz(_source(path)) as archive:
        shown = archive.headers
        pairs = [(x, y) for x, y in NPZ_NAMES if x in shown and y in shown]
        if not pairs or len(pairs) > 2 or ("x_test" in shown) != (len(pairs) == 2):
            raise InvalidData(
                "data",
                str(path),
                f"an .npz with x_train, y_train (and x_test, y_test), or x and y; it has "
                f"{sorted(shown)[:MAX_VALUES_SHOWN]}",
            )
        for x, y in pairs:  # before decompression
            _require_pair(shown[x].shape, shown[y].shape, str(path))
        arrays = archive.read({name for pair in pairs for name in pair})
    return [
        _RawRecords(arrays[x], arrays[y], BYTE_RANGE if arrays[x].dtype == np.uint8 else None, y)
        for x, y in pairs
    ]


def _read_frame(path: Path, label: str | None) -> list[_RawRecords]:
    """Return the records of a table; text columns are one-hot encoded."""
    try:
        import pandas as pd  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pandas", "train") from error
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = read_table(_source(path), low_memory=False)
    column = label or ("label" if "label" in frame.columns else str(frame.columns[-1]))
    if column not in frame.columns:
        raise InvalidData("label", column, f"a column of {path}: {list(frame.columns)}")
    labels = frame[column]
    if bool(labels.isna().any()):
        raise InvalidData("data", str(path), f"a label in every row of column {column!r}")
    if labels.dtype == object and len({type(value) for value in labels}) > 1:
        raise InvalidData("data", str(path), f"labels of one kind in column {column!r}")
    # Text columns become one column per category; the set of categories is taken as public.
    features = pd.get_dummies(frame.drop(columns=[column]), dtype=np.float32)
    others = list(features.select_dtypes(exclude=["number", "bool"]).columns)
    if others:
        raise InvalidData("data", str(path), f"a table of numbers and text, not {others}")
    values = features.to_numpy(dtype=np.float32, na_value=np.nan)
    return [_RawRecords(values, labels.to_numpy(), column=column)]


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the IDX files of a folder by what they hold: train-images, t10k-labels, ..."""
    return {
        "-".join(path.name.replace(".", "-").split("-")[:2]): path
        for path in sorted(folder.iterdir())
        if "idx" in path.name and "ubyte" in path.name
    }


def _read_idx(folder: Path) -> list[_RawRecords]:
    files = _idx_files(folder)
    if not {"train-images", "train-labels"} <= set(files):
        raise InvalidData(
            "data", str(folder), "IDX files train-images-idx3-ubyte and train-labels-idx1-ubyte"
        )
    sets = ["train", "t10k"] if {"t10k-images", "t10k-labels"} <= set(files) else ["train"]
    return [
        _RawRecords(
            _idx_array(files[f"{name}-images"]), _idx_array(files[f"{name}-labels"]), BYTE_RANGE
        )
        for name in sets
    ]


def _idx_array(path: Path) -> NDArray[np.uint8]:
    """Return the array of one IDX file: magic 0, 0, 8 (bytes), dimensions, then sizes, data."""
    raw = gunzip(_source(path)) if path.suffix == ".gz" else read_bytes(_source(path))
    zeros, kind, dimensions = struct.unpack(">HBB", raw[:4])
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    if zeros != 0 or kind != 8:
        allowed = f"an IDX file of bytes, whose magic begins 000008, not {raw[:4].hex()}"
        raise InvalidData("data", str(path), allowed)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (class, path) of each image, in sorted order; the sub-folder names the class."""
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(group.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield group.name, path


@contextmanager
def _opened_image(path: Path) -> Iterator[Any]:
    """Open an image of an allowed format; one of too many pixels is an error, not a warning."""
    from PIL import Image  # noqa: PLC0415  heavy: only where needed

    with open_input(_source(path)) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            yield image


def _read_images(folder: Path) -> list[_RawRecords]:
    """Return the images of a folder; all must have one shape."""
    try:
        import PIL  # noqa: F401, PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pillow", "train") from error
    found = list(_images(folder))
    if not found:
        raise InvalidData("data", str(folder), "a folder with one sub-folder of images per class")
    arrays: list[NDArray[np.uint8]] = []
    for _, path in found:
        with _opened_image(path) as image:
            gray = image.mode in {"1", "L", "I;16"}
            array = np.asarray(image.convert("L" if gray else "RGB"), dtype=np.uint8)
        if arrays and array.shape != arrays[0].shape:
            raise InvalidData(
                "data", str(path), f"an image of the first one's shape {arrays[0].shape}"
            )
        arrays.append(array)
    features = np.stack(arrays)
    if features.ndim == 4:  # channels first, as torch expects
        features = features.transpose(0, 3, 1, 2)
    return [_RawRecords(features, np.array([name for name, _ in found]), BYTE_RANGE)]
