"""The records that models are trained on for the sake of an attack, targets and references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.files.arrays import Arrays, opened_npz
from dpaudit.files.opening import DATA, InputFile
from dpaudit.trainer.class_labels import require_classes
from dpaudit.trainer.data import Records, load
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import DataSettings

PACKED = {"x_packed", "n_features", "y"}
FLOATS_OF_A_BYTE = 32  # bytes of the eight float32 that the bits of one byte become


def population(data: DataSettings, *, most: int | None, seed: int) -> tuple[Records, int]:
    """Return the records of ``data``, scaled, ``most`` of them at most, and their classes.

    Raises:
        InvalidArgument: the data cannot be used.
    """
    records, classes = _read(data)
    return _scaled(records[drawn(len(records), most=most, seed=seed)]), classes


def drawn(records: int, *, most: int | None, seed: int) -> NDArray[np.int64]:
    """Return the places of ``most`` of the records at most, drawn at random, in their order."""
    return np.sort(np.random.default_rng([seed, 0]).permutation(records)[:most])


def _read(data: DataSettings) -> tuple[Records, int]:
    if data.source.endswith(".npz") and (packed := _packed(Path(data.source))) is not None:
        return packed, int(packed.labels.max()) + 1
    split = load(data)
    parts = (split.train, split.heldout)
    records = Records(
        np.concatenate([part.features for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    return records, len(split.classes)


def _packed(path: Path) -> Records | None:
    """Return binary records that are kept as bits, x_packed with n_features; None if others."""
    with opened_npz(InputFile(path, "data", DATA)) as archive:
        shown = archive.headers
        if not set(shown) >= PACKED:
            return None
        bits, labels, number = (shown[name] for name in ("x_packed", "y", "n_features"))
        if (
            bits.dtype != np.uint8
            or len(bits.shape) != 2
            or number.shape != ()
            or number.dtype.kind not in "iu"
            or bits.shape[:1] != labels.shape
        ):
            allowed = "bits x_packed, (records, bytes), n_features and as many labels y"
            raise InvalidArgument("data", str(path), allowed)
        archive.require_room(bits.size * FLOATS_OF_A_BYTE)
        arrays = archive.read(PACKED)
    return _unpacked(arrays)


def _unpacked(arrays: Arrays) -> Records:
    features = np.unpackbits(arrays["x_packed"], axis=1)[:, : int(arrays["n_features"])]
    require_classes(arrays["y"], "y")
    labels = np.unique(arrays["y"], return_inverse=True)[1]
    return Records(features.astype(np.float32), labels.astype(np.int64))


def _scaled(records: Records) -> Records:
    """Return features as they are where all lie in [0, 1], else each with mean 0, deviation 1.

    The auditor may look at the records: nothing of these models is released.
    """
    features = records.features
    if features.min() >= 0 and features.max() <= 1:
        return records
    deviation = features.std(axis=0, dtype=np.float64)
    scaled = (features - features.mean(axis=0, dtype=np.float64)) / np.where(
        deviation > 0, deviation, 1
    )
    return Records(scaled.astype(np.float32), records.labels)
