"""FedAvg with DP-SGD in Jiang's setting, beside the same federation with plain SGD.

Four clients with three label shards of MNIST each, 500 local steps at sampling rate 0.01, ten
rounds, epsilon 4 at delta 1e-5, clip norm 0.1. The noise is calibrated by PLD; the noise that
RDP needs is printed beside it.

    python benchmarks/fedavg.py                          # both models
    python benchmarks/fedavg.py --model scattering --json results.json
    python benchmarks/fedavg.py --rounds 1               # the costs alone, in minutes

Records are looked for in DPAUDIT_DATA (default ../shared/data beside the project). CPU seconds
are of one thread. They cover a whole federation: reading, features, training, ledgers, claim and
files; not the evaluation. Both federations use the same model, records, rounds and steps. Plain SGD
has a constant learning rate of its own, see ``PLAIN_RATES``: its gradients are not clipped.

What Jiang's setting leaves open was chosen for the private CNN, see ``CHOICES`` and ``SEARCH``. The
choice used training records: epsilon does not cover it, and the claim says so.

Denormal numbers are flushed to zero. Without that, plain SGD on scattering features takes twice the
time, as its softmax saturates at the published learning rate, and private training looks too good.

Plain SGD runs the model as torch does. The private step pools the CNN, whose windows overlap, with
channels last, which gives the same numbers in less time.
Seconds of the steps alone are printed, too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side.tables import table, titled

import dpaudit
from dpaudit.accountants import calibrate, pld, rdp
from dpaudit.accountants.calibrate import Accountant
from dpaudit.accountants.schedules import training_mechanism
from dpaudit.trainer.federated.federation import Federation, PreparedFederation
from dpaudit.trainer.federated.federation_run import prepare_federation, train_federation
from dpaudit.trainer.federated.strategy import RoundResult
from dpaudit.trainer.models.factories import evaluate_model
from dpaudit.vocabulary.federation import (
    FederatedConfig,
    FederatedPrivacy,
    FederationSettings,
    LocalTraining,
)
from dpaudit.vocabulary.ledger import Sampling
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.vocabulary.settings import (
    HYPERPARAMETER_TUNING,
    DataSettings,
    ModelSettings,
    SpeedSettings,
)

DATA = Path(os.environ.get("DPAUDIT_DATA", Path(__file__).parents[2] / "shared" / "data"))
MNIST = DATA / "mnist.npz"
CLIENTS, SHARDS, LOCAL_STEPS, ROUNDS = 4, 3, 500, 10
RATE, CLIP_NORM, EPSILON, DELTA = 0.01, 0.1, 4.0, 1e-5
PLAIN_RATES = {"cnn": 0.015, "scattering": 0.075}
"""Constant learning rates of plain SGD, whose gradients are not clipped: for scattering that of
Jiang's project. Without its hidden layer, the CNN diverges at the published 0.15."""
TARGETS = {"cnn": 96.0, "scattering": 97.4}
PUBLISHED = {"cnn": (96.33, 3044), "scattering": (97.42, 1538)}
"""Accuracy in percent and seconds of wall time on another machine (Jiang's project)."""
PUBLISHED_NOISE = 1.077


@dataclass(frozen=True)
class Choice:
    """What Jiang's setting leaves open, for the private federation of one model.

    Attributes:
        model: The model: a built-in name, or a factory.
        learning_rate: Of local training, at the first step.
        schedule: Of the learning rate over the local steps of all rounds.
        server_learning_rate: Factor of the averaged update.
        unaccounted: Uses of the records that epsilon does not cover.
    """

    model: str
    learning_rate: float
    schedule: str = "constant"
    server_learning_rate: float = 1.0
    unaccounted: tuple[str, ...] = ()


SEARCH = (
    "The CNN's settings are the best of 29 trials, by the accuracy on the last 10,000 training "
    "records, which no trial trained on. Each trial was one simulation: to save time, with batches "
    "of 6 records and the noise per record of full ones, and, but for two, with 200 steps of a "
    "round in place of 500, each 2.5 times as long. The trials varied the learning rate, its "
    "schedule, the server's rate and momentum, the hidden layer, widths, normalization, pooling, "
    "initialization, frozen layers and a pull to the global model; three had no noise. The "
    "best had 96.62%; with another seed, after the choice, 96.25%, and 96.33% at a server rate of "
    "1. The test records were read only to measure the chosen settings. The rate of plain SGD is "
    "the better of two, tried for one round on the same records; at the published 0.15 the test "
    "accuracy was 10% after two rounds."
)
"""How the settings of the CNN were chosen."""
CHOICES = {
    "cnn": Choice(
        "side_by_side.federated_models:linear_cnn", 0.6, "cosine", 1.5, (HYPERPARAMETER_TUNING,)
    ),
    "scattering": Choice("scattering", 0.075),
}
TARGET_RATIO = 1.35


def run_of(noise_multiplier: float, steps: int) -> Mechanism:
    """Return the mechanism of one client's local steps."""
    return training_mechanism(
        sampling=Sampling.POISSON,
        sampling_rate=RATE,
        noise_multiplier=noise_multiplier,
        steps=steps,
    )


def noise() -> dict[str, float]:
    """Calibrate the noise by PLD and RDP, and price the published noise by both."""
    steps = ROUNDS * LOCAL_STEPS
    found: dict[str, float] = {}
    accountants: dict[str, Accountant] = {"pld": pld.profile, "rdp": rdp.profile}
    for name, profile in accountants.items():
        needed = calibrate.noise_multiplier(
            lambda value: run_of(value, steps),
            target_epsilon=EPSILON,
            delta=DELTA,
            accountant=profile,
        )
        found[name] = needed.value
        spent = profile(run_of(PUBLISHED_NOISE, steps), adjacency=Adjacency.ADD_OR_REMOVE_ONE)
        found[f"epsilon of {PUBLISHED_NOISE} by {name}"] = spent.epsilon(delta=DELTA).upper
    return found


