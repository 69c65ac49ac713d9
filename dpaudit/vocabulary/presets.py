"""Settings that are known to work on a benchmark, by name: frozen data.

Every one was found by trying many settings on its benchmark, by the authors of its source
and by us. What these trials show of the benchmark's records is in no claim: a run from a
preset says so. For other records, settings that were fixed beforehand cost nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from dpaudit.vocabulary.settings import ModelSettings

TUNED = "hyperparameter-tuning"
"""What a claim from a preset leaves out, by the name that a policy knows it by."""


class Preset(msgspec.Struct, frozen=True):
    """Everything about a run but its records.

    Attributes:
        data: The records that it was tuned on.
        source: Where its hyper-parameters come from.
        model: What is trained and how.
        clip_norm: Largest L2 norm of one record's gradient.
        dataset_size: Public number of records.
        batch_size: Expected size of a batch.
        epochs: Passes over the records.
        target_epsilon: What the noise is chosen for.
        delta: The delta of that epsilon.
        physical_batch_size: Records at once, for speed alone.
    """

    data: str
    source: str
    model: ModelSettings
    clip_norm: float
    dataset_size: int
    batch_size: int
    epochs: float
    target_epsilon: float = 3.0
    delta: float = 1e-5
    physical_batch_size: int = 1024

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What it asks for, by the sections and keys of a configuration file."""
        return {
            "privacy": {
                "target_epsilon": self.target_epsilon,
                "delta": self.delta,
                "clip_norm": self.clip_norm,
                "dataset_size": self.dataset_size,
                "batch_size": self.batch_size,
                "epochs": self.epochs,
                "leaves_out": (TUNED,),
            },
            "model": msgspec.structs.asdict(self.model),
            "speed": {"physical_batch_size": self.physical_batch_size},
        }


PRESETS = {
    "fashion-mnist-scattering": Preset(
        data="Fashion-MNIST, 60,000 images of 28 x 28",
        source="Tramer & Boneh 2021, arXiv:2011.11660 (linear model on scattering features); "
        "epochs (40 there) and averaged weights by our own trials",
        model=ModelSettings(
            "scattering", "sgd", learning_rate=16.0, momentum=0.9, average_decay=0.98
        ),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=8192,
        epochs=55,
    ),
    "mnist-scattering": Preset(
        data="MNIST, 60,000 images of 28 x 28",
        source="Tramer & Boneh 2021, arXiv:2011.11660 (linear model on scattering features); "
        "batch (4096 there), learning rate (8) and epochs (40) by our own trials",
        model=ModelSettings("scattering", "sgd", learning_rate=6.0, momentum=0.9),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=8192,
        epochs=60,
    ),
    "mnist-cnn": Preset(
        data="MNIST, 60,000 images of 28 x 28",
        source="network: Papernot et al. 2020, arXiv:2007.14191; the rest: Tramer & Boneh 2021, "
        "arXiv:2011.11660",
        model=ModelSettings("cnn", "sgd", learning_rate=0.5, momentum=0.9),
        clip_norm=0.1,
        dataset_size=60_000,
        batch_size=512,
        epochs=40,
        physical_batch_size=512,
    ),
}
