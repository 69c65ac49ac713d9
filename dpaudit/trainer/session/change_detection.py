"""Detection of changes of a model between private steps: what is released must be what steps made.

After each step a fingerprint of every tensor of the model is kept: parameters, buffers, and
whatever else its ``state_dict`` holds. A fingerprint is the sum of all 64-bit words modulo
2^64, and a sample of them with weights by position. It costs one pass over the trained weights
and buffers. It detects writes that bypass version counters (``.data``, NumPy views). A change
that was undone bit for bit is accepted, as when averaged weights are swapped in for an
evaluation and out again.

Frozen parameters keep their earlier fingerprint while version counter, address and sample are
equal. So a large frozen model costs no pass, and the end compares it with its beginning.

Before a step, version counters, addresses and the sample are compared; if one differs, the
fingerprint decides. At a checkpoint and at the end the fingerprint is always compared. Of the
optimizer's state only version counters, addresses and samples are kept, as it is not swapped.

This is no cryptographic digest: a change can be hidden on purpose. Checkpoints and the sealed
model have SHA-256 digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from dpaudit.trainer.distributed import is_sharded
from dpaudit.trainer.engine.module_walk import named_parameters

WORD_BYTES = 8
SAMPLED_WORDS = 256  # words of each tensor that are compared before every step
MANY_WORDS = 2**14  # from here on torch adds words faster than NumPy


class TensorFingerprint(NamedTuple):
    """What is kept of one tensor: type, shape, sum of words and weighted sample."""

    kind: torch.dtype
    shape: torch.Size
    total: int
    sample: int


Fingerprint = dict[str, TensorFingerprint]
"""The fingerprint of each named tensor."""

ChangeMarks = dict[str, tuple[object, ...]]
"""What an ordinary write to a tensor changes: address, version counter, type and sample."""


class ChangeDetector:
    """Compares a model's state with its state after the last step.

    Args:
        modules: The watched modules, by a prefix for the names of their tensors.
        optimizer: An optimizer whose state is watched too.
    """

    def __init__(self, modules: dict[str, nn.Module], optimizer: Optimizer) -> None:
        self._modules, self._optimizer = modules, optimizer
        self._listed: list[tuple[str, Tensor]] = []
        self._structure: tuple[object, ...] | None = None  # for which these were listed
        self._arrays: dict[str, _Array] = {}
        self._state_arrays: dict[str, _Array] = {}
        self._noted: Fingerprint = {}
        self._marks: ChangeMarks = {}
        self._optimizer_marks: ChangeMarks = {}
        self._offset = 0  # position of the sample, moved after each step

    def note(self, *, frozen: bool = False) -> None:
        """Accept the present state as the result of what is recorded.

        Args:
            frozen: Accept changes of trainable tensors only, as a step makes them. A changed frozen
                parameter is then reported as a change.
        """
        content = self._content()
        still, moved = self._frozen(content) if frozen else ({}, {})
        if not moved:  # samples at one position can be compared; a changed tensor keeps its own
            self._offset += 1
        samples = _samples(content, self._offset)
        self._noted = {**_fingerprint(content, samples, still), **moved}
        self._marks = {} if moved else _marks(content, samples)
        self._optimizer_marks = self._state()

    def changed(self, *, thoroughly: bool) -> tuple[str, ...]:
        """Return the names of tensors that differ from the accepted state.

        Args:
            thoroughly: Compare every word; else only where version counters, addresses or samples
                differ.

        Returns:
            Names of tensors; and ``the optimizer's state`` if that differs.
        """
        moved = () if self._state() == self._optimizer_marks else ("the optimizer's state",)
        content = self._content()
        samples = _samples(content, self._offset)
        if not thoroughly and _marks(content, samples) == self._marks:
            return moved
        now, noted = _fingerprint(content, samples, {}), self._noted
        return (*(name for name in {**noted, **now} if noted.get(name) != now.get(name)), *moved)

    def _content(self) -> TensorWords:
        """Return the watched tensors, which are listed again if the structure has changed."""
        structure = _structure_of(self._modules)
        if structure is None or structure != self._structure:
            self._listed, self._structure = [*_tensors(self._modules)], structure
        return _words(self._listed, self._arrays)

    def _state(self) -> ChangeMarks:
        """Return the marks of the optimizer's state."""
        content = _words(_state_of(self._optimizer), self._state_arrays)
        return _marks(content, _samples(content, self._offset))

    def _frozen(self, content: TensorWords) -> tuple[dict[str, int], Fingerprint]:
        """Return what was accepted of frozen parameters: sums of the unmoved, and what changed.

        The sum of words is that of the accepted state where no mark has moved. Where a
        fingerprint has changed, the accepted one is returned.
        """
        noted, model = self._noted, self._modules.get("")
        if model is None or all(tensor.requires_grad for tensor, _ in content.values()):
            return {}, {}
        named = named_parameters(model)
        names = [n for n, p in named.items() if not p.requires_grad and n in noted and n in content]
        own = {name: content[name] for name in names}
        samples = _samples(own, self._offset)
        marks = _marks(own, samples)
        sums = {n: noted[n].total for n in names if marks[n] == self._marks.get(n)}
        now = _fingerprint(own, samples, sums)
        return sums, {n: noted[n] for n in names if now[n] != noted[n]}


