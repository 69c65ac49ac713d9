"""Networks put together at random from all layers: norms and sums are those of the loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dpaudit.trainer.engine import Engine, Flat
from tests.trainer.engine.networks import (
    CLASSES,
    cross_entropies,
    folded,
    labels,
    unfolded,
    with_floats,
)
from tests.trainer.engine.oracle import per_record, relative_gap

# Of each of six kinds.
in_passing = settings(max_examples=5, deadline=None, derandomize=True)
at_length = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Shape = tuple[int, ...]
Step = tuple[nn.Module, Shape]
"""A layer, and the shape of a record after it."""

small = st.integers(1, 6)


class Plus(nn.Module):
    """What goes in, plus what a layer makes of it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Places(nn.Module):
    """Runs a layer with records elsewhere than in front."""

    def __init__(self, layer: nn.Module, place: str) -> None:
        super().__init__()
        self.layer, self._place = layer, place

    def forward(self, x: Tensor) -> Tensor:
        if self._place == "second":
            return self.layer(x.transpose(0, 1)).transpose(0, 1)
        turns = self._place == "in turns"
        return unfolded(self.layer(folded(x, in_turns=turns)), len(x), in_turns=turns)


class First(nn.Module):
    """The outputs of a layer that returns more than these."""

    def __init__(self, layer: nn.Module, *, attends: bool = False) -> None:
        super().__init__()
        self.layer, self._attends = layer, attends

    def forward(self, x: Tensor) -> Tensor:
        if self._attends:
            return self.layer(x, x, x)[0]
        return self.layer(x)[0]


class Positions(nn.Module):
    """Adds a row of a table to each position, in one of the usual ways."""

    def __init__(self, length: int, width: int, way: str) -> None:
        super().__init__()
        self.table, self._way = nn.Embedding(length, width), way

    def forward(self, x: Tensor) -> Tensor:
        index = torch.arange(x.shape[1])
        if self._way == "in one row":
            index = index[None]
        elif self._way == "expanded":
            index = index.expand(len(x), -1)
        return x + self.table(index)


class Scaled(nn.Module):
    """Divides by the root mean square, scales and shifts, as networks of language do."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(shape))
        self.shift = nn.Parameter(torch.randn(shape[-1:]))

    def forward(self, x: Tensor) -> Tensor:
        size = x.square().mean(dim=-1, keepdim=True)
        return (1.0 + self.scale) * (x * torch.rsqrt(size + 0.1)) - self.shift


class Token(nn.Module):
    """Puts a row that is learned before the others, and adds one to each position."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(length + 3, width))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return h + self.positions[: h.shape[1]]


class Product(nn.Module):
    """Multiplies by a matrix, in one of the usual ways."""

    def __init__(self, width: int, out: int, way: str) -> None:
        super().__init__()
        shape = (out, width) if way in {"transposed", "einsum"} else (width, out)
        self.matrix, self._way = nn.Parameter(torch.randn(shape)), way

    def forward(self, x: Tensor) -> Tensor:
        match self._way:
            case "transposed":
                return x @ self.matrix.T
            case "einsum":
                return torch.einsum("oi,...i->...o", self.matrix, x)
            case "left":
                return (self.matrix.T @ x.transpose(-1, -2)).transpose(-1, -2)
            case _:
                return x @ self.matrix


