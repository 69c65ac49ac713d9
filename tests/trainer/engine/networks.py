"""Small models that use every layer the engine must cope with, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from dpaudit.trainer.engine import PerSampleLoss
from dpaudit.trainer.engine.batch_structure import Batch, map_tensors
from dpaudit.trainer.models import factories

RECORDS = 5
CLASSES = 3
WIDTH = 6
TOKENS = 11


class Formula(nn.Module):
    """A model given by its parts and by what is computed with them."""

    def __init__(self, formula: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self._formula = formula
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Any) -> Tensor:
        return self._formula(self, *inputs)


def cross_entropies(model: nn.Module, batch: Batch) -> Tensor:
    """Return each record's loss; all of a batch but the last part goes into the model."""
    *inputs, labels = batch
    return functional.cross_entropy(model(*inputs), labels, reduction="none")


@dataclass(frozen=True)
class Network:
    """How to make a model, and a batch of any number of records for it."""

    make: Callable[[], nn.Module]
    batch: Callable[[int], Batch]
    loss: PerSampleLoss = cross_entropies

    def build(self, records: int = RECORDS, seed: int = 0) -> Built:
        """Return the model and a batch, the same ones for one seed."""
        torch.manual_seed(seed)
        return Built(self.make(), self.batch(records), self.loss)

    def on(self, batch: Callable[[int], Batch]) -> Network:
        """Return the same model, for batches of another shape."""
        return replace(self, batch=batch)


@dataclass(frozen=True)
class Built:
    """A model, a batch and a loss."""

    model: nn.Module
    batch: Batch
    loss: PerSampleLoss

    def double(self) -> Built:
        """Return the same in double precision; the model changes."""
        return Built(self.model.double(), with_floats(self.batch, Tensor.double), self.loss)

    def weighted(self) -> PerSampleLoss:
        """Return the loss of batches ``(batch, weights)``: each record's, times its weight."""
        return lambda model, batch: batch[1] * self.loss(model, batch[0])


