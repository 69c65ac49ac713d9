"""Make canaries: one file for the trainer, one for the auditor alone.

``NAME.npz`` holds the included canaries only. ``NAME.secret.npz`` holds all canaries with their
inclusion bits. The ids do not depend on the bits.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpaudit.attacks.canaries import (
    CanaryAssignment,
    LabelledRecords,
    SecretSentences,
    assign_canaries,
    blank,
    make_secrets,
    mislabelled,
    out_of_distribution,
)
from dpaudit.attacks.language_models.text_files import TEXT_SUFFIXES, read_texts
from dpaudit.files.documents import read_text
from dpaudit.files.regular_files import GIB, InputFile
from dpaudit.runs.directory import AUDITOR_DIGEST_ARRAY, COUNT_ARRAY
from dpaudit.runs.file_io import (
    PRIVATE,
    require_new_file,
    sha256,
    write_bytes,
    write_secret_arrays,
)
from dpaudit.trainer.data import load_dataset
from dpaudit.vocabulary.errors import InvalidArgument, require_count
from dpaudit.vocabulary.settings import DataSettings
from dpaudit.workflow.audit.external_scores import (
    AuditorCanaries,
    CanaryArrays,
    auditor_path_beside,
)

DEFAULT_COUNT = 1000
"""Number of canaries where none is given; fewer where the data hold fewer held-out records."""

CanaryMaker = Callable[[LabelledRecords, int, np.random.Generator], LabelledRecords]

INPUT_CANARY_MAKERS: dict[str, CanaryMaker] = {
    "mislabelled": mislabelled,
    "blank": blank,
    "out-of-distribution": out_of_distribution,
}


def make_input_canaries(
    kind: str,
    count: int | None,
    data: DataSettings,
    out: Path,
    *,
    training_file: Path | None,
    make: CanaryMaker,
) -> AuditorCanaries:
    """Make canaries from held-out records, draw their inclusion bits and write both files.

    Args:
        kind: Name of the kind of canary.
        count: Number of canaries; None: ``DEFAULT_COUNT``, or all held-out records if there are
            fewer.
        data: The records; canaries are made from held-out ones.
        out: The trainer's file, ``NAME.npz``.
        training_file: Where to write all training records with the included canaries among
            them; None: nowhere.
        make: Makes canaries from records.

    Returns:
        All canaries with their bits.

    Raises:
        InvalidArgument: If there are fewer held-out records than canaries, or if a file exists
            or cannot be written.
    """
    if count is not None:
        require_count("count", count)
    require_new_canaries(out, training_file)
    split = load_dataset(data)
    if count is None:
        count = min(DEFAULT_COUNT, len(split.heldout))
    if count > len(split.heldout):
        allowed = f"at most the {len(split.heldout)} held-out records"
        raise InvalidArgument("count", count, allowed)
    rng = unpredictable_generator()
    chosen = np.zeros(len(split.heldout), np.bool_)
    chosen[rng.permutation(len(split.heldout))[:count]] = True
    base = LabelledRecords(split.heldout.features[chosen], split.heldout.labels[chosen])
    assignment = assign_canaries(make(base, len(split.classes), rng), rng)
    canaries = write_canaries(kind, assignment, _input_arrays, out)
    if training_file is not None:
        train, trained = split.train, assignment.trained
        mixed = rng.permutation(len(train) + len(trained))
        write_secret_arrays(
            training_file,
            x=np.concatenate([train.features, trained.features])[mixed],
            y=np.concatenate([train.labels, trained.labels])[mixed],
        )
    return canaries


def make_secret_canaries(
    count: int, out: Path, *, references: int, template: str, text: Path | None,
    training_file: Path | None,
) -> AuditorCanaries:  # fmt: skip
    """Make sentences with secrets, draw their inclusion bits and write both files.

    Args:
        count: Number of sentences.
        out: The trainer's file, ``NAME.npz``.
        references: Number of further sentences, never trained on, to rank secrets among.
        template: Template of a sentence.
        text: Training text, one record per line; None: there is none.
        training_file: Where to write the lines of ``text`` with the included sentences among
            them; None: nowhere.

    Returns:
        All sentences with their bits.

    Raises:
        InvalidArgument: If an argument is out of range, or if a file exists or cannot be
            written.
    """
    require_new_canaries(out, training_file)
    lines = read_training_texts(text)
    rng = unpredictable_generator()
    assignment = assign_canaries(
        make_secrets(count, rng, references=references, template=template), rng
    )
    canaries = write_canaries("secrets", assignment, _secret_arrays, out)
    if training_file is not None:
        write_training_texts(training_file, lines, assignment.trained.sentences, rng)
    return canaries


def read_training_texts(path: Path | None) -> list[str]:
    """Read the texts that canaries are mixed into.

    Args:
        path: A ``.csv``, ``.parquet`` or ``.jsonl`` file with ``text``, or a text file with one
            record per line; None: there are none.

    Returns:
        The texts.

    Raises:
        InvalidArgument: If the file cannot be read.
    """
    if path is None:
        return []
    if path.suffix in TEXT_SUFFIXES:
        return list(read_texts(path, "text").texts or ())
    return read_text(InputFile(path, "text", GIB)).splitlines()


def write_training_texts(
    path: Path, texts: Sequence[str], canaries: Sequence[str], rng: np.random.Generator
) -> None:
    """Write the texts and the included canaries in random order.

    Args:
        path: A ``.csv`` file, which gets a column ``text``; any other file gets one line per text.
        texts: The texts.
        canaries: The included canaries.
        rng: Random generator of the order.

    Raises:
        InvalidArgument: If a text has several lines, and the file is no ``.csv``.
    """
    together = [*texts, *canaries]
    mixed = [together[place] for place in rng.permutation(len(together))]
    if path.suffix == ".csv":
        written = io.StringIO()
        writer = csv.writer(written, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerows([["text"], *([one] for one in mixed)])
        write_bytes(path, written.getvalue().encode(), PRIVATE)
        return
    if any(len(one.splitlines()) > 1 for one in mixed):
        allowed = "a .csv file: a text of several lines would become several records"
        raise InvalidArgument("training_file", str(path), allowed)
    write_bytes(path, ("\n".join(mixed) + "\n").encode(), PRIVATE)


def make_dummy_canaries(count: int, out: Path) -> AuditorCanaries:
    """Draw the inclusion bits of gradient canaries for your own training loop.

    Args:
        count: Number of canaries.
        out: The trainer's file, ``NAME.npz``, which gets the numbers of the included canaries.

    Returns:
        The numbers of all canaries with their bits.

    Raises:
        InvalidArgument: If a file exists or cannot be written.
    """
    require_new_canaries(out, None)
    assignment = assign_canaries(np.arange(count), unpredictable_generator())
    return write_canaries("dummy", assignment, lambda numbers: {"numbers": numbers}, out)


def write_canaries(
    kind: str, assignment: CanaryAssignment[Any], describe: Callable[..., CanaryArrays], out: Path
) -> AuditorCanaries:
    """Write the trainer's and the auditor's file.

    Args:
        kind: Name of the kind of canary.
        assignment: The canaries with their bits.
        describe: Returns the arrays of canaries.
        out: The trainer's file, ``NAME.npz``.

    Returns:
        All canaries with their bits.
    """
    salt = np.frombuffer(
        os.urandom(32), dtype=np.uint8
    )  # so that a digest of the file confirms no guess
    everything = describe(assignment.canaries) | {
        "ids": np.array(assignment.ids), "included": assignment.included, "kind": np.array(kind),
    }  # fmt: skip
    write_secret_arrays(auditor_path_beside(out), salt=salt, **everything)
    trained = describe(assignment.trained)
    # With the references, a trainer could exclude sentences from its guesses.
    trained.pop("references", None)
    # A ledger that records this file before training fixes the bits, which are in the other file.
    fixed = {
        COUNT_ARRAY: np.array(len(assignment.ids)),
        AUDITOR_DIGEST_ARRAY: np.array(sha256(auditor_path_beside(out))),
    }
    write_secret_arrays(
        out, ids=np.array(assignment.trained_ids), kind=np.array(kind), **fixed, **trained
    )
    return AuditorCanaries(kind, assignment.ids, assignment.included, everything)


def require_new_canaries(out: Path, training_file: Path | None) -> None:
    """Refuse existing files, before any bit is drawn.

    Args:
        out: The trainer's file; the auditor's file is beside it.
        training_file: File of all training records; None: it is not written.

    Raises:
        InvalidArgument: If a file exists, cannot be written, or has a wrong name.
    """
    if out.suffix != ".npz":
        raise InvalidArgument("output", str(out), "a file with the suffix .npz")
    own = (out, auditor_path_beside(out))
    if training_file in own:
        allowed = "another file than the canaries'"
        raise InvalidArgument("training_file", str(training_file), allowed)
    for path in (*own, *([] if training_file is None else [training_file])):
        if os.path.lexists(path):
            raise InvalidArgument("output", str(path), "a file that does not exist yet")
        require_new_file("output", path)


def _input_arrays(records: LabelledRecords) -> CanaryArrays:
    return {"x": records.features, "y": records.labels}


def _secret_arrays(secrets: SecretSentences) -> CanaryArrays:
    return {
        "sentences": np.array(secrets.sentences, dtype=np.str_),
        "references": np.array(secrets.references, dtype=np.str_),
        "space": np.array(secrets.space),
    }


def unpredictable_generator() -> np.random.Generator:
    """Return a generator with a seed from the operating system: bits must be unpredictable.

    Returns:
        The generator.
    """
    return np.random.default_rng(int.from_bytes(os.urandom(32), "big"))


# Canaries crafted against a model in a file.


def crafted_canary_maker(
    checkpoint: Path, factory: str | None, *, trust_model_code: bool = False
) -> CanaryMaker:
    """Return a function that crafts adversarial canaries against a model in a file.

    Args:
        checkpoint: The model's file.
        factory: ``package.module:factory`` of the model, where its file needs one.
        trust_model_code: Whether code in the file may run.

    Returns:
        The function, for ``make_input_canaries``. It raises ``InvalidArgument`` if torch cannot
        differentiate the model.
    """

    from dpaudit.attacks.canaries.torch_canaries import adversarial_records  # noqa: PLC0415 - torch
    from dpaudit.attacks.membership.target_models.model_files import open_model  # noqa: PLC0415
    from dpaudit.attacks.membership.target_models.torch_model import TorchModel  # noqa: PLC0415
    from dpaudit.attacks.membership.target_models.torch_program import (  # noqa: PLC0415
        TorchProgram,
    )

    def make(records: LabelledRecords, classes: int, rng: np.random.Generator) -> LabelledRecords:
        shape = records.features.shape[1:]
        model = open_model(
            checkpoint,
            factory=factory,
            shape=shape,
            classes=classes,
            trust_model_code=trust_model_code,
        )
        if not isinstance(model, TorchModel | TorchProgram):
            raise InvalidArgument("checkpoint", str(checkpoint), "a torch model")
        return adversarial_records(mislabelled(records, classes, rng), model.call)

    return make