class Experts(nn.Module):
    """Rows choose one of two layers, or none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(2, width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        choice, y = (rows[:, 0] > 0).long() + (rows[:, -1] > 0.5).long(), rows.clone()
        for number in range(2):
            mask = choice == number
            y[mask] = torch.tanh(rows[mask] @ self.weights[number])
        return y.view_as(x)


def activation(draw: st.DrawFn) -> nn.Module:
    return draw(st.sampled_from([nn.Tanh, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ELU, nn.PReLU]))()


def in_place(draw: st.DrawFn, layer: nn.Module) -> nn.Module:
    """Return a layer whose output nobody keeps, and perhaps a change of it in place."""
    return nn.Sequential(layer, nn.ReLU(inplace=True)) if draw(st.booleans()) else layer


def groups_of(draw: st.DrawFn, channels: int) -> int:
    return draw(st.sampled_from([n for n in range(1, channels + 1) if channels % n == 0]))


# --- records that are vectors


def linear(draw: st.DrawFn, shape: Shape) -> Step:
    width = draw(st.integers(1, 12))
    layer = nn.Linear(shape[-1], width, bias=draw(st.booleans()))
    return in_place(draw, layer), (*shape[:-1], width)


def residual(draw: st.DrawFn, shape: Shape) -> Step:
    inner = draw(st.integers(1, 8))
    return Plus(nn.Sequential(
        nn.Linear(shape[-1], inner), activation(draw), nn.Linear(inner, shape[-1])
    )), shape  # fmt: skip


def normed(draw: st.DrawFn, shape: Shape) -> Step:
    kept = draw(st.integers(1, len(shape)))
    if draw(st.booleans()):
        return nn.LayerNorm(shape[-kept:], eps=0.1, bias=draw(st.booleans())), shape
    return nn.RMSNorm(shape[-kept:], eps=0.1), shape


def grouped(draw: st.DrawFn, shape: Shape) -> Step:
    groups = groups_of(draw, shape[0])
    if torch.Size(shape).numel() == groups:  # torch refuses groups of one number
        return activated(draw, shape)
    return nn.GroupNorm(groups, shape[0], eps=0.1), shape


def activated(draw: st.DrawFn, shape: Shape) -> Step:
    return activation(draw), shape


def scaled(draw: st.DrawFn, shape: Shape) -> Step:
    return Scaled(*shape[-draw(st.integers(1, len(shape))) :]), shape


def product(draw: st.DrawFn, shape: Shape) -> Step:
    ways = ["right", "transposed", "einsum"] + ["left"] * (len(shape) > 1)
    out = draw(st.integers(1, 6))
    return Product(shape[-1], out, draw(st.sampled_from(ways))), (*shape[:-1], out)


def weight_normed(draw: st.DrawFn, shape: Shape) -> Step:
    out = draw(st.integers(1, 6))
    return parametrizations.weight_norm(nn.Linear(shape[-1], out)), (*shape[:-1], out)


# --- records that are sequences


def token(draw: st.DrawFn, shape: Shape) -> Step:
    return Token(*shape), (shape[0] + 1, shape[1])


def experts(draw: st.DrawFn, shape: Shape) -> Step:
    return Experts(shape[-1]), shape


def elsewhere(draw: st.DrawFn, shape: Shape) -> Step:
    layer, after = draw(st.sampled_from([linear, residual]))(draw, shape)
    return Places(layer, draw(st.sampled_from(["second", "in blocks", "in turns"]))), after


def attention(draw: st.DrawFn, shape: Shape) -> Step:
    layer = nn.MultiheadAttention(
        shape[1], groups_of(draw, shape[1]), batch_first=True, bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()), add_zero_attn=draw(st.booleans()),
    )  # fmt: skip
    return First(layer, attends=True), shape


def encoder(draw: st.DrawFn, shape: Shape) -> Step:
    return nn.TransformerEncoderLayer(
        shape[1], groups_of(draw, shape[1]), draw(small), dropout=0.0, batch_first=True,
        norm_first=draw(st.booleans()), layer_norm_eps=0.1, bias=draw(st.booleans()),
    ), shape  # fmt: skip


def recurrent(draw: st.DrawFn, shape: Shape) -> Step:
    kind = draw(st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]))
    hidden, both_ways = draw(st.integers(2, 6)), draw(st.booleans())
    options = {"proj_size": draw(st.integers(0, hidden - 1))} if kind is nn.LSTM else {}
    layer = kind(
        shape[1], hidden, draw(st.integers(1, 2)), bias=draw(st.booleans()), batch_first=True,
        bidirectional=both_ways, **options,
    )  # fmt: skip
    width = options.get("proj_size", 0) or hidden
    return First(layer), (shape[0], width * (1 + both_ways))


def positions(draw: st.DrawFn, shape: Shape) -> Step:
    way = draw(st.sampled_from(["in one row", "without records", "expanded"]))
    return Positions(*shape, way), shape


# --- records with channels and one to three dimensions of space


def convolution(draw: st.DrawFn, shape: Shape) -> Step:
    channels, *space = shape
    groups = groups_of(draw, channels)
    kind = [nn.Conv1d, nn.Conv2d, nn.Conv3d][len(space) - 1]
    kernel = tuple(draw(st.integers(1, min(3, size))) for size in space)
    bias, out = draw(st.booleans()), groups * draw(st.integers(1, 3))
    if draw(st.booleans()):
        mode = draw(st.sampled_from(["zeros", "circular"]))
        layer = kind(
            channels, out, kernel, padding="same", groups=groups, bias=bias, padding_mode=mode
        )
        return in_place(draw, layer), (out, *space)
    stride = tuple(draw(st.integers(1, 2)) for _ in space)
    padding = tuple(draw(st.integers(0, 1)) for _ in space)
    layer = kind(channels, out, kernel, stride, padding, groups=groups, bias=bias)
    sizes = zip(space, kernel, stride, padding, strict=True)
    return in_place(draw, layer), (out, *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))


def instance(draw: st.DrawFn, shape: Shape) -> Step:
    kind = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][len(shape) - 2]
    if torch.Size(shape[1:]).numel() < 2:
        return activated(draw, shape)
    return kind(shape[0], affine=True, eps=0.1), shape


KINDS: dict[str, list[Callable[[st.DrawFn, Shape], Step]]] = {
    "vectors": [linear, residual, normed, grouped, activated, scaled, product, weight_normed],
    "sequences": [
        linear, residual, normed, elsewhere, attention, encoder, recurrent, positions, scaled,
        product, weight_normed, token, experts,
    ],
    "tokens": [
        linear, normed, elsewhere, attention, encoder, recurrent, positions, scaled, product, token,
    ],
    "signals": [convolution, grouped, normed, instance, activated, scaled, product],
    "images": [convolution, grouped, normed, instance, activated, scaled],
    "volumes": [convolution, grouped, instance, activated, scaled],
}  # fmt: skip
DIMENSIONS = {"vectors": 1, "sequences": 2, "tokens": 2, "signals": 2, "images": 3, "volumes": 4}


@st.composite
def networks(draw: st.DrawFn, kind: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return a network and a batch for it."""
    torch.manual_seed(draw(st.integers(0, 2**32)))
    records, tokens = draw(st.integers(2, 6)), 7
    shape: Shape = tuple(draw(small) for _ in range(DIMENSIONS[kind]))
    batch = torch.randn(records, *shape)
    layers: list[nn.Module] = []
    if kind == "tokens":
        batch = torch.randint(0, tokens, (records, shape[0]))
        padding = draw(st.sampled_from([None, 0, -1]))
        layers.append(nn.Embedding(tokens, shape[1], padding_idx=padding))
    for _ in range(draw(st.integers(1, 4))):
        layer, shape = draw(st.sampled_from(KINDS[kind]))(draw, shape)
        layers.append(layer)
        if draw(st.booleans()):
            layers.append(activation(draw))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(torch.Size(shape).numel(), CLASSES))
    with torch.no_grad():
        # Biases that begin at zero let a norm's output be zero but for rounding: on which side
        # of an activation's kink it then lies is chance, and so is its gradient.
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if draw(st.booleans()):
        frozen = draw(st.sampled_from(list(network.parameters())))
        frozen.requires_grad_(False)
    return network, (batch, labels(records))