def with_floats(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Return the batch with every tensor of real numbers changed."""
    return map_tensors(
        batch, lambda tensor: change(tensor) if tensor.is_floating_point() else tensor
    )


def labels(records: int) -> Tensor:
    return torch.randint(0, CLASSES, (records,))


def numbers(*shape: int) -> Callable[[int], Batch]:
    """Return batches of records of one shape."""
    return lambda records: (torch.randn(records, *shape), labels(records))


def tokens(length: int, table: int = TOKENS) -> Callable[[int], Batch]:
    """Return batches of token sequences."""
    return lambda records: (torch.randint(0, table, (records, length)), labels(records))


def head(width: int = WIDTH) -> nn.Linear:
    return nn.Linear(width, CLASSES)


# --- layers one after the other


def _with_head(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(CLASSES))


def layered(make: Callable[[], list[nn.Module]], *shape: int) -> Network:
    """Return layers, then a linear one, on records of one shape."""

    def ready() -> nn.Module:
        model = _with_head(*make())
        with torch.no_grad():
            model(torch.zeros(2, *shape))
        return model

    return Network(ready, numbers(*shape))


def on_tokens(make: Callable[[], list[nn.Module]], length: int = RECORDS) -> Network:
    """Return layers, then a linear one, on sequences of tokens."""

    def ready() -> nn.Module:
        model = _with_head(*make())
        with torch.no_grad():
            model(torch.zeros(2, length, dtype=torch.long))
        return model

    return Network(ready, tokens(length))


LAYERS = {
    "linear of the trainer": Network(lambda: factories.linear_model((6,), CLASSES), numbers(6)),
    "mlp of the trainer": Network(lambda: factories.mlp_model((6,), CLASSES), numbers(6)),
    "cnn of the trainer": Network(lambda: factories.cnn_model((16, 16), CLASSES), numbers(16, 16)),
    "colour cnn of the trainer": Network(lambda: factories.cnn_model((3, 20, 20), CLASSES),
                                         numbers(3, 20, 20)),
    "mlp": layered(lambda: [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU()], 6),
    "no biases": layered(lambda: [nn.Linear(6, 8, bias=False), nn.Tanh()], 6),
    "linear on a sequence": layered(lambda: [nn.Linear(6, 7), nn.Tanh()], 4, 6),
    "linear on as many positions as records": layered(lambda: [nn.Linear(6, 7), nn.Tanh()], 5, 6),
    "linear on a grid": layered(lambda: [nn.Linear(6, 7), nn.Tanh()], 2, 5, 6),
    "wide linear on a sequence": layered(lambda: [nn.Linear(40, 48), nn.Tanh()], 8, 40),
}  # fmt: skip


def _changed_in_place(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Return a linear layer whose output is changed in place."""

    def formula(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.tanh(change(net.inner(x), x)).flatten(1))

    return lambda: Formula(formula, inner=nn.Linear(6, 6), head=head(24))


def _set_first(h: Tensor, x: Tensor) -> Tensor:
    h[:, 0] = x[:, 1]
    return h


def _cut_part(h: Tensor, _: Tensor) -> Tensor:
    h[:, :2].relu_()
    return h


IN_PLACE = {
    "linear on a sequence, relu in place": layered(
        lambda: [nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Linear(7, 7), nn.ReLU(inplace=True)],
        4, 6),
    "linear on a sequence without bias, relu in place": layered(
        lambda: [nn.Linear(6, 7, bias=False), nn.ReLU(inplace=True)], 4, 6),
    "linear on a sequence, added to in place": Network(
        _changed_in_place(lambda h, x: h.add_(x)), numbers(4, 6)),
    "linear on a sequence, set in place": Network(_changed_in_place(_set_first), numbers(4, 6)),
    "linear on a sequence, a part in place": Network(_changed_in_place(_cut_part), numbers(4, 6)),
    "layer norm, relu in place": layered(lambda: [nn.LayerNorm(6), nn.ReLU(inplace=True)], 4, 6),
    "instance norm, relu in place": layered(
        lambda: [nn.InstanceNorm1d(4, affine=True), nn.ReLU(inplace=True)], 4, 6),
    "group norm, relu in place": layered(
        lambda: [nn.GroupNorm(2, 4), nn.ReLU(inplace=True)], 4, 6),
    "embedding, relu in place": on_tokens(
        lambda: [nn.Embedding(TOKENS, WIDTH), nn.ReLU(inplace=True)]),
}  # fmt: skip

CONVOLUTIONS = {
    "conv1d": layered(lambda: [nn.Conv1d(4, 6, 3, stride=2, padding=1), nn.Tanh()], 4, 8),
    "conv1d without bias": layered(lambda: [nn.Conv1d(4, 6, 3, bias=False), nn.Tanh()], 4, 8),
    "conv1d, as many channels as records": layered(lambda: [nn.Conv1d(5, 5, 2), nn.Tanh()], 5, 6),
    "conv2d": layered(
        lambda: [
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, padding="same", dilation=2), nn.ReLU(inplace=True),
            nn.GroupNorm(2, 4), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, stride=2, groups=2),
        ], 3, 8, 8,
    ),
    "conv2d with many channels, pooled in overlapping windows": layered(
        lambda: [
            nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2, stride=1),
            nn.Conv2d(8, 9, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        ], 2, 7, 6,
    ),
    "conv2d, padded to one side": layered(
        lambda: [nn.Conv2d(3, 4, 2, padding="same"), nn.Tanh(), nn.Conv2d(4, 2, (1, 3))], 3, 5, 6
    ),
    "conv2d by names of padding": layered(
        lambda: [nn.Conv2d(2, 3, 3, padding="valid"), nn.Tanh(),
                 nn.Conv2d(3, 3, 3, padding=(2, 1), stride=(2, 1), dilation=(1, 2))], 2, 7, 7
    ),
    "conv2d in circles, by channel": layered(
        lambda: [nn.Conv2d(3, 6, 3, padding=1, padding_mode="circular", groups=3), nn.Tanh()],
        3, 4, 4,
    ),
    "conv3d": layered(
        lambda: [nn.Conv3d(2, 4, 2, stride=(1, 2, 1), groups=2), nn.ReLU(inplace=True)], 2, 4, 4, 4
    ),
}  # fmt: skip

NORMALISATIONS = {
    "group norm without positions": layered(lambda: [nn.Linear(6, 8), nn.GroupNorm(2, 8)], 6),
    "group norm": layered(lambda: [nn.Conv1d(4, 6, 3), nn.GroupNorm(3, 6), nn.Tanh()], 4, 6),
    "group norm on a sequence as long as its channels": layered(
        lambda: [nn.GroupNorm(2, 4), nn.Tanh()], 4, 4
    ),
    "instance norm 1d": layered(lambda: [nn.InstanceNorm1d(4, affine=True), nn.Tanh()], 4, 6),
    "instance norm 2d": layered(lambda: [nn.InstanceNorm2d(3, affine=True), nn.Tanh()], 3, 4, 4),
    "layer norm": layered(lambda: [nn.Linear(6, 7), nn.LayerNorm(7), nn.Tanh()], 6),
    "layer norm of a sequence": layered(lambda: [nn.LayerNorm(6), nn.Tanh()], 4, 6),
    "layer norm of two dimensions": layered(lambda: [nn.LayerNorm((2, 6)), nn.Tanh()], 3, 2, 6),
    "layer norm without bias": layered(lambda: [nn.LayerNorm(6, bias=False), nn.Tanh()], 5, 6),
    "rms norm": layered(lambda: [nn.Linear(6, 7), nn.RMSNorm(7), nn.Tanh()], 6),
    "rms norm of a sequence": layered(lambda: [nn.RMSNorm((2, 6)), nn.Tanh()], 5, 2, 6),
}

