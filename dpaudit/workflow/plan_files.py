"""Files that name a mechanism: dpaudit's own JSON, plans in TOML, and those of other libraries.

A plan lists releases, each by its noise, rate and steps, or as a mechanism::

    delta = 1e-5

    [[release]]
    noise_multiplier = 1.0
    sampling_rate = 0.01
    steps = 1000

    [[release]]
    mechanism = { kind = "laplace", scale = 10.0 }
    times = 3
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dpaudit.accountants.importers.dp_event import VerbatimText
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.files.archives import open_zip
from dpaudit.files.regular_files import InputFile, read_bytes
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Composed, Mechanism, Repeated
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.vocabulary.validation_messages import explain_validation

PLAN = "a plan with [[release]] tables in TOML"
ACCEPTED = (
    f"a mechanism or an answer of dpaudit in JSON, {PLAN}, an Opacus history or checkpoint, a "
    "dp_accounting event, the state of a Flower accountant, a ledger of TensorFlow Privacy, or a "
    "plan of JAX Privacy"
)
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
"""Suffixes of files that ``torch.save`` wrote."""

OPACUS_KEYS = ("privacy_accountant_state_dict", "privacy_accountant", "accountant")
"""Where a checkpoint holds the state of its Opacus accountant; the first is Opacus's own."""


