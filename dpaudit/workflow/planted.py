"""The auditor's file of canaries: all of them, with their bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpaudit.runs.files import read_arrays
from dpaudit.vocabulary.errors import IntegrityError

Arrays = dict[str, NDArray[np.generic]]
SECRET = ("ids", "included", "kind")


def secret_path(path: Path) -> Path:
    """Return where the auditor's file lies beside the trainer's."""
    return path.with_name(path.name.removesuffix(".npz") + ".secret.npz")


@dataclass(frozen=True)
class Planted:
    """What the auditor knows.

    Attributes:
        kind: How the canaries were made.
        ids: Their names.
        included: Their bits, shape ``(m,)``.
        arrays: Everything in the file, the canaries themselves among it.
    """

    kind: str
    ids: tuple[str, ...]
    included: NDArray[np.bool_]
    arrays: Arrays


def auditors_file(path: Path) -> Path:
    """Return the auditor's file: ``path`` itself, or beside the trainer's there."""
    return path if path.name.endswith(".secret.npz") else secret_path(path)


def read_planted(path: Path) -> Planted:
    """Return the auditor's file that is at ``path``, or beside the trainer's there.

    Raises:
        IntegrityError: it is missing, broken, or the trainer's own.
    """
    found = auditors_file(path)
    arrays = read_arrays(found)
    missing = [name for name in SECRET if name not in arrays]
    if missing:
        raise IntegrityError(f"{found} lacks {', '.join(missing)}: it is no auditor's canary file")
    included = np.asarray(arrays["included"], dtype=np.bool_)
    ids = tuple(str(name) for name in arrays["ids"])
    if len(ids) != len(included):
        raise IntegrityError(f"{found} has {len(ids)} canaries and {len(included)} bits")
    return Planted(str(arrays["kind"]), ids, included, arrays)