# --- look-ups


def _plus_positions(index: Callable[[Tensor], Tensor], length: int) -> Network:
    """Return tokens and positions, added; ``index`` says how the positions are looked up."""

    def formula(net: Any, x: Tensor) -> Tensor:
        h = torch.tanh(net.table(x) + net.positions(index(x)))
        return net.head(h.mean(dim=1))

    return Network(
        lambda: Formula(formula, table=nn.Embedding(TOKENS, WIDTH),
                        positions=nn.Embedding(12, WIDTH), head=head()),
        tokens(length),
    )  # fmt: skip


def _expanded(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1]).expand(x.shape)


def _one_row(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])[None]


def _no_records(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


def _changed_positions(change: Callable[[Tensor, Tensor], Tensor]) -> Network:
    """Return tokens and one row of positions, which ``change`` brings into shape."""

    def formula(net: Any, x: Tensor) -> Tensor:
        row = change(net.positions(_one_row(x)), x)
        return net.head(torch.tanh(net.table(x) + row).mean(dim=1))

    return Network(
        lambda: Formula(formula, table=nn.Embedding(TOKENS, WIDTH),
                        positions=nn.Embedding(12, WIDTH), head=head()),
        tokens(4),
    )  # fmt: skip


def _class_token(net: Any, x: Tensor) -> Tensor:
    """Positions of tokens and of the class, one after the other, as vision transformers do."""
    positions = torch.cat([net.class_position, net.positions(_one_row(x))], dim=1)
    h = torch.cat([net.token.expand(len(x), -1, -1), net.table(x)], dim=1) + positions
    return net.head(torch.tanh(h).mean(dim=1))


def _bag_with_weights(net: Any, x: Tensor, weights: Tensor) -> Tensor:
    return net.head(torch.tanh(functional.embedding_bag(
        x, net.table.weight, mode="sum", per_sample_weights=weights
    )))  # fmt: skip


def _bag(**options: Any) -> Network:
    return on_tokens(lambda: [nn.EmbeddingBag(TOKENS, WIDTH, **options), nn.Tanh()])


TABLES = {
    "embedding": on_tokens(lambda: [nn.Embedding(TOKENS, WIDTH), nn.Tanh()]),
    "embedding of one token": Network(
        lambda: nn.Sequential(nn.Embedding(TOKENS, WIDTH), nn.Tanh(), head()),
        lambda records: (torch.randint(0, TOKENS, (records,)), labels(records)),
    ),
    "embedding with padding": on_tokens(lambda: [nn.Embedding(4, WIDTH, padding_idx=0),
                                                 nn.Tanh()])
    .on(tokens(5, 4)),
    "embedding with padding from the end": on_tokens(
        lambda: [nn.Embedding(4, WIDTH, padding_idx=-1), nn.Tanh()]).on(tokens(5, 4)),
    "embedding by frequency": on_tokens(
        lambda: [nn.Embedding(4, WIDTH, scale_grad_by_freq=True), nn.Tanh()]).on(tokens(5, 4)),
    "bags": _bag(),
    "bags, added": _bag(mode="sum"),
    "bags, largest": _bag(mode="max"),
    "bags with padding": _bag(padding_idx=3),
    "bags with weights": Network(
        lambda: Formula(_bag_with_weights, table=nn.Embedding(TOKENS, WIDTH), head=head()),
        lambda n: (torch.randint(0, TOKENS, (n, 4)), torch.rand(n, 4), labels(n)),
    ),
    "positions, expanded": _plus_positions(_expanded, 4),
    "positions, expanded, as many as records": _plus_positions(_expanded, 5),
    "positions in one row": _plus_positions(_one_row, 4),
    "positions in one row, as many as records": _plus_positions(_one_row, 5),
    "positions without records": _plus_positions(_no_records, 4),
    "positions without records, as many as records": _plus_positions(_no_records, 5),
    "positions without records, twice as many as records": _plus_positions(_no_records, 10),
    "positions in one row, repeated": _changed_positions(lambda row, x: row.repeat(len(x), 1, 1)),
    "positions in one row, expanded": _changed_positions(
        lambda row, x: row.expand(len(x), -1, -1)),
    "positions in one row, taken out": _changed_positions(lambda row, x: row[0]),
    "positions in one row, viewed": _changed_positions(lambda row, x: row.view(row.shape[1:])),
    "positions in one row, squeezed": _changed_positions(lambda row, x: row.squeeze(0)),
    "positions in one row after the class's": Network(
        lambda: Formula(_class_token, table=nn.Embedding(TOKENS, WIDTH),
                        positions=nn.Embedding(12, WIDTH), token=nn.Parameter(torch.randn(1, 1, 6)),
                        class_position=nn.Parameter(torch.randn(1, 1, 6)), head=head()),
        tokens(4),
    ),
    "positions as a bare parameter": Network(
        lambda: Formula(
            lambda net, x: net.head(torch.tanh(net.table(x) + net.positions).mean(dim=1)),
            table=nn.Embedding(TOKENS, WIDTH), positions=nn.Parameter(torch.randn(1, 4, 6)),
            head=head()),
        tokens(4),
    ),
}  # fmt: skip

# --- attention


def causal_mask(like: Tensor, length: int) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(length, dtype=like.dtype)


class Attention(nn.Module):
    """Attention of queries to keys and values, or of a sequence to itself."""

    def __init__(
        self, *, itself: bool, shown: bool = False, causal: bool = False, **options: Any
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.head = nn.LazyLinear(CLASSES)
        self._itself, self._shown, self._causal = itself, shown, causal

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        first = self.attention.batch_first
        q, k, v = (batch[n] if first else batch[n].transpose(0, 1) for n in ("q", "k", "v"))
        k, v = (q, q) if self._itself else (k, v)
        mask = batch["mask"].flatten(0, 1) if "mask" in batch else None
        if self._causal:
            mask = causal_mask(q, batch["q"].shape[1])
        y, shown = self.attention(q, k, v, batch.get("padding"), self._shown, mask)
        y = y if first else y.transpose(0, 1)
        if shown is not None:
            y = torch.cat([y.flatten(1), shown.flatten(1)], dim=1)
        return self.head(y.flatten(1))


@dataclass(frozen=True)
class Labelled:
    """A batch in parts with names, and what goes with the batch without being a tensor."""

    features: dict[str, Tensor]
    labels: Tensor
    comment: str = "not a tensor"


def named_losses(model: nn.Module, batch: Labelled) -> Tensor:
    return functional.cross_entropy(model(batch.features), batch.labels, reduction="none")


def attention(
    queries: int = 4,
    *,
    keys: int = 5,
    padded: bool = False,
    masked: bool = False,
    widths: tuple[int, int] = (8, 8),
    **options: Any,
) -> Network:
    def batch(records: int) -> Labelled:
        kdim, vdim = widths
        features = {
            "q": torch.randn(records, queries, 8),
            "k": torch.randn(records, keys, kdim),
            "v": torch.randn(records, keys, vdim),
        }
        seen = queries if options["itself"] else keys
        if padded:
            lengths = torch.randint(1, seen + 1, (records, 1))
            features["padding"] = torch.arange(seen) >= lengths
        if masked:
            closed = torch.rand(records, 2, queries, seen) < 0.3
            closed[..., 0] = False
            features["mask"] = closed
        return Labelled(features, labels(records))

    def make() -> nn.Module:
        model = Attention(**options)
        with torch.no_grad():
            model(batch(2).features)
        return model

    return Network(make, batch, named_losses)


ATTENTION = {
    "self-attention": attention(itself=True, batch_first=True),
    "self-attention, positions first": attention(itself=True),
    "self-attention, positions first, as many as records": attention(5, itself=True),
    "self-attention, as many positions as records": attention(5, itself=True, batch_first=True),
    "self-attention that shows its weights": attention(itself=True, shown=True),
    "self-attention without biases": attention(itself=True, batch_first=True, bias=False),
    "causal self-attention": attention(itself=True, batch_first=True, causal=True),
    "causal self-attention that shows its weights": attention(itself=True, causal=True, shown=True),
    "padded self-attention": attention(itself=True, batch_first=True, padded=True),
    "padded causal self-attention": attention(
        itself=True, batch_first=True, padded=True, causal=True
    ),
    "self-attention with a mask of each record": attention(itself=True, masked=True, shown=True),
    "cross-attention": attention(itself=False, batch_first=True),
    "cross-attention, positions first": attention(itself=False, padded=True, shown=True),
    "cross-attention of other widths": attention(
        itself=False, batch_first=True, widths=(7, 3), kdim=7, vdim=3
    ),
    "cross-attention with rows added": attention(
        itself=False, add_bias_kv=True, add_zero_attn=True, padded=True, masked=True
    ),
    "cross-attention with rows added, weights shown": attention(
        itself=False, batch_first=True, add_bias_kv=True, add_zero_attn=True, shown=True
    ),
}


class Encoder(nn.Module):
    """Tokens and positions, a layer of a transformer, and a linear one."""

    def __init__(self, *, causal: bool = False, decoder: bool = False, **options: Any) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(TOKENS, 8), nn.Embedding(8, 8)
        kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
        self.layer = kind(8, 2, 16, dropout=0.0, **options)
        self.head = head(8)
        self._causal, self._first = causal, options.get("batch_first", False)
        self._decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.positions(_one_row(x))
        h = h if self._first else h.transpose(0, 1)
        mask = causal_mask(h, x.shape[1]) if self._causal else None
        if self._decoder:
            h = self.layer(h, h * 0.5, tgt_mask=mask)
        else:
            h = self.layer(h, src_mask=mask, is_causal=self._causal)
        return self.head(torch.tanh(h).mean(dim=1 if self._first else 0))


def encoder(length: int = 4, **options: Any) -> Network:
    return Network(lambda: Encoder(**options), tokens(length))


TRANSFORMERS = {
    "encoder layer": encoder(batch_first=True),
    "encoder layer, positions first": encoder(),
    "encoder layer, as many positions as records": encoder(5, batch_first=True),
    "encoder layer, positions first, as many as records": encoder(5),
    "encoder layer, norm first, causal": encoder(batch_first=True, norm_first=True, causal=True),
    "encoder layer without biases": encoder(batch_first=True, bias=False, activation="gelu"),
    "decoder layer": encoder(batch_first=True, decoder=True, causal=True),
}

# --- recurrence


class Recurrent(nn.Module):
    """A recurrent network whose outputs and last states all count."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.network = getattr(nn, kind)(WIDTH, 5, **options)
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        first = self.network.batch_first
        y, state = self.network(x if first else x.transpose(0, 1))
        y = y if first else y.transpose(0, 1)
        last = state if isinstance(state, tuple) else (state,)
        seen = [y.flatten(1), *(part.transpose(0, 1).flatten(1) for part in last)]
        return self.head(torch.cat(seen, dim=1))


def recurrent(kind: str, length: int = 4, **options: Any) -> Network:
    def make() -> nn.Module:
        model = Recurrent(kind, **options)
        with torch.no_grad():
            model(torch.zeros(2, length, WIDTH))
        return model

    return Network(make, numbers(length, WIDTH))


def _cells(net: Any, x: Tensor) -> Tensor:
    h, c = net.start.expand(len(x), -1), torch.zeros(len(x), WIDTH)
    for t in range(x.shape[1]):
        h, c = net.cell(x[:, t], (h, c.to(x)))
    return net.head(h)


RECURRENT = {
    "lstm": recurrent("LSTM", batch_first=True),
    "lstm, times first, as many as records": recurrent("LSTM", 5),
    "lstm of two layers both ways": recurrent(
        "LSTM", 2, batch_first=True, num_layers=2, bidirectional=True
    ),
    "lstm with projections": recurrent("LSTM", 2, proj_size=2, num_layers=2),
    "lstm with projections, no biases": recurrent("LSTM", proj_size=2, bias=False),
    "gru": recurrent("GRU", batch_first=True),
    "gru of two layers both ways": recurrent("GRU", 2, num_layers=2, bidirectional=True),
    "gru without biases": recurrent("GRU", bias=False, batch_first=True),
    "rnn": recurrent("RNN", bias=False),
    "rnn with relu": recurrent("RNN", 3, nonlinearity="relu", num_layers=2, batch_first=True),
    "cells of an lstm and a start of its own": Network(
        lambda: Formula(
            _cells, cell=nn.LSTMCell(WIDTH, WIDTH), start=nn.Parameter(torch.randn(1, WIDTH)),
            head=head(),
        ),
        numbers(3, WIDTH),
    ),
}  # fmt: skip

# --- parameters that are shared, frozen or bare


def _tied_linear() -> nn.Module:
    """One matrix used by two layers."""
    inner, outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    outer.weight = inner.weight
    return nn.Sequential(inner, nn.Tanh(), outer)


def _tied_table(**options: Any) -> Callable[[], nn.Module]:
    """One table for the tokens and for the output."""

    def make() -> nn.Module:
        net = Formula(
            lambda net, x: net.out(torch.tanh(net.inner(net.table(x))).mean(dim=1)),
            table=nn.Embedding(TOKENS, WIDTH), inner=nn.Linear(WIDTH, WIDTH),
            out=nn.Linear(WIDTH, TOKENS, **options),
        )  # fmt: skip
        net.out.weight = net.table.weight
        return net

    return make


def _next_tokens(net: Any, x: Tensor) -> Tensor:
    return torch.tanh(net.inner(net.table(x))) @ net.table.weight.T


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss of a record: the mean over its positions."""
    x, _ = batch
    scores = model(x[:, :-1]).transpose(1, 2)
    return functional.cross_entropy(scores, x[:, 1:], reduction="none").mean(dim=1)


def _reused(net: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.tanh(net.layer(x)) * net.scale
    return x


def _frozen(*names: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = nn.Sequential(
            nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), head(8)
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)
        return model

    return make


def _adapted(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.frozen(x) + net.up(net.down(x))).mean(dim=1))


def adapted() -> nn.Module:
    """A frozen layer with an adapter of low rank (Hu et al. 2021, arXiv:2106.09685)."""
    return Formula(
        _adapted, frozen=nn.Linear(WIDTH, 7).requires_grad_(False),
        down=nn.Linear(WIDTH, 2, bias=False), up=nn.Linear(2, 7, bias=False), head=head(7),
    )  # fmt: skip


def _where(net: Any, x: Tensor) -> Tensor:
    x = net.frozen(x)
    return torch.where(x[:, :1] > 0, net.left(x), net.right(x))


def _latents(net: Any, x: Tensor) -> Tensor:
    """Rows that are learnt, of shape (1, rows, width), go through layers of their own."""
    return net.out(torch.tanh(net.layer(x)[:, None] + net.inner(net.norm(net.rows))).mean(dim=1))


def _prototypes(net: Any, x: Tensor) -> Tensor:
    """Scores are products with rows that are learnt and go through a layer of their own."""
    return net.layer(x) @ net.inner(net.rows).T


def _without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = net.backbone(x)
    return net.head(h)


SHARING = {
    "tied layers": Network(_tied_linear, numbers(WIDTH)),
    "tied layers on a sequence": Network(
        lambda: nn.Sequential(_tied_linear(), nn.Flatten(), nn.Linear(4 * WIDTH, CLASSES)),
        numbers(4, WIDTH),
    ),
    "tied table": Network(_tied_table(), tokens(4)),
    "tied table without bias": Network(_tied_table(bias=False), tokens(5)),
    "tied table by a product": Network(
        lambda: Formula(_next_tokens, table=nn.Embedding(TOKENS, WIDTH),
                        inner=nn.Linear(WIDTH, WIDTH)),
        tokens(5), token_losses,
    ),
    "tied table for each next token": Network(
        lambda: Formula(
            lambda net, x: functional.linear(torch.tanh(net.inner(net.table(x))), net.table.weight),
            table=nn.Embedding(TOKENS, WIDTH), inner=nn.Linear(WIDTH, WIDTH)),
        tokens(6), token_losses,
    ),
    "one layer three times, and a bare parameter": Network(
        lambda: Formula(_reused, layer=nn.Linear(6, 6), scale=nn.Parameter(torch.ones(6))),
        numbers(6),
    ),
    "one layer three times on a sequence": Network(
        lambda: nn.Sequential(
            Formula(_reused, layer=nn.Linear(6, 6), scale=nn.Parameter(torch.ones(6))),
            nn.Flatten(), head(30)),
        numbers(5, 6),
    ),
    "one convolution twice": layered(
        lambda: [c := nn.Conv1d(4, 4, 3, padding=1), nn.Tanh(), c, nn.ReLU(inplace=True)], 4, 6),
    "a parameter that is a number": Network(
        lambda: Formula(lambda net, x: net.head(x) * net.temperature.exp(), head=head(),
                        temperature=nn.Parameter(torch.tensor(0.3))),
        numbers(6),
    ),
    "first layer frozen": Network(_frozen("0.weight", "0.bias"), numbers(WIDTH)),
    "layer between frozen": Network(_frozen("3.weight", "3.bias", "1.weight"), numbers(WIDTH)),
    "weights frozen, biases not": Network(_frozen("0.weight", "3.weight", "5.weight"),
                                          numbers(WIDTH)),
    "biases frozen, weights not": Network(_frozen("0.bias", "1.bias", "3.bias"), numbers(WIDTH)),
    "adapter": Network(adapted, numbers(4, WIDTH)),
    "a branch that some records do not take": Network(
        lambda: Formula(_where, frozen=nn.Linear(6, 6).requires_grad_(False),
                        left=nn.Linear(6, 6), right=nn.Linear(6, 6)),
        numbers(6),
    ),
    "a parameter that nothing uses": Network(
        lambda: Formula(lambda net, x: net.used(x), used=head(), unused=nn.Linear(2, 2)),
        numbers(6),
    ),
    "a branch that is cut off": Network(
        lambda: Formula(lambda net, x: net.head(torch.tanh(net.cut(x)).detach()),
                        cut=nn.Linear(6, 6), head=head()),
        numbers(6),
    ),
    "a backbone without gradients": Network(
        lambda: Formula(_without_gradients, backbone=nn.Linear(6, 6), head=head()), numbers(6)),
    "rows that are learnt and transformed": Network(
        lambda: Formula(_latents, layer=nn.Linear(6, 5), inner=nn.Linear(5, 5),
                        norm=nn.LayerNorm(5), rows=nn.Parameter(torch.randn(1, 4, 5)),
                        out=head(5)),
        numbers(6),
    ),
    "prototypes that are learnt and transformed": Network(
        lambda: Formula(_prototypes, layer=nn.Linear(6, 5), inner=nn.Linear(4, 5),
                        rows=nn.Parameter(torch.randn(CLASSES, 4))),
        numbers(6),
    ),
}  # fmt: skip

# --- records elsewhere than in front


def folded(x: Tensor, *, in_turns: bool) -> Tensor:
    """Return (records, positions, ...) with both in one dimension."""
    return (x.transpose(0, 1) if in_turns else x).flatten(0, 1)


def unfolded(x: Tensor, records: int, *, in_turns: bool) -> Tensor:
    """Undo ``folded``."""
    if in_turns:
        return x.unflatten(0, (-1, records)).transpose(0, 1)
    return x.unflatten(0, (records, -1))


def _on_folded(*, in_turns: bool) -> Callable[[Any, Tensor], Tensor]:
    def formula(net: Any, x: Tensor) -> Tensor:
        h = net.inner(folded(x, in_turns=in_turns))
        return net.head(torch.tanh(unfolded(h, len(x), in_turns=in_turns)).mean(dim=1).flatten(1))

    return formula


def on_folded(
    inner: Callable[[], nn.Module], batch: Callable[[int], Batch], *, in_turns: bool, width: int = 6
) -> Network:
    """Return a model that puts records and positions into one dimension."""
    return Network(
        lambda: Formula(_on_folded(in_turns=in_turns), inner=inner(), head=head(width)), batch
    )


def _frames() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh())


def _frames_as_channels() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.InstanceNorm1d(4, affine=True))


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 6))


