"""What is public of a run's data and model, in words, for runs to be compared by.

Digests and counts of the records are no part of it: a baseline is shared, and a digest confirms
a guess of one record to whoever knows the others.
"""

from __future__ import annotations

import csv
import hashlib
import math
from pathlib import Path

from dpaudit.files.arrays import opened_npz
from dpaudit.files.opening import DATA, InputFile, opened
from dpaudit.runs.crosscheck import model_tensors
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.files import sha256
from dpaudit.vocabulary.errors import DpauditError
from dpaudit.vocabulary.ledger import PrivacyLedger
from dpaudit.vocabulary.settings import DataSettings

MOST_HEADER = 100_000  # bytes of a table's first line
SHORT = 16  # digits of a digest that is shown


def public_data(run: RunDirectory) -> dict[str, str]:
    """Return what is public of the records of a run; empty for a loop of your own.

    Raises:
        IntegrityError: The run's settings are broken.
    """
    if not run.config.exists():
        return {}
    data = run.read_config().data
    scaled = "by its format" if data.feature_range is None else f"from {data.feature_range}"
    found = {
        "source": data.source,
        "label": data.label or "label, else the last column",
        "scaling": scaled,
        "held out": f"{data.test_fraction:g} of the records, split seed {data.split_seed}",
    }
    columns = _columns(data)
    return found if columns is None else {**found, "columns": columns}


def public_model(run: RunDirectory, ledger: PrivacyLedger) -> dict[str, str]:
    """Return what the model of a finished run is: its name, tensors and digest.

    Raises:
        IntegrityError: The run's settings are broken.
    """
    named = {"name": run.read_config().model.model} if run.config.exists() else {}
    tensors = model_tensors(run.model)
    if not tensors:
        return named
    described = "; ".join(f"{name} {kind}" for name, kind in tensors.items())
    weights = {} if ledger.seal is None else ledger.seal.files
    return {
        **named,
        "tensors": str(len(tensors)),
        "architecture": _short(hashlib.sha256(described.encode()).hexdigest()),
        "weights": _short(weights.get(run.model.name, "")),
    }


def same_content(before: RunDirectory, after: RunDirectory) -> bool | None:
    """Return whether the data files of two runs, as they are now, have the same bytes.

    None where a run names no file, the file is gone, or both name one file.
    """
    if not (before.config.exists() and after.config.exists()):
        return None
    first, second = (Path(run.read_config().data.source) for run in (before, after))
    if first == second or not (first.is_file() and second.is_file()):
        return None
    return sha256(first) == sha256(second)


def _short(digest: str) -> str:
    return f"SHA-256 {digest[:SHORT]}" if digest else "not known"


def _columns(data: DataSettings) -> str | None:
    """Return the columns of a table, or the shape of a record; None where they are not known."""
    path = Path(data.source)
    try:
        if path.suffix == ".csv":
            with opened(InputFile(path, limit=DATA)) as file:
                line = file.readline(MOST_HEADER).decode()
            return ", ".join(next(csv.reader([line]), []))
        if path.suffix == ".npz":
            return _record_shape(path)
    except (DpauditError, ValueError, KeyError, csv.Error):
        return None  # the data may be gone or broken by now: the run was trained before
    return None


def _record_shape(path: Path) -> str:
    with opened_npz(InputFile(path, limit=DATA)) as archive:
        header = archive.headers["x"]
    return f"{math.prod(header.shape[1:])} features of type {header.dtype} and a label"