Words = Tensor | NDArray[np.int64]
"""Content as 64-bit words: an array on the CPU, where small sums are faster in NumPy."""

TensorWords = dict[str, tuple[Tensor, Words]]
"""Each named tensor, and its content as 64-bit words."""


class _Array(NamedTuple):
    """A tensor's memory as 64-bit words, and what must be unchanged for it to be the same."""

    tensor: Tensor
    address: int
    shape: torch.Size
    words: NDArray[np.int64]

    def is_of(self, tensor: Tensor) -> bool:
        """Return whether these are the words of a tensor, which may be in other memory by now."""
        return (
            self.tensor is tensor
            and tensor.data_ptr() == self.address
            and tensor.shape == self.shape
            and _is_plain(tensor)
        )


def _words(tensors: Iterable[tuple[str, Tensor]], arrays: dict[str, _Array]) -> TensorWords:
    """Return each tensor with its content as 64-bit words; arrays are kept for the next time."""
    found: TensorWords = {}
    for name, tensor in tensors:
        known = arrays.get(name)
        if known is not None and known.is_of(tensor):
            found[name] = tensor, known.words
            continue
        own = _own(tensor)
        if _is_plain(own) and own.numel() % 2 == 0:
            words = own.numpy().reshape(-1).view(np.int64)
            if type(tensor) in PLAIN_TYPES:
                arrays[name] = _Array(tensor, own.data_ptr(), own.shape, words)
            found[name] = own, words
        else:
            arrays.pop(name, None)
            copied = words_of_tensor(own)
            found[name] = own, copied.numpy() if copied.is_cpu else copied
    return found


PLAIN_TYPES = frozenset({Tensor, nn.Parameter})


