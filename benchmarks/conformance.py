"""False alarms of conformance audits of correct trainers, and the time of one audit.

    python benchmarks/conformance.py                          # 25 audits of each of 9 trainers
    python benchmarks/conformance.py --audits 5 --json out.json

Trainers are what each framework documents, at a small model. Opacus' trainers are claimed under
replace-one adjacency and under the assumption that NaN cannot occur: see docs/how_to. Audits that
the file of ``--json`` has are not repeated. A framework that is not installed is left out, and said
to be. Seconds are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side.tables import table, titled
from torch import nn
from torch.utils.data import DataLoader

from dpaudit.attacks import conformance
from dpaudit.trainer.conformance_trainers import PrivateTrainerFactory
from dpaudit.vocabulary.privacy_terms import Adjacency

RECORDS, WIDTH, HIDDEN, CLASSES = 24, 12, 60, 4
NOISE, CLIP, RATE, BATCH, STEPS, LEARNING_RATE = 2.0, 0.5, 0.25, 6, 20, 0.05
PADDED = 16  # rows of optax' batches

Make = Callable[..., Any]


@dataclass(frozen=True)
class Subject:
    """One correct trainer.

    Attributes:
        framework: The framework, by the name of its package.
        needs: Packages that must be installed.
        make: Returns the factory of trainers.
        claim: What differs from the common claim.
        assumptions: What is assumed about records.
    """

    framework: str
    needs: tuple[str, ...]
    make: Callable[[], Make]
    claim: dict[str, Any]
    assumptions: tuple[conformance.Assumption, ...] = ()


def records(seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal(WIDTH, dtype=np.float32), int(rng.integers(CLASSES)))
        for _ in range(RECORDS)
    ]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES))


def private(
    known: Any,
    optimizer: Any = torch.optim.SGD,
    module: nn.Module | None = None,
    collate_fn: Any = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Return model, optimizer, loader and loss of Opacus' engine."""
    from opacus import PrivacyEngine

    model, loss = network() if module is None else module, nn.CrossEntropyLoss()
    if options.get("grad_sample_mode") == "ghost":
        options["criterion"] = loss
    made = PrivacyEngine().make_private(
        module=model, optimizer=optimizer(model.parameters(), lr=LEARNING_RATE),
        data_loader=DataLoader(known, batch_size=BATCH, collate_fn=collate_fn),
        noise_multiplier=NOISE, max_grad_norm=CLIP, **options,
    )  # fmt: skip
    return made[0], made[1], made[-1], made[2] if len(made) > 3 else loss


def opacus(optimizer: Any = torch.optim.SGD, **options: Any) -> Make:
    return conformance.wrap(lambda known, seed: private(known, optimizer, **options))


def accelerate() -> Make:
    from accelerate import Accelerator

    def build(known: Any, seed: int) -> Any:
        accelerator = Accelerator(cpu=True)  # here: a Trainer of Hugging Face resets its state
        model, optimizer, loader, loss = private(known)
        model, optimizer = accelerator.prepare(model, optimizer)

        def train_step(batch: Any) -> None:
            optimizer.zero_grad()
            accelerator.backward(loss(model(batch[0]), batch[1]))
            optimizer.step()

        return conformance.TorchLoop(model, loader, train_step, optimizer)

    return conformance.wrap(build)


