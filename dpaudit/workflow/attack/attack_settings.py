"""Settings of membership inference attacks on models."""

from __future__ import annotations

from dataclasses import dataclass

from dpaudit.attacks.membership.attack_registry import ATTACKS, need_references
from dpaudit.attacks.membership.record_risk import MIN_RISK_MODELS
from dpaudit.attacks.membership.reference_training import (
    Executor,
    JoblibExecutor,
    SerialExecutor,
)
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit

LABEL = "label"
"""What is inferred, if it is no feature."""

CLASS_SLICES = "class"
"""Slices of records by their class."""


@dataclass(frozen=True)
class AttackSettings:
    """Settings of a membership inference attack.

    Attributes:
        attacks: Names of the attacks.
        references: Number of reference (shadow) models that are trained.
        targets: Number of models that are attacked, where none is given.
        model: Architecture of targets and references: a built-in name, or
            ``package.module:factory``.
        epochs: Training epochs of each model.
        batch_size: Of each model; None for 64, or more where an epoch would have over 64 steps.
        learning_rate: Of Adam.
        records: Largest number of records that are used, drawn at random; None for all.
        confidence: Of each interval, in (0, 1).
        seed: Seeds everything that is drawn.
        workers: Processes that train references; 1 for this one.
        queries: Queries per record: the record itself and altered copies.
        labels_known: Whether the attacker knows the records' labels; otherwise the classes that
            the target predicts take their place.
        by: ``class``, or a column of the data, whose values define slices; None: no slices.
        infer: ``label``, or indices of features, that are inferred beside membership.
        record_risk: Whether the detection rate of each record is computed, from the references.

    Raises:
        InvalidArgument: If an attack is unknown or a value is out of range.
    """

    attacks: tuple[str, ...]
    seed: int
    references: int = 16
    targets: int = 4
    model: str = "mlp"
    epochs: int = 30
    batch_size: int | None = None
    learning_rate: float = 0.005
    records: int | None = None
    confidence: float = 0.95
    workers: int = 1
    queries: int = 1
    labels_known: bool = True
    by: str | None = None
    infer: tuple[str, ...] = ()
    record_risk: bool = False

    def __post_init__(self) -> None:
        if not self.attacks or not set(self.attacks) <= set(ATTACKS):
            raise InvalidArgument("attack", list(self.attacks), f"some of {', '.join(ATTACKS)}")
        require_count("references", self.references, least=int(self.need_references))
        require_count("queries", self.queries)
        require_count("targets", self.targets)
        require_count("workers", self.workers)
        if self.record_risk:
            require_count("references", self.references, least=MIN_RISK_MODELS)
        for what in self.infer:
            if what != LABEL and not what.isdecimal():
                raise InvalidArgument("infer", what, "label, or the index of a feature")
        if self.records is not None:
            require_count("records", self.records, least=4)
        require_open_unit("confidence", self.confidence)

    @property
    def need_references(self) -> bool:
        """Whether reference models are trained."""
        return self.record_risk or need_references(self.attacks)

    @property
    def executor(self) -> Executor:
        """The executor that trains reference models."""
        return SerialExecutor() if self.workers == 1 else JoblibExecutor(self.workers)

    def require_class_slices(self) -> None:
        """Refuse slices by another value than the class.

        Raises:
            InvalidArgument: If ``by`` names a column.
        """
        if self.by not in (None, CLASS_SLICES):
            allowed = f"{CLASS_SLICES}, or a column of a table that is given with --data alone"
            raise InvalidArgument("by", self.by, allowed)