PLACES = {
    f"{what}, folded {'in turns' if turns else 'in blocks'}, {length} positions": on_folded(
        inner, numbers(length, *shape), in_turns=turns, width=width
    )
    for what, inner, shape, width in (
        ("linear", lambda: nn.Linear(6, 6), (6,), 6),
        ("linear and layer norm", _normed, (6,), 6),
        ("convolution and group norm", _frames, (2, 6), 16),
        ("convolution and instance norm", _frames_as_channels, (4, 4), 16),
    )
    for turns in (False, True)
    for length in (4, 5)
} | {
    "linear on positions first": Network(
        lambda: Formula(
            lambda net, x: net.head(torch.tanh(net.inner(x.transpose(0, 1))).mean(dim=0)),
            inner=nn.Linear(6, 6), head=head()),
        numbers(4, 6),
    ),
    "linear on positions first, as many as records": Network(
        lambda: Formula(
            lambda net, x: net.head(torch.tanh(net.inner(x.transpose(0, 1))).mean(dim=0)),
            inner=nn.Linear(6, 6), head=head()),
        numbers(5, 6),
    ),
}  # fmt: skip

# --- what has no rule


def _bilinear(net: Any, x: Tensor) -> Tensor:
    return net.head(torch.tanh(net.pair(x, torch.tanh(net.inner(x)))))


