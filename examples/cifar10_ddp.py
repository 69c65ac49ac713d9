"""A convolutional network on CIFAR-10, data-parallel: without privacy and with, side by side.

    torchrun --nproc-per-node 2 examples/cifar10_ddp.py --data cifar10.npz
    torchrun --nproc-per-node 2 examples/cifar10_ddp.py --data cifar10.npz --records 5000 --epochs 2

The file holds x_train and x_test, uint8, shape (n, 32, 32, 3), or JPEG bytes in jpeg_train
and jpeg_test with offsets in off_train and off_test; and y_train, y_test. The private run
differs from the other in three lines: make_private, private.batches, private.step.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from dpaudit.trainer import make_private
from dpaudit.vocabulary.rounding import round_up

Batch = tuple[Tensor, Tensor]


def network() -> nn.Module:
    """Three convolutions of 64, 128 and 256 channels, then 4096-512-10."""
    layers: list[nn.Module] = []
    for given, made in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 10))


def read(path: Path, part: str, most: int | None) -> Batch:
    """Return images as floats in [-1, 1], shape (n, 3, 32, 32), and labels."""
    with np.load(path, allow_pickle=False) as file:
        labels = torch.from_numpy(file[f"y_{part}"][:most].astype(np.int64))
        if f"x_{part}" in file:
            images = file[f"x_{part}"][:most]
        else:
            jpeg, at = file[f"jpeg_{part}"], file[f"off_{part}"]
            images = np.stack([_decoded(jpeg[at[i] : at[i + 1]]) for i in range(len(labels))])
    scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return scaled.contiguous(), labels


def _decoded(jpeg: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def cross_entropies(model: nn.Module, batch: Batch) -> Tensor:
    """Return each record's loss, shape (records,)."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, reduction="none")


@dataclass(frozen=True)
class Options:
    """What both runs are asked for."""

    epochs: int
    batch_size: int
    learning_rate: float
    target_epsilon: float
    delta: float
    clip_norm: float
    device: torch.device


def train_plainly(model: nn.Module, train: Batch, options: Options) -> None:
    """Train by torch's own data parallelism; every rank takes its part of a shuffled pass."""
    dataset = TensorDataset(*train)
    sampler: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(dataset)
    share = options.batch_size // distributed.get_world_size()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for images, labels in DataLoader(dataset, batch_size=share, sampler=sampler):
            optimizer.zero_grad()
            batch = images.to(options.device), labels.to(options.device)
            cross_entropies(parallel, batch).mean().backward()
            optimizer.step()


def train_privately(model: nn.Module, train: Batch, options: Options) -> str:
    """Train with DP-SGD; return what it cost, in words."""
    private = make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=options.learning_rate, momentum=0.9),
        train,
        target_epsilon=options.target_epsilon,
        delta=options.delta,
        epochs=options.epochs,
        dataset_size=len(train[1]),
        expected_batch_size=options.batch_size,
        clip_norm=options.clip_norm,
        physical_batch_size=256,
    )
    for images, labels in private.batches():
        private.step(cross_entropies, (images.to(options.device), labels.to(options.device)))
    spent = private.epsilon()
    return (
        f"epsilon at most {round_up(spent.upper)} at delta {options.delta:g}, {private.steps} steps"
    )


def accuracy(model: nn.Module, test: Batch, device: torch.device) -> float:
    """Return the share of test records that are classified rightly; each rank takes its part."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    images, labels = (part[rank::ranks] for part in test)
    right = torch.zeros((), dtype=torch.int64, device=device)
    with torch.no_grad():
        for some, known in zip(images.split(500), labels.split(500), strict=True):
            right += (model(some.to(device)).argmax(dim=1) == known.to(device)).sum()
    distributed.all_reduce(right)
    return int(right) / len(test[1])


def report(name: str, test: Batch, options: Options, run: Callable[[nn.Module], str]) -> None:
    """Train a fresh network, and print how it did on the first rank."""
    torch.manual_seed(0)
    model = network().to(options.device)
    start = time.perf_counter()
    cost = run(model)
    seconds = time.perf_counter() - start
    reached = accuracy(model, test, options.device)
    if distributed.get_rank() == 0:
        ranks = distributed.get_world_size()
        print(f"{name:8} {reached:6.1%}  {seconds:6.0f} s on {ranks} ranks  {cost}", flush=True)


def _plainly(model: nn.Module, train: Batch, options: Options) -> str:
    train_plainly(model, train, options)
    return "no guarantee"


def main() -> None:
    """Train both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, help="train on the first so many only")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=1.0, help="of the private run")
    parser.add_argument("--target-epsilon", type=float, default=8.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--clip-norm", type=float, default=0.5)
    given = parser.parse_args()
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(minutes=10))
    local = distributed.get_rank() % max(1, torch.cuda.device_count())
    options = Options(
        epochs=given.epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        target_epsilon=given.target_epsilon,
        delta=given.delta,
        clip_norm=given.clip_norm,
        device=torch.device("cuda", local) if cuda else torch.device("cpu"),
    )
    train, test = read(given.data, "train", given.records), read(given.data, "test", None)
    report("plain", test, options, lambda model: _plainly(model, train, options))
    report("private", test, options, lambda model: train_privately(model, train, options))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