def lightning() -> Make:
    from lightning.pytorch import LightningModule, Trainer

    class Module(LightningModule):
        def __init__(self, known: Any) -> None:
            super().__init__()
            self.model, self.made, self.loader, self.loss = private(known)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.loss(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return self.made

    folder = tempfile.mkdtemp()

    def build(known: Any, seed: int) -> Any:
        module = Module(known)
        trainer = Trainer(
            max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
        )  # fmt: skip
        return trainer, module, module.loader

    return conformance.wrap(build)


def hugging_face() -> Make:
    import transformers

    arguments = transformers.TrainingArguments(
        tempfile.mkdtemp(), max_steps=STEPS, use_cpu=True, report_to=[], save_strategy="no",
        optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Any, labels: Any, **unused: Any) -> dict[str, Any]:
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    class ClearGradients(transformers.TrainerCallback):
        """The Trainer clears the model's gradients, not those of Opacus' optimizer."""

        def on_step_begin(self, *state: Any, optimizer: Any, **other: Any) -> None:
            optimizer.zero_grad()

    class PrivateTrainer(transformers.Trainer):
        def get_train_dataloader(self) -> Any:
            return self.private_loader

    def build(known: Any, seed: int) -> Any:
        rows = [{"x": x, "labels": y} for x, y in known]
        model, optimizer, loader, _ = private(
            rows, module=Model(), collate_fn=transformers.default_data_collator
        )
        trainer = PrivateTrainer(
            model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, None),
            callbacks=[ClearGradients()],
        )  # fmt: skip
        trainer.private_loader = loader
        return trainer

    return conformance.wrap(build)


def own() -> Make:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = network()

    def model() -> nn.Module:
        fresh = network()
        fresh.load_state_dict(start.state_dict())
        return fresh

    def loss(net: nn.Module, batch: Any) -> Any:
        return nn.functional.cross_entropy(net(batch[0]), batch[1], reduction="none")

    return PrivateTrainerFactory(
        model, loss, records(0)[0], learning_rate=LEARNING_RATE, noise_multiplier=NOISE,
        clip_norm=CLIP, sampling_rate=RATE, expected_batch_size=BATCH,
    )  # fmt: skip


def jax_loss(params: Any, x: Any, y: Any) -> Any:
    import jax.numpy as jnp
    import optax

    hidden = jnp.tanh(x @ params["first"] + params["bias"])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["second"], y)


def jax_params() -> Any:
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    return {
        "first": jnp.array(rng.normal(size=(WIDTH, HIDDEN)) / 4, jnp.float32),
        "bias": jnp.zeros(HIDDEN),
        "second": jnp.array(rng.normal(size=(HIDDEN, CLASSES)) / 8, jnp.float32),
    }


def batches(seed: int) -> Any:
    """Yield Poisson-sampled indices, as a loop in JAX draws them."""
    for step in range(STEPS):
        yield np.flatnonzero(np.random.default_rng([seed, step]).random(RECORDS) < RATE)


def optax() -> Make:
    from optax import contrib

    def build(known: Any, seed: int) -> Any:
        optimizer = contrib.dpsgd(LEARNING_RATE, CLIP, NOISE, seed=seed)
        return jax_params(), optimizer, jax_loss, batches(seed)

    return conformance.wrap(build, batch_size=PADDED)


def jax_privacy() -> Make:
    import jax
    from jax_privacy import clipped_grad, noise_addition

    gradient = clipped_grad(jax_loss, l2_clip_norm=CLIP, batch_argnums=(1, 2), keep_batch_dim=False)

    def build(known: Any, seed: int) -> Any:
        noise = noise_addition.gaussian_privatizer(
            stddev=NOISE * CLIP, prng_key=jax.random.key(seed)
        )
        return jax_params(), gradient, noise, batches(seed)

    return conformance.wrap(build)