def _products(net: Any, x: Tensor) -> Tensor:
    h = torch.tanh(torch.einsum("nd,de->ne", x, net.first))
    return h @ net.second + net.shift


def _by_sign(net: Any, x: Tensor) -> Tensor:
    rows = [row @ (net.left if float(row.sum()) > 0 else net.right) for row in x]
    return torch.stack(rows)


def _normed_weights() -> list[nn.Module]:
    return [parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh()]


FALLBACK = {
    "transposed convolution": layered(
        lambda: [nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Tanh()], 6),
    "bilinear": Network(
        lambda: Formula(_bilinear, inner=nn.Linear(6, 4), pair=nn.Bilinear(6, 4, 5), head=head(5)),
        numbers(6)),
    "prelu": layered(lambda: [nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 8), nn.PReLU(8)], 6),
    "plain products": Network(
        lambda: Formula(_products, first=nn.Parameter(torch.randn(6, 5)),
                        second=nn.Parameter(torch.randn(5, CLASSES)),
                        shift=nn.Parameter(torch.zeros(CLASSES))),
        numbers(6)),
    "normed weights": layered(_normed_weights, 6),
    "addmm": Network(
        lambda: Formula(lambda net, x: torch.addmm(net.shift, x, net.matrix),
                        shift=nn.Parameter(torch.zeros(3)), matrix=nn.Parameter(torch.randn(6, 3))),
        numbers(6)),
    "addmm, scaled": Network(
        lambda: Formula(lambda net, x: torch.addmm(net.shift, x, net.matrix, alpha=2.0),
                        shift=nn.Parameter(torch.zeros(3)), matrix=nn.Parameter(torch.randn(6, 3))),
        numbers(6)),
    "addmm on a sequence": Network(
        lambda: Formula(
            lambda net, x: net.head(torch.tanh(
                torch.addmm(net.shift, x.view(-1, 6), net.matrix).view(len(x), -1, 4)).mean(1)),
            shift=nn.Parameter(torch.zeros(4)), matrix=nn.Parameter(torch.randn(6, 4)),
            head=head(4)),
        numbers(5, 6)),
    "a loop that vmap cannot take": Network(
        lambda: Formula(_by_sign, left=nn.Parameter(torch.randn(6, 3)),
                        right=nn.Parameter(torch.randn(6, 3))),
        numbers(6)),
}  # fmt: skip


