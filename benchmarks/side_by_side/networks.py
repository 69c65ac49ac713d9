"""The networks that training is timed on, with a batch for each; no data set is read.

GPT-2, Llama and LoRA are those of transformers, tiny and random: nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Task:
    """A network and one batch; the network returns scores, shape ``(records, ..., classes)``."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


def losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return one loss per record: the mean over its labels, as over the tokens of a text."""
    flat = functional.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none")
    return flat if labels.dim() == 1 else flat.view(len(labels), -1).mean(dim=1)


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


def mlp(records: int = 512) -> Task:
    """Return 784-512-512-10, batch 512 or another number of records."""
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    return Task(model, torch.randn(records, 784), torch.randint(0, 10, (records,)))


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


TEXTS, LENGTH, TOKENS, WIDTH, LAYERS, HEADS = 16, 64, 1000, 256, 4, 4


class Scores(nn.Module):
    """A model of transformers that returns its scores of the next tokens alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).expand(x.shape)  # Opacus needs them per record
        out: Tensor = self.model(x, position_ids=places).logits
        return out


def _of_texts(model: nn.Module) -> Task:
    """Return a language model and a batch of random texts."""
    texts = torch.randint(0, TOKENS, (TEXTS, LENGTH + 1))
    return Task(Scores(model.train()), texts[:, :-1], texts[:, 1:])


def gpt2() -> Task:
    """Return a GPT-2 of 4 layers of width 256, batch 16 x 64 tokens, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=TOKENS, n_positions=LENGTH, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _of_texts(GPT2LMHeadModel(config))


def _llama() -> nn.Module:
    """Return a Llama of the same size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=TOKENS, hidden_size=WIDTH, intermediate_size=688, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=LENGTH, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def llama() -> Task:
    """Return a Llama of 4 layers of width 256, batch 16 x 64 tokens."""
    return _of_texts(_llama())


RANK, ADAPTED = 8, ("q_proj", "v_proj")


class Adapter(nn.Module):
    """A linear layer with a trained product of low rank, which begins at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, RANK, bias=False)
        self.up = nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + 2 * self.up(self.down(x))
        return out


def lora() -> Task:
    """Return that Llama with adapters of rank 8, by peft where it is installed."""
    model = _llama()
    if importlib.util.find_spec("peft"):
        from peft import LoraConfig, get_peft_model

        return _of_texts(get_peft_model(model, LoraConfig(r=RANK, target_modules=list(ADAPTED))))
    model.requires_grad_(False)
    for layer in model.model.layers:
        for name in ADAPTED:
            setattr(layer.self_attn, name, Adapter(getattr(layer.self_attn, name)))
    return _of_texts(model)


TASKS: dict[str, Callable[[], Task]] = {
    "mlp": mlp,
    "mlp64": lambda: mlp(64),
    "cnn": cnn,
    "gpt2": gpt2,
    "llama": llama,
    "lora": lora,
    "transformer": transformer,
}
