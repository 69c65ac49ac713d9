"""Canary files: one for whoever trains, one for the auditor alone.

``NAME.npz`` holds the included canaries and nothing of the others, ``NAME.secret.npz`` all of
them with their bits. Their names say nothing of the bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.canaries import (
    Records,
    Secrets,
    Tossed,
    blank,
    make_secrets,
    mislabelled,
    out_of_distribution,
    toss,
)
from dpaudit.files.documents import read_text
from dpaudit.files.opening import GIB, InputFile
from dpaudit.runs.files import (
    PRIVATE,
    require_new_file,
    sha256,
    write_bytes,
    write_secret_arrays,
)
from dpaudit.runs.planted import COUNT, SECRET_DIGEST
from dpaudit.trainer.data import load
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.planted import Arrays, Planted, secret_path

Make = Callable[[Records, int, np.random.Generator], Records]

INPUT_KINDS: dict[str, Make] = {
    "mislabelled": mislabelled,
    "blank": blank,
    "out-of-distribution": out_of_distribution,
}


def plant_inputs(
    kind: str, count: int, data: DataSettings, out: Path, *, training_file: Path | None, make: Make
) -> Planted:
    """Make canaries out of held-out records, toss their coins and write both files.

    Args:
        kind: Its name.
        count: How many.
        data: The records; canaries are made of held-out ones.
        out: The trainer's file.
        training_file: Where to write all training records with the included canaries among
            them, too.
        make: Makes them.
    """
    require_count("count", count)
    _require_new(out, training_file)
    split = load(data)
    if count > len(split.heldout):
        allowed = f"at most the {len(split.heldout)} held-out records"
        raise InvalidArgument("count", count, allowed)
    rng = _unpredictable()
    chosen = np.zeros(len(split.heldout), np.bool_)
    chosen[rng.permutation(len(split.heldout))[:count]] = True
    base = Records(split.heldout.features[chosen], split.heldout.labels[chosen])
    tossed = toss(make(base, len(split.classes), rng), rng)
    planted = _write(kind, tossed, _input_arrays, out)
    if training_file is not None:
        train, trained = split.train, tossed.trained
        mixed = rng.permutation(len(train) + len(trained))
        write_secret_arrays(
            training_file,
            x=np.concatenate([train.features, trained.features])[mixed],
            y=np.concatenate([train.labels, trained.labels])[mixed],
        )
    return planted


def plant_secrets(
    count: int, out: Path, *, references: int, template: str, text: Path | None,
    training_file: Path | None,
) -> Planted:  # fmt: skip
    """Make sentences with secrets, toss their coins and write both files.

    Args:
        count: How many.
        out: The trainer's file.
        references: How many sentences more, never trained on, that ranks are taken among.
        template: Of a sentence.
        text: Training text, a line a record.
        training_file: Where to write its lines with the included sentences among them.
    """
    _require_new(out, training_file)
    lines = [] if text is None else _lines(text)
    rng = _unpredictable()
    tossed = toss(make_secrets(count, rng, references=references, template=template), rng)
    planted = _write("secrets", tossed, _secret_arrays, out)
    if training_file is not None:
        together = [*lines, *tossed.trained.sentences]
        mixed = [together[i] for i in rng.permutation(len(together))]
        write_bytes(training_file, ("\n".join(mixed) + "\n").encode(), PRIVATE)
    return planted


def _lines(text: Path) -> list[str]:
    return read_text(InputFile(text, "text", GIB)).splitlines()


def plant_dummies(count: int, out: Path) -> Planted:
    """Toss the coins of gradient canaries for one's own loop; the trainer gets their numbers."""
    _require_new(out, None)
    tossed = toss(np.arange(count), _unpredictable())
    return _write("dummy", tossed, lambda numbers: {"numbers": numbers}, out)


def _write(kind: str, tossed: Tossed[Any], describe: Callable[..., Arrays], out: Path) -> Planted:
    salt = np.frombuffer(os.urandom(32), dtype=np.uint8)  # digests of the file confirm no guess
    everything = describe(tossed.canaries) | {
        "ids": np.array(tossed.ids), "included": tossed.included, "kind": np.array(kind),
    }  # fmt: skip
    write_secret_arrays(secret_path(out), salt=salt, **everything)
    trained = describe(tossed.trained)
    # References would tell a trainer which sentences to leave out of its guesses.
    trained.pop("references", None)
    # Whoever records this file before training has fixed the coins: they are in the other one.
    fixed = {COUNT: np.array(len(tossed.ids)), SECRET_DIGEST: np.array(sha256(secret_path(out)))}
    write_secret_arrays(
        out, ids=np.array(tossed.trained_ids), kind=np.array(kind), **fixed, **trained
    )
    return Planted(kind, tossed.ids, tossed.included, everything)


def _require_new(out: Path, training_file: Path | None) -> None:
    """Refuse a place where something is, before a coin is tossed."""
    if out.suffix != ".npz":
        raise InvalidArgument("output", str(out), "a file of kind .npz")
    own = (out, secret_path(out))
    if training_file in own:
        allowed = "another file than the canaries'"
        raise InvalidArgument("training_file", str(training_file), allowed)
    for path in (*own, *([] if training_file is None else [training_file])):
        if os.path.lexists(path):
            raise InvalidArgument("output", str(path), "a file that does not exist yet")
        require_new_file("output", path)


def _input_arrays(records: Records) -> Arrays:
    return {"x": records.features, "y": records.labels}


def _secret_arrays(secrets: Secrets) -> Arrays:
    return {
        "sentences": np.array(secrets.sentences, dtype=np.str_),
        "references": np.array(secrets.references, dtype=np.str_),
        "space": np.array(secrets.space),
    }


def _unpredictable() -> np.random.Generator:
    """Return a generator whose seed nobody knows: bits that can be guessed are no secret."""
    return np.random.default_rng(int.from_bytes(os.urandom(32), "big"))