def holds_for(network: nn.Module, batch: tuple[Tensor, Tensor], chunk: int | None) -> None:
    """In double precision too, where rounding hides nothing.

    A gradient may be zero but for rounding, as behind a norm over one feature: hence the
    absolute slack, far below any gradient that these networks have.
    """
    engine = Engine(network, cross_entropies)
    for kind, slack in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        network.to(kind)
        own = with_floats(batch, lambda tensor, kind=kind: tensor.to(kind))
        gradients = per_record(network, cross_entropies, own)
        for clipping in (Flat(float(gradients.norms.median()) or 1.0), Flat(1e6)):
            got, expected = (
                engine.clipped_sum(own, clipping, chunk),
                gradients.clipped_sum(clipping),
            )
            whole = math.hypot(*(float(part.norm()) for part in expected.values()))
            assert relative_gap(got.sums, expected) * (whole or 1.0) <= 1e-5 * whole + slack
            assert torch.allclose(got.norms, gradients.norms, rtol=1e-5, atol=slack)


chunks = st.sampled_from([None, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_network_agrees_with_the_loop(kind: str) -> None:
    @in_passing
    @given(networks(kind), chunks)
    def law(one: tuple[nn.Module, tuple[Tensor, Tensor]], chunk: int | None) -> None:
        holds_for(*one, chunk)

    law()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_random_networks_agree_with_the_loop(kind: str) -> None:
    @at_length
    @given(networks(kind), chunks)
    def law(one: tuple[nn.Module, tuple[Tensor, Tensor]], chunk: int | None) -> None:
        holds_for(*one, chunk)

    law()


@pytest.mark.parametrize("first", ["in one row", "without records", "expanded"])
@pytest.mark.parametrize("second", ["in one row", "without records", "expanded"])
def test_tables_of_one_row_that_a_look_takes_for_records_break_nothing(
    first: str, second: str
) -> None:
    """Found by the random networks: repeated for every record, the row was another position."""
    network = nn.Sequential(
        nn.Embedding(7, 1), Positions(1, 1, first), Positions(1, 1, second), nn.Flatten(),
        nn.Linear(1, CLASSES),
    )  # fmt: skip
    holds_for(network, (torch.tensor([[1], [2]]), torch.tensor([2, 0])), None)
