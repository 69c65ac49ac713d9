"""Settings of a black-box audit of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dpaudit.attacks.final_model import OutputView
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, require_count

TARGET_KINDS = ("blank", "mislabelled", "crafted", "optimized")
TRAINERS = ("own", "stacked")
INITIAL_WEIGHTS = ("own", "worst-case")


@dataclass(frozen=True)
class FinalModelSettings:
    """Settings of a black-box audit of a run.

    Attributes:
        pairs: Number of pairs of models, one without and one with the target record.
        target: ``blank``, ``mislabelled``, ``crafted`` or ``optimized``.
        initial_weights: ``own``: those that the run's settings give. ``worst-case``: trained
            without noise on half of the records; the other half is audited.
        outputs: What is read of each final model.
        trainer: ``own``: the run's trainer. ``stacked``: its settings, many models at once.
        records: Number of training records to use, the first ones; None for all.
        stops_early: Whether training stops as soon as the claim is refuted.

    Raises:
        InvalidArgument: If a setting is unknown or out of its range.
    """

    pairs: int = 100
    target: str = "blank"
    initial_weights: str = "own"
    outputs: OutputView = OutputView.LOGITS
    trainer: str = "own"
    records: int | None = None
    stops_early: bool = False

    def __post_init__(self) -> None:
        require_count("pairs", self.pairs, least=2)
        for name, value, allowed in (
            ("target_record", self.target, TARGET_KINDS),
            ("initial_weights", self.initial_weights, INITIAL_WEIGHTS),
            ("trainer", self.trainer, TRAINERS),
        ):
            if value not in allowed:
                raise InvalidArgument(name, value, f"one of {', '.join(allowed)}")
        if self.records is not None:
            require_count("records", self.records, least=4)

    @classmethod
    def of_names(
        cls, pairs: int, names: Mapping[str, str], *, stops_early: bool
    ) -> FinalModelSettings:
        """Return the settings that a plan fixed.

        Args:
            pairs: Number of pairs of models.
            names: The other settings, as ``by_name`` gives them.
            stops_early: Whether training stops as soon as the claim is refuted.

        Returns:
            The settings.

        Raises:
            IntegrityError: If a setting is missing or unknown.
        """
        try:
            records = None if names["records"] == "all" else int(names["records"])
            return cls(
                pairs,
                names["target_record"],
                names["initial_weights"],
                OutputView(names["outputs"]),
                names["trainer"],
                records,
                stops_early,
            )
        except (KeyError, ValueError, InvalidArgument) as error:
            raise IntegrityError(
                f"the plan of the black-box audit has no valid settings ({error}): remove "
                "final-models.json and final-models.npz, and audit again"
            ) from error

    @property
    def by_name(self) -> dict[str, str]:
        """The settings that a plan fixes, as text."""
        return {
            "target_record": self.target,
            "initial_weights": self.initial_weights,
            "outputs": self.outputs.value,
            "trainer": self.trainer,
            "records": "all" if self.records is None else str(self.records),
        }