# --- batches of other kinds


class Pair(NamedTuple):
    """Two inputs and the labels, as a named tuple."""

    left: Tensor
    right: Tensor
    labels: Tensor


def _two(net: Any, left: Tensor, right: Tensor) -> Tensor:
    return net.head(torch.tanh(net.left(left) + net.right(right)))


def _two_parts() -> nn.Module:
    return Formula(_two, left=nn.Linear(6, 4), right=nn.Linear(5, 4), head=head(4))


def _from_dict(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    scores = model(batch["parts"][0], batch["parts"][1])
    losses = functional.cross_entropy(scores, batch["labels"], reduction="none")
    return losses * losses.new_tensor(batch["scale"])


BATCHES = {
    "a batch as a named tuple": Network(
        _two_parts, lambda n: Pair(torch.randn(n, 6), torch.randn(n, 5), labels(n))
    ),
    "a batch as a list": Network(
        _two_parts, lambda n: [torch.randn(n, 6), torch.randn(n, 5), labels(n)]
    ),
    "a batch as a nested mapping": Network(
        _two_parts,
        lambda n: {
            "parts": [torch.randn(n, 6), torch.randn(n, 5)], "labels": labels(n),
            "scale": [2.0] * n, "comment": None,
        },
        _from_dict,
    ),
}  # fmt: skip

NETWORKS: dict[str, Network] = {
    **LAYERS,
    **IN_PLACE,
    **CONVOLUTIONS,
    **NORMALISATIONS,
    **TABLES,
    **ATTENTION,
    **TRANSFORMERS,
    **RECURRENT,
    **SHARING,
    **PLACES,
    **FALLBACK,
    **BATCHES,
}

VARIANTS = {
    *("linear of the trainer", "cnn of the trainer", "no biases", "linear on a sequence"),
    *("linear on a grid", "wide linear on a sequence"),
    *("linear on a sequence without bias, relu in place", "conv1d without bias"),
    *("conv2d, padded to one side", "conv2d by names of padding", "group norm"),
    *("layer norm", "layer norm without bias", "rms norm", "instance norm 1d"),
    *("embedding with padding", "bags, added", "positions, expanded"),
    *("positions in one row", "positions without records", "positions in one row, viewed"),
    *("positions in one row, expanded", "positions in one row, squeezed"),
    *("self-attention, positions first", "self-attention, as many positions as records"),
    *("self-attention without biases", "causal self-attention", "padded self-attention"),
    *("causal self-attention that shows its weights", "cross-attention"),
    *("cross-attention with rows added", "encoder layer, positions first"),
    *("encoder layer, as many positions as records", "encoder layer without biases"),
    *("lstm", "lstm with projections, no biases", "gru", "gru without biases", "rnn"),
    *("tied table without bias", "tied layers", "one layer three times, and a bare parameter"),
    *("weights frozen, biases not", "addmm, scaled", "a batch as a list"),
    *("linear, folded in blocks, 5 positions", "linear, folded in turns, 4 positions"),
    *(
        f"{what}, folded {how} positions"
        for what in ("linear and layer norm", "convolution and group norm")
        for how in ("in blocks, 4", "in turns, 5")
    ),
    "convolution and instance norm, folded in blocks, 5 positions",
    "convolution and instance norm, folded in turns, 4 positions",
    "linear on positions first",
}
"""Networks whose operations others have, in other shapes: see ``with_variants_slow``."""


def with_variants_slow(names: Iterable[str], *values: object) -> list[Any]:
    """Return networks, and other values, as parameters of a test; variants as slow ones.

    For properties that need the sums to be right, which is tested with all networks.
    """
    return [
        pytest.param(name, *values, marks=pytest.mark.slow if name in VARIANTS else ())
        for name in names
    ]