def config(model: str, noise_multiplier: float, rounds: int, seed: int) -> FederatedConfig:
    """Return the settings of one federation; without noise, with that of plain SGD."""
    chosen = CHOICES[model]
    if noise_multiplier == 0:
        chosen = Choice(chosen.model, PLAIN_RATES[model])
    return FederatedConfig(
        DataSettings(str(MNIST)),
        FederationSettings(
            "fedavg",
            participants=CLIENTS,
            rounds=rounds,
            partition="shards",
            shards_per_participant=SHARDS,
        ),
        FederatedPrivacy(
            delta=DELTA,
            noise_multiplier=noise_multiplier,
            clip_norm=CLIP_NORM,
            seed=seed,
            unaccounted=chosen.unaccounted,
        ),
        LocalTraining(
            local_steps=LOCAL_STEPS,
            sampling_rate=RATE,
            server_learning_rate=chosen.server_learning_rate,
        ),
        model=ModelSettings(
            chosen.model,
            learning_rate=chosen.learning_rate,
            momentum=0.9,
            learning_rate_schedule=chosen.schedule,
        ),
        speed=SpeedSettings(physical_batch_size=1024, device="cpu"),
    )


def train(settings: FederatedConfig) -> dict[str, Any]:
    """Train one federation; return accuracy in percent and seconds of the processor."""
    begin, clock = time.process_time(), time.perf_counter()
    prepared = prepare_federation(settings)
    prepared.records  # noqa: B018  features are computed here
    ready = time.process_time()
    evaluating = 0.0

    def on_round(result: RoundResult, federation: Federation) -> None:
        nonlocal evaluating
        start = time.process_time()
        said = f"round {result.number + 1}: {100 * accuracy(prepared):.2f}%"
        evaluating += time.process_time() - start
        print(said, f"after {start - begin:.0f} CPU s", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = train_federation(prepared, Path(folder) / "run", on_round)
        end, wall = time.process_time() - evaluating, time.perf_counter() - clock
        claimed = run.claim.exists()
        epsilon = json.loads(run.claim.read_text())["epsilon"]["upper"] if claimed else None
    return {
        "accuracy": 100 * accuracy(prepared),
        "epsilon": epsilon,
        "cpu_seconds": end - begin,
        "cpu_seconds_of_training": end - ready,
        "wall_seconds": wall,
    }


def accuracy(prepared: PreparedFederation) -> float:
    """Return the accuracy of the global model on the test set."""
    return evaluate_model(prepared.model, prepared.split.heldout).accuracy


def load_optimizers() -> None:
    """Take one step of plain SGD: what torch imports for it is no cost of one federation."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.SGD([weight], lr=1.0).step()


def compare(model: str, noise_multiplier: float, rounds: int, seed: int) -> dict[str, Any]:
    """Train with and without privacy, and compare."""
    load_optimizers()
    private = train(config(model, noise_multiplier, rounds, seed))
    plain = train(config(model, 0.0, rounds, seed))
    ratios = {
        "ratio": private["cpu_seconds"] / plain["cpu_seconds"],
        "ratio_of_training": private["cpu_seconds_of_training"] / plain["cpu_seconds_of_training"],
    }
    return {
        "settings": asdict(CHOICES[model]),
        "rounds": rounds,
        "seed": seed,
        "private": private,
        "plain": plain,
        **ratios,
    }


def rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return one row per model."""
    found = []
    for model, result in results.items():
        private, plain, (published, seconds) = (
            result["private"],
            result["plain"],
            PUBLISHED[model],
        )
        found.append(
            [
                model,
                f"{private['accuracy']:.2f}",
                f"{TARGETS[model]:.1f}",
                f"{published} ({seconds} s wall)",
                f"{plain['accuracy']:.2f}",
                f"{private['cpu_seconds']:.0f}",
                f"{plain['cpu_seconds']:.0f}",
                f"{result['ratio']:.2f}",
                f"{result['ratio_of_training']:.2f}",
            ]
        )
    return found


HEADS = [
    "model",
    "accuracy %",
    "target",
    "published",
    "plain SGD %",
    "CPU s",
    "plain CPU s",
    "ratio",
    "of training",
]


def facts(remarks: str) -> dict[str, Any]:
    """Return when and on what the figures were measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "dpaudit": dpaudit.__version__,
        "torch": str(torch.__version__),
        "processors": os.cpu_count(),
        "how_settings_of_the_cnn_were_chosen": SEARCH,
        "remarks": remarks,
    }


def main() -> None:
    """Print the noise and the table, and write them as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(TARGETS), action="append")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--remarks", default="")
    given = parser.parse_args()
    if not MNIST.exists():
        sys.exit(f"skipped: there is no {MNIST}; set DPAUDIT_DATA to the folder of mnist.npz")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    needed = noise()
    noises = [[name, f"{value:.4f}"] for name, value in needed.items()]
    title = f"noise multiplier for epsilon {EPSILON:g} at {DELTA:g}"
    print(titled(title, table(["by", "value"], noises)), flush=True)
    results: dict[str, dict[str, Any]] = {}
    for model in given.model or TARGETS:
        results[model] = compare(model, needed["pld"], given.rounds, given.seed)
        if given.json:  # a long run may be cut short
            document = {**facts(given.remarks), "noise": needed, "models": results}
            given.json.write_text(json.dumps(document, indent=2) + "\n")
    print(titled("FedAvg on MNIST, 4 clients with 3 shards each", table(HEADS, rows(results))))


if __name__ == "__main__":
    main()
