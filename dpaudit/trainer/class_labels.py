"""Whether labels are classes: real-valued targets and identifiers are not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpaudit.vocabulary.errors import InvalidArgument

CLASSES = (
    "a column of classes, as models here are classifiers and attacks compare records of a class: "
    "name another column by --label, or cut the values into classes"
)
FEWEST_VALUES = 10  # so few different values are classes, however few the records
FEWEST_RECORDS = 2  # of a class on average


def require_classes(labels: NDArray[Any], column: str) -> None:
    """Refuse labels that are no classes.

    Whole numbers stored as floats are classes. A model cannot learn a class of which it saw no
    record, so that with about one record of each every held-out record would look like a
    non-member.

    Args:
        labels: Of all records, shape ``(records,)``, without NaN or infinity.
        column: What they are called in the data.

    Raises:
        InvalidArgument: A label is a number with a fraction, or nearly every label is different.
    """
    if labels.dtype.kind == "f" and (fractions := labels != np.floor(labels)).any():
        given = f"column {column!r} with the value {float(labels[fractions][0]):g}"
        raise InvalidArgument("label", given, CLASSES)
    distinct = len(np.unique(labels))
    if distinct > FEWEST_VALUES and len(labels) < FEWEST_RECORDS * distinct:
        given = f"column {column!r} with {distinct} different values in {len(labels)} records"
        raise InvalidArgument("label", given, CLASSES)
