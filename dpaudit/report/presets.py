"""The presets in plain words."""

from __future__ import annotations

from collections.abc import Mapping

from dpaudit.vocabulary.presets import TUNED, Preset

WARNING = (
    "Each was found by trying settings on the records that it names, and such trials cost\n"
    f"privacy: the claim of a run from a preset leaves out {TUNED!r}."
)


def presets_in_words(presets: Mapping[str, Preset]) -> str:
    """Return what each preset sets, for which records, and from where."""
    return "\n\n".join([*(_in_words(name, preset) for name, preset in presets.items()), WARNING])


def _in_words(name: str, preset: Preset) -> str:
    model = preset.model
    averaged = model.average_decay is not None
    return "\n".join(
        (
            f"{name}  for {preset.data}",
            f"  epsilon {preset.target_epsilon:g} at delta {preset.delta:g}; clip norm "
            f"{preset.clip_norm:g}; expected batch {preset.batch_size} of {preset.dataset_size} "
            f"records, {preset.epochs:g} epochs",
            f"  model {model.model}; {model.optimizer}, learning rate {model.learning_rate:g}, "
            f"momentum {model.momentum:g}"
            + (f", weights averaged with decay {model.average_decay:g}" if averaged else ""),
            f"  from {preset.source}",
        )
    )