def _is_plain(tensor: Tensor) -> bool:
    """Return whether an array can have the tensor's memory, in the order of its entries."""
    return (
        tensor.is_cpu
        and tensor.dtype is torch.float32
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _samples(content: TensorWords, offset: int) -> list[int]:
    """Return the weighted sum of some words of each tensor, evenly spread from an offset on."""
    return _values([_sum_of_some(words, offset) for _, words in content.values()])


def _fingerprint(content: TensorWords, samples: list[int], known: Mapping[str, int]) -> Fingerprint:
    """Return the fingerprint of each tensor; a known sum of words is not computed again."""
    unknown = [name for name in content if name not in known]
    sums = dict(zip(unknown, _values([_sum(content[n][1]) for n in unknown]), strict=True))
    sums.update(known)
    return {
        name: TensorFingerprint(tensor.dtype, tensor.shape, sums[name], sample)
        for (name, (tensor, _)), sample in zip(content.items(), samples, strict=True)
    }


def _sum(words: Words) -> Tensor | np.int64:
    """Return the sum of words modulo 2^64, by the faster of two libraries."""
    if isinstance(words, Tensor) or len(words) < MANY_WORDS:
        return words.sum()
    return np.int64(torch.from_numpy(words).sum().item())


def _marks(content: TensorWords, samples: list[int]) -> ChangeMarks:
    """Return address, version counter, type and sample of each tensor."""
    return {
        name: (tensor.data_ptr(), _version(tensor), tensor.dtype, sample)
        for (name, (tensor, _)), sample in zip(content.items(), samples, strict=True)
    }


def _tensors(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of modules and of what they save, each once."""
    seen: set[int] = set()
    for prefix, root in modules.items():
        for name, tensor in _saved(root):
            if isinstance(tensor, Tensor) and id(tensor) not in seen and not tensor.is_meta:
                seen.add(id(tensor))
                yield prefix + name, tensor


def _structure_of(modules: Mapping[str, nn.Module]) -> tuple[object, ...] | None:
    """Return what ``_tensors`` depends on; None if modules may save more than what they hold."""
    found: list[object] = []
    for prefix, root in modules.items():
        found.append(prefix)
        seen: set[int] = set()
        stack: list[nn.Module | None] = [root]
        while stack:
            module = stack.pop()
            found.append(id(module))
            if module is None or id(module) in seen:
                continue
            seen.add(id(module))
            kind: type = type(module)
            if _saves_more(kind) or module._state_dict_hooks or module._state_dict_pre_hooks:
                return None
            found.append(kind)
            for held in (module._parameters, module._buffers, module._modules):
                if held:
                    found += held
                    found += map(id, held.values())
            stack += module._modules.values()
    return tuple(found)


def _saved(root: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield parameters and buffers in one walk, then what else a ``state_dict`` may hold."""
    saves_more = False
    for path, module in root.named_modules():
        place = f"{path}." if path else ""
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            yield place + name, tensor
        kind: type = type(module)
        hooks = module._state_dict_hooks or module._state_dict_pre_hooks
        saves_more |= _saves_more(kind) or bool(hooks)
    if saves_more:
        yield from root.state_dict(keep_vars=True).items()


@cache
def _saves_more(kind: type) -> bool:
    """Return whether modules of a class may save more than parameters and buffers."""
    methods = ("state_dict", "_save_to_state_dict", "get_extra_state")
    return any(getattr(kind, name) is not getattr(nn.Module, name) for name in methods)


def _state_of(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of an optimizer's state by number of the parameter and name."""
    for number, state in enumerate(optimizer.state.values()):
        for name, value in state.items():
            if isinstance(value, Tensor):
                yield f"{number}.{name}", value


def _own(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which shares its version counter."""
    own = tensor.detach()  # shares the version counter
    return own.to_local() if is_sharded(own) else own  # type: ignore[attr-defined]


def _version(tensor: Tensor) -> int:
    """Return a tensor's version counter; -1 for an inference tensor, which has none."""
    return -1 if tensor.is_inference() else tensor._version


def _values(sums: list[Tensor | np.int64]) -> list[int]:
    """Return the sums as numbers, in one transfer: on a GPU each would wait for the device."""
    there = [total for total in sums if isinstance(total, Tensor)]
    moved = iter(
        torch.stack([total.to(there[0].device) for total in there]).tolist() if there else []
    )
    return [next(moved) if isinstance(total, Tensor) else int(total) for total in sums]


def words_of_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor's content as 64-bit words.

    Args:
        tensor: Any tensor, sparse ones included.

    Returns:
        Shape ``(words,)``, int64; the last word is padded with zeros.
    """
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    octets = tensor.contiguous().view(-1).view(torch.uint8)
    missing = -len(octets) % WORD_BYTES
    if missing:
        octets = torch.cat([octets, octets.new_zeros(missing)])
    elif octets.storage_offset() % WORD_BYTES:  # a view of words must be aligned to words
        octets = octets.clone()
    return octets.view(torch.int64)


def _sum_of_some(words: Words, offset: int) -> Tensor | np.int64:
    """Return the sum of about ``SAMPLED_WORDS`` words, each times a weight of its position."""
    # The offset moves by one per step, so that every word is sampled once in ``stride`` steps.
    stride = max(1, len(words) // SAMPLED_WORDS)
    some = words[offset % stride :: stride]
    if isinstance(some, Tensor):
        return (some * _weights(some.device)[: len(some)]).sum()
    # Modulo 2^64, as for tensors.
    total: np.int64 = np.dot(some, _array_of_weights()[: len(some)])
    return total


@cache
def _weights(device: torch.device) -> Tensor:
    """Return fixed odd random weights: a change of one sampled word changes the sum."""
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(2**62), 2**62, (2 * SAMPLED_WORDS,), generator=generator) * 2 + 1
    return odd.to(device)


@cache
def _array_of_weights() -> NDArray[np.int64]:
    """Return the weights on the CPU as an array."""
    return _weights(torch.device("cpu")).numpy()
