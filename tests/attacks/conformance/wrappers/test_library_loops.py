"""Loops of libraries: each step is the library's own, on the records that are asked for."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.wrappers.paused_training import PausedTraining
from dpaudit.vocabulary.errors import InvalidArgument

STEPS, RATE = 3, 0.5


def records() -> list[Any]:
    rng = np.random.default_rng(1)
    return [(rng.standard_normal(5, dtype=np.float32), int(rng.integers(2))) for _ in range(6)]


def model() -> nn.Linear:
    torch.manual_seed(4)
    return nn.Linear(5, 2)


def loss(net: nn.Module, rows: list[Any]) -> Tensor:
    features = torch.stack([torch.as_tensor(x) for x, _ in rows])
    return nn.functional.cross_entropy(net(features), torch.tensor([y for _, y in rows]))


def hugging_face(folder: Path) -> Callable[[Any, int], Any]:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=STEPS, use_cpu=True, report_to=[], save_strategy="no", optim="sgd",
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0, disable_tqdm=True,
    )  # fmt: skip

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": nn.functional.cross_entropy(self.net(x), labels)}

    def build(known: Any, seed: int) -> Any:
        data = [{"x": x, "labels": y} for x, y in known]
        return transformers.Trainer(model=Model(), args=arguments, train_dataset=data)

    return build


def lightning(folder: Path) -> Callable[[Any, int], Any]:
    library = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")

    class Module(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    def build(known: Any, seed: int) -> Any:
        trainer = library.Trainer(
            max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        )  # fmt: skip
        return trainer, Module(), DataLoader(known, batch_size=2)

    return build


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", [hugging_face, lightning])
@pytest.mark.parametrize("observe", ["gradients", "parameters"])
def test_step_is_that_of_the_library(library: Any, observe: Any, tmp_path: Path) -> None:
    trainer = conformance.wrap(library(tmp_path), observe=observe)(records(), 0)
    net = model()
    for chosen in ([0, 3], [1], [2, 4, 5]):
        gradients = torch.autograd.grad(
            loss(net, [records()[i] for i in chosen]), list(net.parameters())
        )
        expected = torch.cat([part.flatten() for part in gradients]).numpy()
        scale = 1.0 if observe == "gradients" else -RATE
        assert trainer.step(include=chosen) == pytest.approx(scale * expected, rel=1e-4, abs=1e-6)
        with torch.no_grad():
            for own, gradient in zip(net.parameters(), gradients, strict=True):
                own.sub_(RATE * gradient)
    with pytest.raises(InvalidArgument, match="fewer steps than the claim"):
        trainer.step(include=[0])


def test_loop_of_a_trainer_that_is_not_used_any_more_ends() -> None:
    threads: list[threading.Thread] = []

    def begin(batches: Any) -> None:
        threads.append(threading.current_thread())
        for _ in batches:
            pass

    paused = PausedTraining(begin)
    paused.step("a batch")
    assert threads[0].is_alive()
    del paused
    gc.collect()
    assert not threads[0].is_alive()


def test_error_of_the_loop_is_raised_in_the_step() -> None:
    def begin(batches: Any) -> None:
        for batch in batches:
            raise ValueError(f"cannot use {batch}")

    paused = PausedTraining(begin)
    with pytest.raises(ValueError, match="cannot use 7"):
        paused.step(7)


def test_loop_without_a_step_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="no step"):
        PausedTraining(lambda batches: None)


def test_trainer_that_draws_its_own_batches_is_refused(tmp_path: Path) -> None:
    build = lightning(tmp_path)

    def own(known: Any, seed: int) -> Any:
        trainer, module, _ = build(known, seed)
        return trainer, module, [known]

    with pytest.raises(InvalidArgument, match="PrivateTrainerFactory"):
        conformance.wrap(own)(records(), 0)
