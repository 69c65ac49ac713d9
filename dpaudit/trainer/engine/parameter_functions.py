"""Functions of parameters alone: tensors that no record has entered yet.

A view, a cast or a norm of a weight is a function U = f(P) of parameters and constants. Where U
meets an activation, the per-record gradients of U are taken as those of a parameter. The
vector-Jacobian product of f, which is linear, then gives those of P. It holds whatever the
constants are: record i's loss is L_i(f(P)), so its gradient is J_f(P)^T of the gradient by U.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

HALF = frozenset({torch.float16, torch.bfloat16})

Region = tuple[int, int]
"""Indices from a first to before a last one, along the first dimension of a parameter."""


class ParameterFunction(NamedTuple):
    """A tensor that was computed from parameters alone.

    Attributes:
        tensor: The result, still in the graph of its parameters.
        version: Version of the result when it was computed. A change in place ends its use.
        sources: The trained parameters that entered.
        keeps_norm: Whether each entry of the only source occurs at most once, as it is or negated,
            and the rest is constant. Then gradients of the source have the norms of those of the
            result.
        is_identity: Whether the result is the source but for a constant or a cast.
        region: Part of the source from which the result comes; None if that is not known.
    """

    tensor: Tensor
    version: int
    sources: tuple[Tensor, ...]
    keeps_norm: bool = False
    is_identity: bool = False
    region: Region | None = None

    @property
    def is_current(self) -> bool:
        """Whether the tensor has not been changed in place since."""
        return self.tensor._version == self.version


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, also inside of lists and tuples.

    Args:
        values: Arguments of one call.

    Returns:
        Each tensor, in their order.
    """
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, LISTS):
            found += tensors_in(value)
    return found


LISTS = (list, tuple)


