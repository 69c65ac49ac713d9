"""Networks of benchmarks/gpu.py, each at its full size and at a tiny size for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dpaudit.trainer.engine import PerSampleLoss

Rows = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """A network that is made on the CPU from seed 0, with one batch.

    Attributes:
        make: Returns the model.
        batch: Returns the records.
        loss: One loss per record.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Rows]
    loss: PerSampleLoss

    def built(self, device: torch.device) -> tuple[nn.Module, Rows]:
        """Return the same model and batch in every process, moved to a device."""
        torch.manual_seed(0)
        model, batch = self.make().train(), self.batch()
        return model.to(device), tuple(part.to(device) for part in batch)


def class_losses(model: nn.Module, batch: Rows) -> Tensor:
    """Return cross-entropies of classes."""
    return functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def token_losses(model: nn.Module, batch: Rows) -> Tensor:
    """Return each record's mean cross-entropy of its next tokens."""
    (tokens,) = batch
    scores = model(input_ids=tokens).logits[:, :-1]
    return functional.cross_entropy(scores.mT, tokens[:, 1:], reduction="none").mean(dim=1)


def _perceptron(widths: Sequence[int]) -> nn.Module:
    layers: list[nn.Module] = []
    for given, made in pairwise(widths):
        layers += [nn.Linear(given, made), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _convolutions(widths: Sequence[int], side: int) -> nn.Module:
    layers: list[nn.Module] = []
    for given, made in zip((3, *widths[:-1]), widths, strict=True):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    flat = widths[-1] * (side // 2 ** len(widths)) ** 2
    return nn.Sequential(*layers, nn.Flatten(), *_perceptron((flat, 4 * widths[0], 10)))


def _rows(records: int, *shape: int) -> Rows:
    return torch.randn(records, *shape), torch.randint(0, 10, (records,))


def _tokens(records: int, length: int, vocabulary: int) -> Rows:
    return (torch.randint(0, vocabulary, (records, length)),)


def _gpt2(width: int, layers: int, heads: int, vocabulary: int, length: int) -> nn.Module:
    import transformers

    settings = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(settings)


def _llama(width: int, layers: int, heads: int, vocabulary: int, length: int) -> nn.Module:
    import transformers

    settings = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, use_cache=False,
        num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=length,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(settings)


class LowRank(nn.Module):
    """A frozen linear layer with a trained low-rank update, which begins at 0 as LoRA does."""

    def __init__(self, frozen: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.into = nn.Linear(frozen.in_features, rank, bias=False)
        self.out_of = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.zeros_(self.out_of.weight)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.frozen(x) + 2 * self.out_of(self.into(x))
        return found


def _adapted(make: Callable[[], nn.Module], rank: int) -> nn.Module:
    """Return a model with low-rank updates of all attention projections, alone trained."""
    model = make().requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name.endswith("_proj"):
                setattr(module, name, LowRank(child, rank))
    return model


def _wide_resnet(depth: int, width: int) -> nn.Module:
    from dpaudit.trainer.models.wide_resnet import wide_resnet

    return wide_resnet((3, 32, 32), 10, depth=depth, width=width)


def _language(make: Callable[..., nn.Module], records: int, **shape: int) -> Network:
    rows = partial(_tokens, records, shape["length"], shape["vocabulary"])
    return Network(partial(make, **shape), rows, token_losses)


def networks(*, tiny: bool) -> dict[str, Network]:
    """Return all networks by name.

    Args:
        tiny: Whether networks are as small as tests need; else those of the speed table.
    """
    mlp: Any = (12, 16, 10) if tiny else (784, 512, 512, 10)
    widths, side = ((4, 8), 8) if tiny else ((64, 128, 256), 32)
    small = {"width": 256, "layers": 4, "heads": 4, "vocabulary": 10_000, "length": 64}
    large = {"width": 768, "layers": 12, "heads": 12, "vocabulary": 50_257, "length": 128}
    if tiny:
        small = large = {"width": 16, "layers": 2, "heads": 2, "vocabulary": 20, "length": 8}
    records = 4 if tiny else 16
    llama = partial(_llama, **small)
    found = {
        f"MLP, batch {count}": Network(
            partial(_perceptron, mlp), partial(_rows, own, mlp[0]), class_losses
        )
        for count, own in ((512, 6 if tiny else 512), (64, 4 if tiny else 64))
    }
    return found | {
        "CNN, batch 128": Network(
            partial(_convolutions, widths, side),
            partial(_rows, 4 if tiny else 128, 3, side, side),
            class_losses,
        ),
        "GPT-2, 4 x 256": _language(_gpt2, records, **small),
        "Llama, 4 x 256": _language(_llama, records, **small),
        "LoRA on that Llama": Network(
            partial(_adapted, llama, 2 if tiny else 8),
            partial(_tokens, records, small["length"], small["vocabulary"]),
            token_losses,
        ),
        "WRN-16-4, batch 128": Network(
            partial(_wide_resnet, 10 if tiny else 16, 1 if tiny else 4),
            partial(_rows, 4 if tiny else 128, 3, 32, 32),
            class_losses,
        ),
        "GPT-2 small, batch 16": _language(_gpt2, records, **large),
    }
