"""RNN, LSTM and GRU as linear layers: one for the inputs of all times, one a time for the state.

NotImplemented where a call is of packed sequences, whose records are not rows.

torch's formulas and order of weights (Elman 1990; Hochreiter & Schmidhuber 1997; Cho et
al. 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor], Sequence[Tensor | None]], State]
"""(input's part, state, recurrent weights, recurrent biases) to the state after it."""


def _lstm_cell(
    x: Tensor, state: State, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> State:
    h, c = state
    i, f, g, o = (x + functional.linear(h, weights[0], biases[0])).chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (functional.linear(h, weights[1]) if len(weights) > 1 else h), c


def _gru_cell(
    x: Tensor, state: State, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> State:
    (h,) = state
    xr, xz, xn = x.chunk(3, dim=-1)
    hr, hz, hn = functional.linear(h, weights[0], biases[0]).chunk(3, dim=-1)
    z = torch.sigmoid(xz + hz)
    n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
    return ((1 - z) * n + z * h,)


def _plain_cell(
    x: Tensor,
    state: State,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activation: Callable[[Tensor], Tensor],
) -> State:
    (h,) = state
    return (activation(x + functional.linear(h, weights[0], biases[0])),)


def _run(
    cell: Cell,
    x: Tensor,
    state: State,
    group: Sequence[Tensor],
    biased: bool,
) -> tuple[Tensor, State]:
    """Run one direction of one layer over ``x`` of shape ``(records, times, features)``."""
    w_in, w_state, *rest = group
    b_in, b_state = (rest[0], rest[1]) if biased else (None, None)
    projection = rest[2:] if biased else rest
    inputs = functional.linear(x, w_in, b_in)
    outputs = []
    for time in range(x.shape[1]):
        state = cell(inputs[:, time], state, [w_state, *projection], [b_state])
        outputs.append(state[0])
    return torch.stack(outputs, dim=1), state


def _layers(
    cell: Cell,
    x: Tensor,
    states: State,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    x = x if batch_first else x.transpose(0, 1)
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            group = weights[number * each : (number + 1) * each]
            begin = tuple(state[number] for state in states)
            seen = x.flip(1) if direction else x
            output, end = _run(cell, seen, begin, group, has_biases)
            outputs.append(output.flip(1) if direction else output)
            last.append(end)
        x = torch.cat(outputs, dim=-1)
        if dropout and layer + 1 < num_layers:
            x = functional.dropout(x, dropout, train)
    x = x if batch_first else x.transpose(0, 1)
    return x, *(torch.stack(part) for part in zip(*last, strict=True))


def _is_packed(settings: Sequence[object]) -> bool:
    """Whether the call is torch's other one, of packed sequences: its arguments are shifted."""
    return not isinstance(settings[0], bool)


def lstm(x: Tensor, hx: State, weights: Sequence[Tensor], *settings: object) -> tuple[Tensor, ...]:
    """Return what torch's own returns: outputs, last hidden and last cell states."""
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    return _layers(_lstm_cell, x, tuple(hx), weights, *settings)  # type: ignore[arg-type]


def gru(x: Tensor, hx: Tensor, weights: Sequence[Tensor], *settings: object) -> tuple[Tensor, ...]:
    """Return what torch's own returns: outputs and last hidden states."""
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    return _layers(_gru_cell, x, (hx,), weights, *settings)  # type: ignore[arg-type]


def _plain(
    activation: Callable[[Tensor], Tensor],
    x: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    *settings: object,
) -> tuple[Tensor, ...]:
    if _is_packed(settings):
        return NotImplemented  # type: ignore[no-any-return]
    cell = partial(_plain_cell, activation=activation)
    return _layers(cell, x, (hx,), weights, *settings)  # type: ignore[arg-type]


DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.lstm: lstm,
    torch.gru: gru,
    torch.rnn_tanh: partial(_plain, torch.tanh),
    torch.rnn_relu: partial(_plain, torch.relu),
}