class PlannedRelease(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One phase of a plan: steps of DP-SGD, or a mechanism and how often it is used.

    Attributes:
        noise_multiplier: Standard deviation of the noise over the clip norm.
        sampling_rate: Probability that a record is in a batch, in (0, 1]; None: 1.
        steps: Number of steps of DP-SGD; None: 1.
        mechanism: Any mechanism, in place of the three fields above.
        times: How often ``mechanism`` is used; None: once.

    Raises:
        InvalidArgument: If fields of both forms are given, or of neither.
    """

    noise_multiplier: float | None = None
    sampling_rate: float | None = None
    steps: int | None = None
    mechanism: Mechanism | None = None
    times: int | None = None

    def __post_init__(self) -> None:
        if (self.mechanism is None) == (self.noise_multiplier is None):
            raise InvalidArgument(
                "release", "one with both or neither", "either noise_multiplier or mechanism"
            )
        # A count that no one reads would make a plan look cheaper than it is.
        unread = ("times",) if self.mechanism is None else ("sampling_rate", "steps")
        for name in unread:
            if getattr(self, name) is not None:
                form = "noise_multiplier" if self.mechanism is None else "mechanism"
                raise InvalidArgument(name, getattr(self, name), f"left out beside {form}")

    def to_mechanism(self, adjacency: Adjacency) -> Mechanism:
        """Return what the phase releases.

        Args:
            adjacency: The relation of neighboring data sets.

        Returns:
            The mechanism, repeated.
        """
        if self.mechanism is not None:
            return self.mechanism if self.times is None else Repeated(self.mechanism, self.times)
        assert self.noise_multiplier is not None
        rate = 1.0 if self.sampling_rate is None else self.sampling_rate
        return training_mechanism(
            sampling=Sampling.FULL_BATCH if rate == 1 else Sampling.POISSON,
            sampling_rate=rate,
            noise_multiplier=self.noise_multiplier,
            steps=1 if self.steps is None else self.steps,
            adjacency=adjacency,
        )


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan of several phases.

    Attributes:
        release: The phases, at least one.
        delta: The delta of the statement; None: given with the command.
        adjacency: Which data sets are neighbors; None: given with the command.
    """

    release: tuple[PlannedRelease, ...]
    delta: float | None = None
    adjacency: Adjacency | None = None


@dataclass(frozen=True)
class NamedMechanism:
    """A mechanism that a file names, with what else the file says.

    Attributes:
        mechanism: The mechanism.
        delta: The delta of an answer or a plan; None: the file has none.
        adjacency: Of an answer or a plan; None: the file has none.
        sampling: Of an answer; None: the mechanism says it.
        unit: What neighbors differ by.
        caveat: A limitation that the reader must know; None: there is none.
    """

    mechanism: Mechanism
    delta: float | None = None
    adjacency: Adjacency | None = None
    sampling: Sampling | None = None
    unit: Unit = Unit.RECORD
    caveat: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """The fields that are read from an answer of ``dpaudit epsilon``, ``delta`` or ``noise``."""

    mechanism: Mechanism
    results: tuple[_AnswerPart, ...] = ()
    delta: Any = None
    adjacency: Adjacency | None = None
    sampling: Sampling | None = None
    unit: Unit = Unit.RECORD


class _AnswerPart(msgspec.Struct, frozen=True):
    delta: float
    adjacency: Adjacency
    sampling: Sampling | None = None
    unit: Unit = Unit.RECORD


def read_checkpoint_history(path: Path) -> Any:
    """Return the history of the Opacus accountant in a checkpoint of ``torch.save``.

    The file is read with ``weights_only=True``: it is data, and none of its code runs.

    Args:
        path: The checkpoint, as ``PrivacyEngine.save_checkpoint`` writes it, or the accountant's
            ``state_dict()``.

    Returns:
        The state of the accountant, or the list of entries.

    Raises:
        InvalidArgument: If the file cannot be read so, holds no history, or several that may be
            the accountant's.
        MissingExtra: If torch is not installed.
    """
    try:
        import torch  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtra("torch, which reads a checkpoint,", "train") from error
    source = InputFile(path, "FILE")
    content = read_bytes(source)
    if content.startswith(b"PK"):
        with open_zip(source):  # refuses an archive that expands beyond the memory
            pass
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of any type, from pickle, zipfile or torch
        raise InvalidArgument(
            "FILE", str(path), "a checkpoint that torch reads with weights_only=True"
        ) from error
    if isinstance(found, list):
        return found
    states = _accountant_states(found) if isinstance(found, dict) else {}
    if len(states) > 1:
        named = " and ".join(states)
        raise InvalidArgument(
            "FILE",
            VerbatimText(f"{path}, which has a history under {named}"),
            "a checkpoint with one accountant: save the state of the right one alone",
        )
    for state in states.values():
        return state
    raise InvalidArgument(
        "FILE",
        str(path),
        f"a checkpoint with an accountant's history under {OPACUS_KEYS[0]!r}, as "
        "PrivacyEngine.save_checkpoint writes it, or the accountant's state_dict()",
    )


def _accountant_states(found: dict[Any, Any]) -> dict[str, Any]:
    """Return what may be the state of an accountant, by where a checkpoint has it."""
    under = {repr(key): found.get(key) for key in OPACUS_KEYS}
    states = {
        name: state
        for name, state in under.items()
        if isinstance(state, dict) and "history" in state
    }
    # A history at the top may be a log of the training, such as one of losses.
    if "history" in found and (not states or _has_triples(found["history"])):
        states["'history' at the top"] = found
    return states


def _has_triples(history: Any) -> bool:
    """Return whether a log could be read as noise, sampling rate and steps."""
    entries = history if isinstance(history, list | tuple) else ()
    return bool(entries) and all(
        isinstance(entry, list | tuple) and len(entry) == 3 for entry in entries
    )


def is_own_document(document: Any) -> bool:
    """Return whether parsed JSON or TOML is a mechanism, an answer or a plan of dpaudit.

    Args:
        document: The parsed content of a file.

    Returns:
        True for a mapping with one of the keys of these.
    """
    # The state_dict of an Opacus accountant has the name of its accountant as "mechanism".
    if not isinstance(document, Mapping) or "history" in document:
        return False
    return "release" in document or "mechanism" in document or "kind" in document


def read_own_document(document: Any, adjacency: Adjacency | None) -> NamedMechanism:
    """Convert parsed JSON or TOML of dpaudit to a mechanism.

    Args:
        document: A mechanism, an answer or a plan.
        adjacency: What is asked for, which overrides that of the document; None: nothing.

    Returns:
        The mechanism, with delta and adjacency where the document has them.

    Raises:
        InvalidArgument: If it is none of these, or a field is out of range.
    """
    if "release" in document:
        return _of_plan(_converted(document, PlanFile, "a plan"), adjacency)
    if "kind" in document:
        return NamedMechanism(_converted(document, Mechanism, "a mechanism"))
    return _of_answer(_converted(document, _Answer, "an answer of dpaudit"))


def _converted(document: Any, kind: Any, what: str) -> Any:
    """Return a document as a type; an error names the key, and the one that may be meant."""
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        allowed = f"{what} {explain_validation(error, document, kind)}"
        raise InvalidArgument("FILE", VerbatimText("one with another content"), allowed) from error


def _of_plan(plan: PlanFile, adjacency: Adjacency | None) -> NamedMechanism:
    if not plan.release:
        raise InvalidArgument("release", plan.release, "at least one phase")
    known = adjacency or plan.adjacency or Adjacency.ADD_OR_REMOVE_ONE
    parts = tuple(phase.to_mechanism(known) for phase in plan.release)
    mechanism = parts[0] if len(parts) == 1 else Composed(parts)
    return NamedMechanism(mechanism, plan.delta, known)


def _of_answer(answer: _Answer) -> NamedMechanism:
    part = answer.results[0] if answer.results else answer
    delta = part.delta if isinstance(part.delta, float) else None
    return NamedMechanism(answer.mechanism, delta, part.adjacency, part.sampling, part.unit)