NO_NAN = (conformance.Assumption.NO_NAN,)
BY_SGD = {"update_scale": -LEARNING_RATE / BATCH}
REPLACED = {"adjacency": Adjacency.REPLACE_ONE}
AVERAGE = {**REPLACED, "update_scale": 1 / BATCH}
SUBJECTS = {
    "Opacus, hooks": Subject("opacus", ("opacus",), opacus, {**REPLACED, **BY_SGD}, NO_NAN),
    "Opacus, ghost clipping": Subject(
        "opacus", ("opacus",), lambda: opacus(grad_sample_mode="ghost"), {**REPLACED, **BY_SGD},
        NO_NAN,
    ),
    "Opacus, functorch, Adam": Subject(
        "opacus", ("opacus",),
        lambda: opacus(torch.optim.Adam, grad_sample_mode="functorch"), AVERAGE, NO_NAN,
    ),
    "Accelerate with Opacus": Subject(
        "accelerate", ("accelerate", "opacus"), accelerate, {**REPLACED, **BY_SGD}, NO_NAN
    ),
    "Lightning with Opacus": Subject(
        "lightning", ("lightning", "opacus"), lightning, AVERAGE, NO_NAN
    ),
    "Hugging Face with Opacus": Subject(
        "transformers", ("transformers", "opacus"), hugging_face, AVERAGE, NO_NAN
    ),
    "dpaudit make_private": Subject("dpaudit", ("torch",), own, BY_SGD),
    "optax dpsgd, padded": Subject(
        "optax", ("jax", "optax"), optax, {"update_scale": -LEARNING_RATE / PADDED}, NO_NAN
    ),
    "JAX Privacy": Subject(
        "jax_privacy", ("jax", "jax_privacy"), jax_privacy, {"update_scale": 1.0}
    ),
}  # fmt: skip


def audit(subject: Subject, make: Make, seed: int) -> dict[str, Any]:
    """Audit one trainer once."""
    claim = conformance.StepClaim(
        noise_multiplier=NOISE, clip_norm=CLIP, sampling_rate=RATE, steps=STEPS, **subject.claim
    )
    start = time.process_time()
    result = conformance.check(
        make, claim, records=records(seed), seed=seed, assumptions=subject.assumptions
    )
    return {
        "seed": seed,
        "verdict": result.verdict.value,
        "seconds": round(time.process_time() - start, 2),
        "not passed": [
            f"{one.outcome.value} {one.check}, {one.name}: {one.why}"
            for one in result.findings
            if one.outcome.value != "PASS"
        ],
    }


def missing(subject: Subject) -> list[str]:
    return [name for name in subject.needs if find_spec(name) is None]


def run_all(audits: int, found: dict[str, list[dict[str, Any]]], file: Path | None) -> None:
    """Add audits until each installed trainer has as many as asked for, one of each at a time."""
    makers = {name: one.make() for name, one in SUBJECTS.items() if not missing(one)}
    for seed in range(audits):
        for name, make in makers.items():
            if any(one["seed"] == seed for one in found[name]):
                continue
            found[name].append(audit(SUBJECTS[name], make, seed))
            if file is not None:
                file.write_text(json.dumps(found, indent=1) + "\n")


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for name, own_audits in found.items():
        if not own_audits:
            absent = ", ".join(missing(SUBJECTS[name]))
            rows.append((name, "0", f"not installed: {absent}", "", ""))
            continue
        verdicts = [one["verdict"] for one in own_audits]
        seconds = [one["seconds"] for one in own_audits]
        rows.append(
            (
                name, str(len(verdicts)), str(verdicts.count("FAIL")),
                str(verdicts.count("INCONCLUSIVE")),
                f"{statistics.median(seconds):.1f} (at most {max(seconds):.1f})",
            )
        )  # fmt: skip
    every = [one for own_audits in found.values() for one in own_audits]
    alarms = sum(one["verdict"] == "FAIL" for one in every)
    frameworks = {SUBJECTS[name].framework for name, some in found.items() if some}
    heading = ("trainer", "audits", "false alarms", "inconclusive", "CPU seconds, median")
    total = (
        f"{alarms} false alarms in {len(every)} clean audits of "
        f"{sum(bool(some) for some in found.values())} trainers from {len(frameworks)} frameworks"
    )
    return titled("Conformance audits of correct trainers", table(heading, rows), total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--audits", type=int, default=25, help="Audits of each trainer.")
    parser.add_argument("--json", type=Path, help="File of all audits, which is continued.")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SUBJECTS}
    if options.json is not None and options.json.exists():
        found |= json.loads(options.json.read_text())
    run_all(options.audits, found, options.json)
    print(report(found))


if __name__ == "__main__":
    main()
