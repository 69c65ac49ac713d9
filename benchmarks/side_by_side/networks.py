"""The three networks that training is timed on, with a batch for each; no data set is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Task:
    """A network and one batch."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor


class Block(nn.Module):
    """A transformer block, of linear layers and torch's attention, so that every peer knows it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.together, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        records, length, width = x.shape
        parts = self.together(self.before(x)).view(records, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.out(mixed.reshape(records, length, width))
        return x + self.narrow(functional.gelu(self.wide(self.after(x))))


class Classifier(nn.Module):
    """Four blocks over 64 tokens of 10,000 kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10_000, 256)
        self.blocks = nn.Sequential(*(Block(256, 4) for _ in range(4)))
        self.head = nn.Linear(256, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.tokens(x)).mean(dim=1))
        return out


def mlp() -> Task:
    """Return 784-512-512-10, batch 512."""
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return Task(model, torch.randn(512, 784), torch.randint(0, 10, (512,)))


def cnn() -> Task:
    """Return three convolutions and two linear layers on 3 x 32 x 32, batch 128."""
    layers: list[nn.Module] = []
    for given, made in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(4096, 512), nn.ReLU(), nn.Linear(512, 10)]
    return Task(nn.Sequential(*layers), torch.randn(128, 3, 32, 32), torch.randint(0, 10, (128,)))


def transformer() -> Task:
    """Return the classifier of token sequences, batch 64."""
    return Task(Classifier(), torch.randint(0, 10_000, (64, 64)), torch.randint(0, 2, (64,)))


TASKS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
