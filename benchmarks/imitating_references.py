"""What references that imitate a private run gain over references without noise.

    python benchmarks/imitating_references.py                      # digits, a hidden layer
    python benchmarks/imitating_references.py --data location30.npz --runs 2 --json gain.json

Private runs are trained with seeds, and each is attacked twice: with references that are trained
without noise, and by DP-SGD with the run's settings. AUC and the true-positive rate at 10% false
positives are means over the runs. The CPU time is that of one attack.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from side_by_side.tables import table

import dpaudit
from dpaudit.trainer.run import prepare_run, train_run
from dpaudit.vocabulary.settings import (
    CanarySettings,
    DataSettings,
    ModelSettings,
    PrivacySettings,
    RunConfig,
    SpeedSettings,
)
from dpaudit.workflow.attack.imitating_references import REFERENCE_TRAINING
from dpaudit.workflow.attack.model_attacks import AttackSettings, attack_run

ATTACKS = ("lira-online", "lira-offline", "rmia-online", "rmia-offline")
FPR = 0.1


def run_config(data: str, seed: int, noise_multiplier: float, steps: int) -> RunConfig:
    """Return the settings of one private run of a hidden layer."""
    return RunConfig(
        DataSettings(source=data, test_fraction=0.5),
        PrivacySettings(
            sampling_rate=0.25,
            noise_multiplier=noise_multiplier,
            clip_norm=1.0,
            steps=steps,
            delta=1e-5,
            expected_batch_size=200,
            seed=seed,
        ),
        ModelSettings(model="mlp", learning_rate=1.0),
        CanarySettings(),
        SpeedSettings(physical_batch_size=1024),
    )


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each kind of references and each attack."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in REFERENCE_TRAINING}
    epsilon = 0.0
    for seed in range(given.runs):
        config = run_config(given.data, seed, given.noise_multiplier, given.steps)
        with tempfile.TemporaryDirectory() as folder:
            run = train_run(prepare_run(config), Path(folder, "run"), lambda *_: None)
            epsilon = json.loads(run.claim.read_text())["epsilon"]["upper"]
            for how in REFERENCE_TRAINING:
                asked = AttackSettings(ATTACKS, seed=seed, references=given.references)
                start = time.process_time()
                report = attack_run(run, asked, reference_training=how).report
                seconds[how].append(time.process_time() - start)
                for one in report.membership:
                    tpr = float(np.interp(FPR, *np.array(one.roc).T))
                    found.setdefault((how, one.attack), []).append((one.auc, tpr))
    return [
        {
            "references": how,
            "attack": attack,
            "auc": float(np.mean([auc for auc, _ in rows])),
            "auc_standard_error": float(np.std([auc for auc, _ in rows]) / np.sqrt(len(rows))),
            "tpr": float(np.mean([tpr for _, tpr in rows])),
            "cpu_seconds": float(np.mean(seconds[how])),
            "epsilon": epsilon,
        }
        for (how, attack), rows in found.items()
    ]


def show(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    lines = [
        (
            row["references"],
            row["attack"],
            f"{row['auc']:.4f} +- {row['auc_standard_error']:.4f}",
            f"{100 * row['tpr']:.1f}%",
            f"{row['cpu_seconds']:.0f}",
        )
        for row in rows
    ]
    return table(("references", "attack", "AUC", f"TPR at FPR {FPR:g}", "CPU seconds"), lines)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--references", type=int, default=16)
    parser.add_argument("--noise-multiplier", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path, help="write all figures here")
    given = parser.parse_args()
    rows = measure(given)
    if given.json:
        settings = {name: value for name, value in vars(given).items() if name != "json"}
        date = datetime.date.today().isoformat()
        found = {"date": date, "dpaudit": dpaudit.__version__, "settings": settings, "rows": rows}
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()