def map_arguments(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return an argument with every tensor in it replaced.

    Args:
        value: A tensor, a list or tuple that may hold tensors, or anything else.
        change: Function of a tensor.

    Returns:
        The argument with changed tensors.
    """
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in LISTS:
        return type(value)(map_arguments(each, change) for each in value)
    return value


# Which functions keep norms.


def torch_functions(names: Iterable[str]) -> frozenset[Any]:
    """Return the functions and methods of torch that have one of some names.

    Args:
        names: Names such as ``add``, ``__radd__`` or ``T``.

    Returns:
        What torch passes as the called function; the getter for an attribute.
    """
    found = set()
    for name in names:
        for holder in (torch, Tensor):
            function = getattr(holder, name, None)
            getter = getattr(function, "__get__", None)
            if callable(function):
                found.add(function)
            elif function is not None and getter is not None:
                found.add(getter)
    return frozenset(found)


MOVING = torch_functions((
    "view", "reshape", "permute", "transpose", "t", "flatten", "unflatten", "squeeze", "unsqueeze",
    "contiguous", "clone", "neg", "negative", "__neg__", "split", "chunk", "tensor_split", "unbind",
    "select", "narrow", "movedim", "moveaxis", "swapaxes", "swapdims", "view_as", "reshape_as",
    "ravel", "roll", "flip", "T", "mT", "adjoint", "split_with_sizes",
))  # fmt: skip
"""Functions whose result holds each entry of their argument at most once, or negated."""

CASTING = torch_functions(("to", "float", "double", "half", "bfloat16", "type", "type_as"))
SHIFTING = torch_functions(("add", "__radd__", "sub", "__rsub__", "rsub", "subtract"))
COPYING = torch_functions(("contiguous", "clone", "add", "__radd__"))
INDEXING = torch_functions(("__getitem__", "index_select", "select", "narrow", "split", "chunk",
                            "unbind", "split_with_sizes", "tensor_split"))  # fmt: skip
BASIC_INDICES = (int, slice, type(None), type(Ellipsis))


def is_basic(index: Any) -> bool:
    """Return whether an index takes parts of a tensor in their order.

    Args:
        index: An index or a tuple of indices.

    Returns:
        False if an index is a tensor, a list or a truth value.
    """
    parts = index if isinstance(index, tuple) else (index,)
    return all(isinstance(part, BASIC_INDICES) and not isinstance(part, bool) for part in parts)


def _has_no_repetition(index: Any) -> bool:
    """Return whether a tensor of integers holds each number at most once."""
    if not isinstance(index, Tensor) or index.dtype in {torch.bool, torch.uint8}:
        return False
    if bool((index < 0).any()):  # -1 and the last row are the same one
        return False
    return bool(torch.unique(index).numel() == index.numel())


def _looks_up_once(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call takes each row of a table at most once, and all of its gradient."""
    if func is functional.embedding:
        plain = len(args) == 2 and not any(kwargs.get(name) for name in (
            "max_norm", "scale_grad_by_freq"))  # fmt: skip
        return plain and kwargs.get("padding_idx") is None and _has_no_repetition(args[0])
    if func in INDEX_SELECTS:
        return len(args) == 3 and not kwargs and _has_no_repetition(args[2])
    return False


INDEX_SELECTS = torch_functions(("index_select",))
GET_ITEM = Tensor.__getitem__


def _keeps_norm(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor, whole: Tensor
) -> bool:
    """Return whether one call on a single tensor of parameters keeps the norms of gradients."""
    if func in MOVING or func in CASTING:
        return True
    if func in SHIFTING:  # a scalar or a constant that does not repeat the parameter
        return output.shape == whole.shape and len(args) == 2 and "alpha" not in kwargs
    if func is GET_ITEM:
        return is_basic(args[1]) or _has_no_repetition(args[1])
    return _looks_up_once(func, args, kwargs)


def _region(output: Tensor, source: Tensor) -> Region | None:
    """Return the rows of a parameter that a view of it lies in; None if it is no such view."""
    if output._base is not source and output is not source:
        return None
    if not source.is_contiguous() or not source.dim() or not source.numel() or not output.numel():
        return None
    row = source.numel() // source.shape[0]
    first = output.storage_offset() - source.storage_offset()
    last = first + sum((n - 1) * s for n, s in zip(output.shape, output.stride(), strict=True))
    return first // row, last // row + 1


class FunctionsOfParameters:
    """Finds which tensors of a run are functions of parameters, and which hold records.

    Args:
        parameters: Trained parameters to follow.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._known = {id(p): _of_parameter(p) for p in parameters if p.requires_grad}

    def find(self, tensor: Tensor) -> ParameterFunction | None:
        """Return what is known of a tensor.

        Args:
            tensor: Any tensor.

        Returns:
            Its sources, if it is a parameter or a function of parameters alone.
        """
        found = self._known.get(id(tensor))
        return found if found is None or found.is_current else None

    def add(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        sources: Collection[Tensor],
        output: Any,
    ) -> None:
        """Note the results of a call on parameters and constants.

        Args:
            func: The function of torch that was called.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            sources: The arguments that are parameters or functions of parameters.
            output: Its result.
        """
        parents = [found for s in sources if (found := self._known.get(id(s))) is not None]
        for tensor in tensors_in([output]):
            if not tensor.requires_grad or (tensor.is_leaf and id(tensor) in self._known):
                continue
            found = _combined(func, args, kwargs, parents, tensor)
            if found is not None:
                self._known[id(tensor)] = found


def _of_parameter(parameter: Tensor) -> ParameterFunction:
    """Return a parameter as a function of itself."""
    return ParameterFunction(
        parameter, parameter._version, (parameter,), keeps_norm=True, is_identity=True
    )


def _combined(
    func: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    parents: Sequence[ParameterFunction],
    output: Tensor,
) -> ParameterFunction | None:
    """Return a call's result as a function of parameters; None if its gradient would be rounded.

    In half precision, the vector-Jacobian product would round a sum of clipped gradients.
    """
    sources = {id(s): s for parent in parents for s in parent.sources}
    single = parents[0] if len(parents) == 1 else None
    keeps = single is not None and single.keeps_norm and _keeps_norm(
        func, args, kwargs, output, single.tensor)  # fmt: skip
    same = (
        single is not None
        and single.is_identity
        and keeps
        and output.shape == single.tensor.shape
        and (func in CASTING or func in COPYING)
    )
    dtypes = {
        output.dtype,
        *(p.tensor.dtype for p in parents),
        *(s.dtype for s in sources.values()),
    }
    if dtypes & HALF and not same:
        return None
    source = single.sources[0] if keeps and single is not None else None
    region = None if source is None else _region(output, source)
    if source is not None and region is None and single is not None:
        region = single.region  # a copy or a permutation of a part stays in that part
    return ParameterFunction(output, output._version, tuple(sources.values()), keeps, same, region)
