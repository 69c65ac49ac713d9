"""Notice changes of a model between its private steps: what ships must be what steps made.

After each step a fingerprint is kept of every tensor of the model: parameters, buffers, and
whatever else its ``state_dict`` holds: the sum of all its 64-bit words, modulo 2^64, and a
sample of them with weights by position. It costs one pass over the weights, and notices writes
that bypass version counters (``.data``, numpy views). It forgives a change that was undone bit
for bit, as when averaged weights are swapped in for an evaluation and out again.

Before a step, version counters, addresses and the sample are compared; where one of these
differs, the fingerprint decides. At a checkpoint and at the end it always does. Of
the optimizer's state only these marks are kept: nobody swaps it out and in again.

It is no digest: whoever wants to hide a change can. Checkpoints and the sealed model carry
SHA-256 digests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpaudit.trainer.sharding import is_sharded

WORD = 8  # bytes
SAMPLED = 256  # words of each tensor that are compared before every step

Fingerprint = dict[str, tuple[object, ...]]
"""By name of the tensor: its type, its shape, the sum of its words, and that of a sample."""

Marks = dict[str, tuple[object, ...]]
"""By name of the tensor: what cannot stay the same if it is written to in the usual ways."""


class StateWatch:
    """Compares a model's state with what the last step left.

    Args:
        modules: By a prefix for their names, the modules whose tensors are watched.
        optimizer: Its state is watched, too.
    """

    def __init__(self, modules: dict[str, nn.Module], optimizer: Optimizer) -> None:
        self._modules, self._optimizer = modules, optimizer
        self._noted: Fingerprint = {}
        self._marks: Marks = {}
        self._optimizer_marks: Marks = {}
        self._offset = 0  # of the sample: another one after each step

    def note(self, *, frozen: bool = False) -> None:
        """Take the state as it is now for the result of what is recorded.

        Args:
            frozen: Whether only what is trained may have changed, as by a step. What else did
                is not taken: it is a change from then on.
        """
        self._offset += 1
        content = _words(_tensors(self._modules))
        samples = _samples(content, self._offset)
        now = _fingerprint(content, samples)
        kept = self._untrained(now) if frozen else {}
        self._noted = {**now, **kept}
        self._marks = {} if kept else _marks(content, samples)
        self._optimizer_marks = self._state()

    def changed(self, *, thoroughly: bool) -> tuple[str, ...]:
        """Return the names of tensors that differ from what was noted.

        Args:
            thoroughly: Compare every word; else only where something hints at a change.
        """
        moved = () if self._state() == self._optimizer_marks else ("the optimizer's state",)
        content = _words(_tensors(self._modules))
        samples = _samples(content, self._offset)
        if not thoroughly and _marks(content, samples) == self._marks:
            return moved
        now, noted = _fingerprint(content, samples), self._noted
        return (*(name for name in {**noted, **now} if noted.get(name) != now.get(name)), *moved)

    def _state(self) -> Marks:
        content = _words(_state_of(self._optimizer))
        return _marks(content, _samples(content, self._offset))

    def _untrained(self, now: Fingerprint) -> Fingerprint:
        """Return what was noted of frozen parameters that are other ones now."""
        frozen = {
            prefix + name
            for prefix, module in self._modules.items()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad and not prefix
        }
        noted = self._noted
        return {n: noted[n] for n in frozen if n in noted and noted[n] != now.get(n)}


Content = dict[str, tuple[Tensor, Tensor]]
"""By name: a tensor, and what it holds as 64-bit words."""


def _words(tensors: Iterator[tuple[str, Tensor]]) -> Content:
    return {name: (tensor, words_of(tensor)) for name, tensor in tensors}


def _samples(content: Content, offset: int) -> list[int]:
    """Return the weighted sum of some words of each tensor, evenly spread from an offset on."""
    return _values([_sum_of_some(words, offset) for _, words in content.values()])


def _fingerprint(content: Content, samples: list[int]) -> Fingerprint:
    sums = _values([words.sum() for _, words in content.values()])
    parts = zip(content.items(), sums, samples, strict=True)
    return {
        name: (tensor.dtype, tensor.shape, total, sample)
        for (name, (tensor, _)), total, sample in parts
    }


def _marks(content: Content, samples: list[int]) -> Marks:
    return {
        name: (tensor.data_ptr(), _version(tensor), tensor.dtype, sample)
        for (name, (tensor, _)), sample in zip(content.items(), samples, strict=True)
    }


def _tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield this rank's part of every tensor of modules and of what they save, each once."""
    seen: set[int] = set()
    for prefix, module in modules.items():
        named = (*module.named_parameters(), *module.named_buffers())
        for name, tensor in (*named, *module.state_dict(keep_vars=True).items()):
            if isinstance(tensor, Tensor) and id(tensor) not in seen and not tensor.is_meta:
                seen.add(id(tensor))
                yield prefix + name, _own(tensor)


def _state_of(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an optimizer's state by number of the parameter and name."""
    for number, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield f"{number}.{name}", _own(value)


def _own(tensor: Tensor) -> Tensor:
    own = tensor.detach()  # shares the version counter
    return own.to_local() if is_sharded(own) else own  # type: ignore[attr-defined]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _values(sums: list[Tensor]) -> list[int]:
    """Return the sums as numbers; in one transfer, as on a GPU each would wait for the device."""
    return torch.stack([total.to(sums[0].device) for total in sums]).tolist() if sums else []


def words_of(tensor: Tensor) -> Tensor:
    """Return a tensor's content as 64-bit words, the last one filled up with zeros."""
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    octets = tensor.contiguous().view(-1).view(torch.uint8)
    missing = -len(octets) % WORD
    if missing:
        octets = torch.cat([octets, octets.new_zeros(missing)])
    elif octets.storage_offset() % WORD:  # a view of words must begin at one
        octets = octets.clone()
    return octets.view(torch.int64)


def _sum_of_some(words: Tensor, offset: int) -> Tensor:
    """Return the sum of about ``SAMPLED`` words, each times a weight of its place."""
    stride = max(1, len(words) // SAMPLED)
    some = words[offset % stride :: stride]
    return (some * _weights(words.device)[: len(some)]).sum()


@cache
def _weights(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (2 * SAMPLED,), generator=generator) * 2 + 1
    return odd.to(device)
