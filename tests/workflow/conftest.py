"""A run of which this process writes the ledger, as the trainer would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ledgers import STEPS, Begin, header

from dpaudit.runs.directory import RunDirectory, create_run
from dpaudit.runs.file_io import write_toml
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((60, 3)) + 4 * y[:, None], y=y)
    return RunConfig(
        data=DataSettings(source=str(tmp_path / "data.npz")),
        privacy=PrivacySettings(
            sampling_rate=0.1, noise_multiplier=1.5, clip_norm=1.0, steps=STEPS, delta=1e-5
        ),
        model=ModelSettings(model="linear"),
        canaries=CanarySettings(),
        speed=SpeedSettings(),
    )


@pytest.fixture
def begin(tmp_path: Path, config: RunConfig) -> Begin:
    def begun(name: str = "run", **changes: object) -> tuple[RunDirectory, LedgerWriter]:
        run = create_run(tmp_path / name)
        writer = LedgerWriter.create(run.ledger, header(**changes))
        write_toml(run.config, config)
        writer.begin({})
        return run, writer

    return begun
