"""Records from files: bundled digits, .npz, .csv, .parquet, IDX files and image folders.

Nothing here looks at the records to decide how to scale them: a least or greatest value
taken from the data would be a release that no ledger knows of.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.vocabulary.settings import DataSettings

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp"}
FORMATS = "digits, a .npz, .csv or .parquet file, IDX files or a folder of images by class"
BYTE_RANGE = (0.0, 255.0)


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
class _Table:
    """What a file holds before scaling: one or two sets of features and labels."""

    train: tuple[NDArray[Any], NDArray[Any]]
    heldout: tuple[NDArray[Any], NDArray[Any]] | None = None
    feature_range: tuple[float, float] | None = None


def load(settings: DataSettings) -> Split:
    """Read, check, scale and split the records that ``settings`` name.

    Raises:
        InvalidArgument: the source is missing, of no known format, holds NaN or infinity,
            has features and labels of different lengths, or fewer than two classes.
    """
    source = settings.source
    table = _read(source, settings.label)
    scale = settings.feature_range or table.feature_range
    parts = [table.train] + ([table.heldout] if table.heldout else [])
    label_set = np.unique(np.concatenate([_labels(y, source) for _, y in parts]))
    if len(label_set) < 2:
        raise InvalidArgument("data", source, "records of at least two classes")
    records = [_records(x, y, label_set, scale, source) for x, y in parts]
    if len(records) == 1:
        # Coin i is the i-th draw: a record more at the end moves no other record's coin.
        coins = np.random.default_rng(settings.split_seed).random(len(records[0]))
        held = coins < settings.test_fraction
        records = [records[0][~held], records[0][held]]
    train, heldout = records
    if min(len(train), len(heldout)) == 0:
        raise InvalidArgument("data", source, "records both to train on and to hold out")
    if train.features.shape[1:] != heldout.features.shape[1:]:
        raise InvalidArgument(
            "data",
            source,
            f"records of one shape, not {train.features.shape[1:]} and "
            f"{heldout.features.shape[1:]}",
        )
    return Split(train, heldout, tuple(str(label) for label in label_set))


def _labels(labels: NDArray[Any], source: str) -> NDArray[Any]:
    if labels.ndim != 1:
        raise InvalidArgument("data", source, f"labels of shape (records,), not {labels.shape}")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        raise InvalidArgument("data", source, "labels without NaN or infinity")
    return labels


def _records(
    features: NDArray[Any],
    labels: NDArray[Any],
    label_set: NDArray[Any],
    scale: tuple[float, float] | None,
    source: str,
) -> Records:
    if features.ndim < 2 or len(features) != len(labels):
        raise InvalidArgument(
            "data",
            source,
            f"features of shape (records, ...) and as many labels, not {features.shape} "
            f"and {labels.shape}",
        )
    if features.dtype.kind not in "buif":
        raise InvalidArgument("data", source, f"numeric features, not {features.dtype}")
    values = features.astype(np.float32)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise InvalidArgument(
            "data", source, f"finite features; record {int(bad.argmax())} holds NaN or infinity"
        )
    if scale is not None:
        least, greatest = scale
        values = np.clip((values - least) / (greatest - least), 0.0, 1.0)
    indices = np.searchsorted(label_set, labels).astype(np.int64)
    return Records(np.ascontiguousarray(values, dtype=np.float32), indices)


def _read(source: str, label: str | None) -> _Table:
    if source == "digits":
        return _read_digits()
    path = Path(source)
    if not path.exists():
        raise InvalidArgument("data", source, f"one of: {FORMATS}; no such file or folder")
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        return _read_idx(path) if _idx_files(path) else _read_images(path)
    if name.endswith(".npz"):
        return _read_npz(path)
    if name.endswith((".csv", ".parquet")):
        return _read_frame(path, label)
    if "-images" in name and "idx" in name:
        return _read_idx(path.parent)
    raise InvalidArgument("data", source, f"one of: {FORMATS}")


def _read_digits() -> _Table:
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    digits = load_digits()
    return _Table((digits.images, digits.target), feature_range=(0.0, 16.0))


def _read_npz(path: Path) -> _Table:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib, ValueError: whatever a broken file brings
        raise InvalidArgument("data", str(path), f"a readable .npz file ({error})") from error
    byte_range = None
    for x, y in (("x_train", "y_train"), ("x", "y"), ("features", "labels")):
        if x in arrays and y in arrays:
            if arrays[x].dtype == np.uint8:
                byte_range = BYTE_RANGE
            heldout = (arrays["x_test"], arrays["y_test"]) if {"x_test", "y_test"} <= set(arrays) else None
            return _Table((arrays[x], arrays[y]), heldout, byte_range)
    raise InvalidArgument(
        "data", str(path), f"an .npz with x_train and y_train, or x and y; it has {sorted(arrays)}"
    )


def _read_frame(path: Path, label: str | None) -> _Table:
    try:
        import pandas as pd  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pandas", "train") from error
    try:
        frame = pd.read_parquet(path) if ".parquet" in path.name else pd.read_csv(path)
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise InvalidArgument("data", str(path), f"a readable table ({error})") from error
    column = label or ("label" if "label" in frame.columns else str(frame.columns[-1]))
    if column not in frame.columns:
        raise InvalidArgument("label", column, f"a column of {path}: {list(frame.columns)}")
    labels = frame[column]
    if bool(labels.isna().any()):
        raise InvalidArgument("data", str(path), f"a label in every row of column {column!r}")
    # Text columns become one column a category; the set of categories is taken as public.
    features = pd.get_dummies(frame.drop(columns=[column]), dtype=np.float32)
    return _Table((features.to_numpy(), labels.to_numpy()))


def _idx_files(folder: Path) -> dict[str, Path]:
    """Return the IDX files of a folder by what they hold: train-images, t10k-labels, ..."""
    return {
        "-".join(path.name.replace(".", "-").split("-")[:2]): path
        for path in sorted(folder.iterdir())
        if "idx" in path.name and "ubyte" in path.name
    }


def _read_idx(folder: Path) -> _Table:
    files = _idx_files(folder)
    if not {"train-images", "train-labels"} <= set(files):
        raise InvalidArgument(
            "data", str(folder), "IDX files train-images-idx3-ubyte and train-labels-idx1-ubyte"
        )
    heldout = None
    if {"t10k-images", "t10k-labels"} <= set(files):
        heldout = (_idx_array(files["t10k-images"]), _idx_array(files["t10k-labels"]))
    train = (_idx_array(files["train-images"]), _idx_array(files["train-labels"]))
    return _Table(train, heldout, BYTE_RANGE)


def _idx_array(path: Path) -> NDArray[np.uint8]:
    """Return the array of one IDX file: magic 0, 0, 8 (bytes), dimensions, then sizes, data."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            raw = file.read()
        zeros, kind, dimensions = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
        if zeros != 0 or kind != 8:
            raise ValueError(f"magic number {raw[:4].hex()}")
        return values.reshape(shape)
    except (OSError, EOFError, struct.error, ValueError) as error:
        raise InvalidArgument("data", str(path), f"an IDX file of bytes ({error})") from error


def _images(folder: Path) -> Iterator[tuple[str, Path]]:
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(group.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield group.name, path


def _read_images(folder: Path) -> _Table:
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  heavy: only where needed
    except ImportError as error:
        raise MissingExtra("pillow", "train") from error
    found = list(_images(folder))
    if not found:
        raise InvalidArgument("data", str(folder), "a folder with one sub-folder of images a class")
    arrays: list[NDArray[np.uint8]] = []
    for _, path in found:
        try:
            with Image.open(path) as image:
                grey = image.mode in {"1", "L", "I;16"}
                array = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
        except (UnidentifiedImageError, OSError) as error:
            raise InvalidArgument("data", str(path), f"a readable image ({error})") from error
        if arrays and array.shape != arrays[0].shape:
            raise InvalidArgument(
                "data", str(path), f"an image of shape {arrays[0].shape} like the first one"
            )
        arrays.append(array)
    features = np.stack(arrays)
    if features.ndim == 4:  # channels first, as torch has it
        features = features.transpose(0, 3, 1, 2)
    return _Table((features, np.array([name for name, _ in found])), feature_range=BYTE_RANGE)
