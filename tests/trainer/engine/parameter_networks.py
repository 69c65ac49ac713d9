"""Small models whose parameters meet activations elsewhere than in layers of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.trainer.engine.networks import (
    TOKENS,
    WIDTH,
    Formula,
    Network,
    head,
    labels,
    layered,
    numbers,
    tokens,
)

LENGTH = 4


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def with_parameters(formula: Callable[..., Tensor], *shape: int, **parts: Any) -> Network:
    """Return a model that pools what a formula makes of a record, then a linear layer.

    Parts are shapes of parameters, or functions that make modules.
    """

    def made(part: Any) -> nn.Module | nn.Parameter:
        return drawn(*part) if isinstance(part, tuple) else part()

    def pooled(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.tanh(formula(net, net.inner(x))).flatten(1))

    def make() -> nn.Module:
        own = {name: made(part) for name, part in parts.items()}
        model = Formula(pooled, inner=nn.Linear(shape[-1], shape[-1]), head=nn.LazyLinear(3), **own)
        with torch.no_grad():
            model(torch.zeros(2, *shape))
        return model

    return Network(make, numbers(*shape))


def _rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-2)


def _in_place(net: Any, x: Tensor) -> Tensor:
    h = x + 0.0
    h.mul_(net.w)
    h += net.b
    return h


def _set_rows(net: Any, x: Tensor) -> Tensor:
    h = x.clone()
    h[:, 0] = net.w
    return h


ELEMENTWISE = {
    "rms norm with casts": with_parameters(
        lambda net, x: net.w * _rms(x.float()).to(x.dtype), LENGTH, WIDTH, w=(WIDTH,)),
    "rms norm with one added": with_parameters(
        lambda net, x: _rms(x) * (1.0 + net.w.to(x.dtype)), LENGTH, WIDTH, w=(WIDTH,)),
    "rms norm of vectors": with_parameters(lambda net, x: net.w * _rms(x), WIDTH, w=(WIDTH,)),
    "rms norm of as many positions as records": with_parameters(
        lambda net, x: net.w * _rms(x), 5, WIDTH, w=(WIDTH,)),
    "scale of channels": with_parameters(
        lambda net, x: x * net.w.reshape(1, -1, 1, 1), 3, 2, WIDTH, w=(3,)),
    "gates": with_parameters(lambda net, x: x * torch.sigmoid(net.w) + x.square() * net.g[:, None],
                             LENGTH, WIDTH, w=(WIDTH,), g=(LENGTH,)),
    "temperature": with_parameters(lambda net, x: x / net.t.exp() - net.t, WIDTH, t=()),
    "temperature of one number": with_parameters(lambda net, x: x / net.t.exp(), WIDTH, t=(1,)),
    "parameter first": with_parameters(
        lambda net, x: (net.w - x) / (2.0 - net.w.tanh()) + net.w / (1.0 + x.square()),
        LENGTH, WIDTH, w=(WIDTH,)),
    "powers": with_parameters(lambda net, x: (1.1 + x.tanh()) ** net.w, WIDTH, w=(WIDTH,)),
    "where": with_parameters(
        lambda net, x: torch.where(x > 0, net.w, x) + x.masked_fill(x > 0.5, net.t),
        LENGTH, WIDTH, w=(WIDTH,), t=()),
    "fused products": with_parameters(
        lambda net, x: torch.lerp(torch.addcmul(x, net.w, x, value=0.5), net.v, 0.3),
        LENGTH, WIDTH, w=(WIDTH,), v=(1, WIDTH)),
    "bounds": with_parameters(
        lambda net, x: torch.maximum(x.clamp(min=net.w), net.v), LENGTH, WIDTH, w=(WIDTH,),
        v=(LENGTH, 1)),
    "in place": with_parameters(_in_place, LENGTH, WIDTH, w=(WIDTH,), b=(WIDTH,)),
    "rows that are set": with_parameters(_set_rows, LENGTH, WIDTH, w=(WIDTH,)),
    "positions first": with_parameters(
        lambda net, x: (net.w * x.transpose(0, 1) + net.v).transpose(0, 1), LENGTH, WIDTH,
        w=(WIDTH,), v=(LENGTH, 1, WIDTH)),
    "positions and records in one dimension": with_parameters(
        lambda net, x: (net.w * x.flatten(0, 1)).view_as(x), LENGTH, WIDTH, w=(WIDTH,)),
    "records and positions in turns": with_parameters(
        lambda net, x: (net.w * x.transpose(0, 1).flatten(0, 1)).view(LENGTH, len(x), -1)
        .transpose(0, 1), LENGTH, WIDTH, w=(WIDTH,)),
    "one scale three times": with_parameters(
        lambda net, x: net.w * torch.tanh(net.w * x[:, 0]) + net.w[:1] * x[:, 1], LENGTH, WIDTH,
        w=(WIDTH,)),
    "prelu": layered(lambda: [nn.Linear(6, 8), nn.PReLU(), nn.Unflatten(1, (4, 2)), nn.PReLU(4)],
                     6),
}  # fmt: skip

# --- tokens and tables


def _class_token(net: Any, x: Tensor) -> Tensor:
    return torch.cat([net.token.expand(len(x), -1, -1), x], dim=1) + net.positions


def _two_tokens(net: Any, x: Tensor) -> Tensor:
    one, two = net.token.repeat(len(x), 1, 1), net.other.expand_as(x[:, :1])
    return torch.cat([one, two, x], dim=1)


def _scores(x: Tensor) -> Tensor:
    return x[:, None] @ x[:, None].mT


def _relative(length: int) -> Tensor:
    return (torch.arange(length)[:, None] - torch.arange(length)) % 3


def _bias(net: Any, x: Tensor) -> Tensor:
    return net.table[_relative(x.shape[1])].permute(2, 0, 1)[None]


def _relative_bias(net: Any, x: Tensor) -> Tensor:
    hidden = torch.where(x[:, None, None, :, 0] > 0, 0.0, -1.0)
    return torch.softmax(_scores(x) + (_bias(net, x) + hidden), dim=-1) @ x[:, None]


def _fused_attention(net: Any, x: Tensor) -> Tensor:
    q = x[:, None].expand(-1, 2, -1, -1)
    return functional.scaled_dot_product_attention(q, q, q, attn_mask=_bias(net, x))


def _windows(net: Any, x: Tensor) -> Tensor:
    parts = x.unflatten(1, (2, 2)).flatten(0, 1)
    shift = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(len(x), 1)[:, None, :, None]
    mask = _bias(net, parts) + shift
    q = parts[:, None].expand(-1, 2, -1, -1)
    return functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).view(len(x), -1)


def _latents(net: Any, x: Tensor) -> Tensor:
    queries = net.norm(net.rows).expand(len(x), -1, -1)
    return torch.softmax(queries @ x.mT, dim=-1) @ x


def _learned_rows(net: Any, x: Tensor) -> Tensor:
    return x + net.layer(net.rows)[torch.tensor([0, 1, 0, 2])]


TABLES = {
    "class token": with_parameters(_class_token, LENGTH, WIDTH, token=(1, 1, WIDTH),
                                   positions=(1, LENGTH + 1, WIDTH)),
    "class token, as many positions as records": with_parameters(
        _class_token, 5, WIDTH, token=(1, 1, WIDTH), positions=(1, 6, WIDTH)),
    "two tokens": with_parameters(_two_tokens, LENGTH, WIDTH, token=(1, 1, WIDTH),
                                  other=(1, 1, WIDTH)),
    "token that replaces masked rows": with_parameters(
        lambda net, x: torch.where((x[..., :1] > 0), x, net.token.expand(len(x), LENGTH, -1)),
        LENGTH, WIDTH, token=(1, 1, WIDTH)),
    "first rows of a table": with_parameters(
        lambda net, x: x + net.table[: x.shape[1]], LENGTH, WIDTH, table=(9, WIDTH)),
    "rows of a table by number": with_parameters(
        lambda net, x: x + net.table[torch.arange(x.shape[1]) + 2], LENGTH, WIDTH,
        table=(9, WIDTH)),
    "rows of a table by number, one of them twice": with_parameters(
        lambda net, x: x + net.table[torch.tensor([3, -6, 0, 1])], LENGTH, WIDTH,
        table=(9, WIDTH)),
    "positions without records": with_parameters(
        lambda net, x: x + net.table(torch.arange(x.shape[1])), LENGTH, WIDTH,
        table=lambda: nn.Embedding(9, WIDTH)),
    "positions without records, as many as records": with_parameters(
        lambda net, x: x + net.table(torch.arange(x.shape[1])), 5, WIDTH,
        table=lambda: nn.Embedding(9, WIDTH)),
    "token types of zero": with_parameters(
        lambda net, x: x + net.table(torch.zeros(x.shape[:2], dtype=torch.long)), LENGTH, WIDTH,
        table=lambda: nn.Embedding(2, WIDTH)),
    "relative positions": with_parameters(_relative_bias, LENGTH, WIDTH, table=(3, 2)),
    "relative positions in fused attention": with_parameters(
        _fused_attention, LENGTH, WIDTH, table=(3, 2)),
    "relative positions in windows": with_parameters(_windows, LENGTH, WIDTH, table=(3, 2)),
    "latent rows": with_parameters(_latents, LENGTH, WIDTH, rows=(1, 3, WIDTH),
                                   norm=lambda: nn.LayerNorm(WIDTH)),
    "rows through a layer": with_parameters(
        _learned_rows, LENGTH, WIDTH, rows=(3, 5), layer=lambda: nn.Linear(5, WIDTH)),
}  # fmt: skip

# --- products


PRODUCTS = {
    name: with_parameters(formula, *shape, **parts)
    for name, formula, shape, parts in (
        ("matrix on the right", lambda net, x: x @ net.w, (LENGTH, WIDTH), {"w": (WIDTH, 5)}),
        ("transposed matrix", lambda net, x: x @ net.w.T, (WIDTH,), {"w": (5, WIDTH)}),
        ("matrix on the left", lambda net, x: net.w @ x, (LENGTH, WIDTH), {"w": (5, LENGTH)}),
        ("matrix on the left of transposed records",
         lambda net, x: net.w @ x.transpose(1, 2), (LENGTH, WIDTH), {"w": (5, WIDTH)}),
        ("vector on the right", lambda net, x: x @ net.w, (LENGTH, WIDTH), {"w": (WIDTH,)}),
        ("vector on the left", lambda net, x: net.w @ x, (LENGTH, WIDTH), {"w": (LENGTH,)}),
        ("matrix per head", lambda net, x: x[:, None] @ net.w, (LENGTH, WIDTH),
         {"w": (2, WIDTH, 3)}),
        ("matrix per head, one head given", lambda net, x: x.view(len(x), 2, 2, 6) @ net.w,
         (LENGTH, WIDTH), {"w": (1, WIDTH, 3)}),
        ("bmm by position", lambda net, x: torch.bmm(x.transpose(0, 1), net.w).transpose(0, 1),
         (LENGTH, WIDTH), {"w": (LENGTH, WIDTH, 3)}),
        ("einsum of a linear layer", lambda net, x: torch.einsum("nd,de->ne", x, net.w),
         (WIDTH,), {"w": (WIDTH, 5)}),
        ("einsum of heads", lambda net, x: torch.einsum("ntd,hdk->nhtk", x, net.w),
         (LENGTH, WIDTH), {"w": (2, WIDTH, 3)}),
        ("einsum of heads, back", lambda net, x: torch.einsum(
            "nhtk,hkd->ntd", x.view(len(x), LENGTH, 2, 3).transpose(1, 2), net.w),
         (LENGTH, WIDTH), {"w": (2, 3, 5)}),
        ("einsum with dots", lambda net, x: torch.einsum("oi,...i->...o", net.w, x),
         (LENGTH, WIDTH), {"w": (5, WIDTH)}),
        ("einsum of tokens", lambda net, x: torch.einsum("ntd,ts->nsd", x, net.w),
         (LENGTH, WIDTH), {"w": (LENGTH, 3)}),
        ("einsum to a number", lambda net, x: torch.einsum("ntd,td->n", x, net.w)[:, None],
         (LENGTH, WIDTH), {"w": (LENGTH, WIDTH)}),
        ("einsum with records second", lambda net, x: torch.einsum(
            "tnd,de->nte", x.transpose(0, 1), net.w), (LENGTH, WIDTH), {"w": (WIDTH, 3)}),
        ("einsum of a scale", lambda net, x: torch.einsum("ntd,d->ntd", x, net.w),
         (LENGTH, WIDTH), {"w": (WIDTH,)}),
        ("product with rows in one dimension", lambda net, x: (x.flatten(0, 1) @ net.w).view(
            len(x), -1), (LENGTH, WIDTH), {"w": (WIDTH, 3)}),
        ("bilinear", lambda net, x: net.pair(x, x.tanh()), (LENGTH, WIDTH),
         {"pair": lambda: nn.Bilinear(WIDTH, WIDTH, 3)}),
        ("addmm, scaled", lambda net, x: torch.addmm(net.b, x, net.w, beta=0.5, alpha=2.0),
         (WIDTH,), {"w": (WIDTH, 5), "b": (5,)}),
        ("addmm, one row", lambda net, x: torch.addmm(net.b, x, net.w), (WIDTH,),
         {"w": (WIDTH, 5), "b": (1, 5)}),
    )
}  # fmt: skip

# --- functions of parameters alone


def _standardised(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    w = (w - w.mean(dim=(1, 2), keepdim=True)) / (w.std(dim=(1, 2), keepdim=True) + 0.1)
    return functional.conv1d(x, w * net.gain, net.conv.bias)


def _standardised_by_norm(net: Any, x: Tensor) -> Tensor:
    w = functional.batch_norm(net.conv.weight.view(1, 5, -1), None, None, net.gain, training=True)
    return functional.conv1d(x, w.view_as(net.conv.weight), net.conv.bias)


def _low_rank(net: Any, x: Tensor) -> Tensor:
    """Magnitude and direction with a low-rank change (Liu et al. 2024, arXiv:2402.09353)."""
    whole = net.base.weight + net.up @ net.down
    scale = net.m / torch.linalg.vector_norm(whole, dim=1).detach()
    return functional.linear(x, net.base.weight) * (scale - 1) + scale * (x @ net.down.T @ net.up.T)


def _decay(net: Any, x: Tensor) -> Tensor:
    step = functional.softplus(x @ net.w + net.b)
    a = -torch.exp(net.a_log.float())
    return (torch.exp(step[..., None] * a) * x[..., None]).sum(dim=1)


def _halves(net: Any, x: Tensor) -> Tensor:
    one, two = net.w.chunk(2)
    return functional.linear(x, one) * functional.linear(x, two, net.b[:3])


def _joined(net: Any, x: Tensor) -> Tensor:
    return functional.linear(x, torch.cat([net.w, net.v]), torch.stack([net.b, net.b]).view(-1))


def _changed_later(net: Any, x: Tensor) -> Tensor:
    scale = net.w * 2.0
    y = x + scale
    scale.mul_(3.0)
    return y + x.square() * scale


def _filled(net: Any, x: Tensor) -> Tensor:
    matrix = net.w.new_zeros(WIDTH, WIDTH)
    matrix[:3] = net.w
    return x @ matrix


def _without(net: Any, x: Tensor) -> Tensor:
    return x * net.w.detach() * net.w + x @ torch.diag(net.w.data)


def _normed_without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        largest = torch.linalg.matrix_norm(net.w, 2) + net.w.sum(dim=0).norm()
    return x @ (net.w / largest)


def _through_frozen(net: Any, x: Tensor) -> Tensor:
    return x @ functional.linear(net.w, net.frozen.weight)


def _tied(net: Any, x: Tensor) -> Tensor:
    return torch.tanh(x @ net.w) @ net.w.T + functional.linear(torch.tanh(functional.linear(
        x, net.w.T)), net.w)  # fmt: skip


FUNCTIONS = {
    "weight norm": layered(
        lambda: [parametrizations.weight_norm(nn.Linear(6, 8)), nn.Tanh()], 4, 6),
    "spectral norm": layered(
        lambda: [parametrizations.spectral_norm(nn.Linear(6, 8)).eval(), nn.Tanh()], 4, 6),
    "orthogonal": layered(
        lambda: [parametrizations.orthogonal(nn.Linear(6, 5)), nn.Tanh()], 4, 6),
    "weight norm of a convolution": layered(
        lambda: [parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=2)), nn.Tanh()], 4, 6),
    "standardised convolution": with_parameters(
        _standardised, LENGTH, WIDTH, conv=lambda: nn.Conv1d(LENGTH, 5, 3), gain=(5, 1, 1)),
    "convolution standardised by batch norm": with_parameters(
        _standardised_by_norm, LENGTH, WIDTH, conv=lambda: nn.Conv1d(LENGTH, 5, 3), gain=(5,)),
    "magnitude and direction": with_parameters(
        _low_rank, LENGTH, WIDTH, base=lambda: nn.Linear(WIDTH, 5, bias=False), m=(5,),
        up=(5, 2), down=(2, WIDTH)),
    "decays": with_parameters(_decay, LENGTH, WIDTH, w=(WIDTH, WIDTH), b=(WIDTH,),
                              a_log=(WIDTH, 2)),
    "halves of a matrix": with_parameters(_halves, LENGTH, WIDTH, w=(6, WIDTH), b=(4,)),
    "matrices joined": with_parameters(
        _joined, LENGTH, WIDTH, w=(3, WIDTH), v=(1, WIDTH), b=(2,)),
    "matrix put into zeros": with_parameters(_filled, LENGTH, WIDTH, w=(3, WIDTH)),
    "changed in place after its use": with_parameters(_changed_later, WIDTH, w=(WIDTH,)),
    "normed without gradient": with_parameters(
        _normed_without_gradient, LENGTH, WIDTH, w=(WIDTH, 5)),
    "through a frozen layer": with_parameters(
        _through_frozen, LENGTH, WIDTH, w=(WIDTH, 4),
        frozen=lambda: nn.Linear(4, 5).requires_grad_(False)),
    "partly detached": with_parameters(_without, WIDTH, w=(WIDTH,)),
    "one matrix both ways": with_parameters(_tied, LENGTH, WIDTH, w=(WIDTH, 5)),
    "table tied by a product": Network(
        lambda: Formula(lambda net, x: torch.tanh(net.table(x)).mean(1) @ net.table.weight.T[:, :3],
                        table=nn.Embedding(TOKENS, WIDTH)), tokens(LENGTH)),
    "projections of two widths": Network(
        lambda: Formula(
            lambda net, x: net.head(net.attention(x[:, :2], x[..., :4], x[..., :5])[0].flatten(1)),
            attention=nn.MultiheadAttention(WIDTH, 2, kdim=4, vdim=5, batch_first=True,
                                            add_bias_kv=True),
            head=head(2 * WIDTH)), numbers(LENGTH, WIDTH)),
    "rows of a table by record": Network(
        lambda: Formula(lambda net, x, k: net.head(x * net.table[k]),
                        table=drawn(7, WIDTH), head=head()),
        lambda n: (torch.randn(n, WIDTH), torch.randint(0, 7, (n,)), labels(n))),
    "frozen weight with a norm that is trained": layered(
        lambda: [_only_norm(parametrizations.weight_norm(nn.Linear(6, 8))), nn.Tanh()], 4, 6),
}  # fmt: skip


def _only_norm(layer: nn.Module) -> nn.Module:
    layer.parametrizations.weight.original1.requires_grad_(False)  # type: ignore[union-attr]
    return layer


# --- rows that records choose


def _experts(net: Any, x: Tensor) -> Tensor:
    """A token goes to the expert that its first entries choose, if it chooses one."""
    flat = x.flatten(0, 1)
    choice, y = flat[:, :3].argmax(dim=1), torch.zeros_like(flat)
    for number in range(2):
        (rows,) = torch.where(choice == number)
        hidden = functional.silu(functional.linear(flat[rows], net.up[number]))
        y.index_add_(0, rows, functional.linear(hidden, net.down[number]) * net.scale)
    return y.view_as(x)


def _hit_experts(net: Any, x: Tensor) -> Tensor:
    """An expert that no token chooses does not run."""
    flat = x.flatten(0, 1)
    choice, y = (flat[:, 0] > 1.0).long() + (flat[:, 0] > 0.0).long(), torch.zeros_like(flat)
    for number in choice.unique():
        rows = (choice == number).nonzero().squeeze(1)
        y[rows] = torch.tanh(flat[rows] @ net.w[number]) + net.b[number]
    return y.view_as(x)


def _masked_rows(net: Any, x: Tensor) -> Tensor:
    mask = x[..., 0] > 0
    y = x.clone()
    y[mask] = net.layer(net.norm(x[mask])) * net.gain
    return y


def _groups(net: Any, x: Tensor) -> Tensor:
    """Rows are sorted by the group that they choose, and go through its matrix (Mixtral)."""
    flat = x.flatten(0, 1)
    choice, order = torch.sort((flat[:, 0] > 0).long() + (flat[:, 1] > 0).long())
    ends = torch.bincount(choice, minlength=3).cumsum(0).to(torch.int32)
    hidden = functional.grouped_mm(flat[order], net.w.transpose(1, 2), offs=ends)
    hidden = hidden + net.b[choice]
    return torch.zeros_like(flat).index_add(0, order, hidden).view_as(x)


def _chosen_places(net: Any, x: Tensor) -> Tensor:
    place = x[..., 0].argmax(dim=1)
    return net.layer(x[torch.arange(len(x)), place])


def _chosen_in_turns(net: Any, x: Tensor) -> Tensor:
    flat = x.transpose(0, 1).flatten(0, 1)
    rows = (flat[:, 0] > 0).nonzero().squeeze(1)
    y = flat.index_copy(0, rows, net.layer(flat.index_select(0, rows)))
    return y.view(LENGTH, len(x), -1).transpose(0, 1)


ROWS = {
    "experts": with_parameters(_experts, LENGTH, WIDTH, up=(2, 8, WIDTH), down=(2, WIDTH, 8),
                               scale=(WIDTH,)),
    "experts that are chosen": with_parameters(_hit_experts, LENGTH, WIDTH, w=(3, WIDTH, WIDTH),
                                               b=(3, WIDTH)),
    "masked rows": with_parameters(_masked_rows, LENGTH, WIDTH, gain=(WIDTH,),
                                   layer=lambda: nn.Linear(WIDTH, WIDTH),
                                   norm=lambda: nn.LayerNorm(WIDTH)),
    "rows by group": with_parameters(_groups, LENGTH, 8, w=(3, 8, 8), b=(3, 8)),
    "chosen places": with_parameters(_chosen_places, LENGTH, WIDTH,
                                     layer=lambda: nn.Linear(WIDTH, 5)),
    "chosen rows in turns": with_parameters(_chosen_in_turns, LENGTH, WIDTH,
                                            layer=lambda: nn.Linear(WIDTH, WIDTH)),
}  # fmt: skip

# --- packed sequences


def _packed(kind: type[nn.RNNBase], *, last: bool = False, **options: Any) -> Network:
    """Return a recurrent layer on packed sequences; its last state or its outputs are read."""
    first = options.get("batch_first", False)

    def formula(net: Any, x: Tensor, lengths: Tensor) -> Tensor:
        rows = x if first else x.transpose(0, 1)
        packed = nn.utils.rnn.pack_padded_sequence(
            rows, lengths.cpu(), batch_first=first, enforce_sorted=False)  # fmt: skip
        outputs, state = net.layer(packed)
        if last:
            state = state[0] if kind is nn.LSTM else state
            return net.head(torch.tanh(state).transpose(0, 1).flatten(1))
        padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        return net.head(torch.tanh(padded).sum(dim=1))

    def batch(records: int) -> Any:
        lengths = torch.randint(1, LENGTH + 1, (records,))
        return torch.randn(records, LENGTH, WIDTH), lengths, labels(records)

    both = 2 if options.get("bidirectional") else 1
    width = both * (options.get("proj_size") or 5)
    width *= options.get("num_layers", 1) if last else 1
    return Network(lambda: Formula(formula, layer=kind(WIDTH, 5, **options), head=head(width)),
                   batch)  # fmt: skip


PACKED = {
    "packed lstm": _packed(nn.LSTM, batch_first=True),
    "packed lstm, times first, both ways": _packed(nn.LSTM, bidirectional=True, num_layers=2),
    "packed lstm, projected, last state": _packed(nn.LSTM, batch_first=True, proj_size=3,
                                                  last=True),
    "packed gru, both ways, last state": _packed(nn.GRU, batch_first=True, last=True,
                                                 bidirectional=True),
    "packed rnn": _packed(nn.RNN, nonlinearity="relu", bias=False),
}  # fmt: skip

PARAMETER_NETWORKS: dict[str, Network] = {
    **ELEMENTWISE, **TABLES, **PRODUCTS, **FUNCTIONS, **ROWS, **PACKED
}  # fmt: skip

FLOAT32_ONLY = {"rows by group"}
"""Networks with operations that torch does not have in double precision."""

PLANNED_LATER = set(PACKED)
"""Networks whose first batch may not show which rows are whose: lengths are drawn at random."""

TAKEN_SLOWLY: dict[str, set[str]] = {
    "changed in place after its use": {
        "w", "inner.weight", "inner.bias", "head.weight", "head.bias"},
}  # fmt: skip
"""Parameters that the slow way may take, by network."""
