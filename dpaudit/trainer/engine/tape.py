"""The tape: records the operations in which parameters take part while a model runs.

An operation with a rule runs on detached parameters, so the backward pass computes no
gradients of them. Only its input is kept, and the edge of the graph at which the gradient of
its output arrives. An operation without a rule runs unchanged. Its parameters then receive
gradients of their own, by which the engine detects them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from dpaudit.trainer.engine.broadcast_uses import (
    ATTENTION,
    ELEMENTWISE,
    EXPANDING,
    IN_PLACE,
    broadcast_operation,
    broadcast_shape,
    copies_for_records,
    padded_shape,
    promotes_alike,
)
from dpaudit.trainer.engine.chosen_rows import ChosenRows, RowsOfRun
from dpaudit.trainer.engine.composite_operations import (
    DECOMPOSITIONS,
    PACKED_CELLS,
    packed_layers,
)
from dpaudit.trainer.engine.contractions import PRODUCTS, product_operation
from dpaudit.trainer.engine.differentiation_watch import DifferentiationWatch
from dpaudit.trainer.engine.parameter_decompositions import PARAMETER_DECOMPOSITIONS
from dpaudit.trainer.engine.parameter_functions import (
    FunctionsOfParameters,
    ParameterFunction,
    map_arguments,
    tensors_in,
    torch_functions,
)
from dpaudit.trainer.engine.parameter_uses import (
    OF_CONSTANTS,
    BroadcastKey,
    ParameterUse,
    RecomputedInput,
)
from dpaudit.trainer.engine.rules import RULES, Operation


def _with_edge(output: Tensor) -> Tensor:
    """Return an output on detached parameters as one with an edge, at which its gradient arrives.

    Not a view, so that the result may be changed in place as the output might have been.
    """
    found: Tensor = torch.ops.aten._unsafe_view.default(output.requires_grad_(), output.shape)
    return found


def _is_whole(view: Tensor) -> bool:
    """Return whether a view covers all of a tensor that came out of the same operation."""
    base = view._base
    return (
        base is not None
        and base.grad_fn is not None
        and base.numel() == view.numel()
        and base.is_contiguous()
        and view.is_contiguous()
    )


class Tape(DifferentiationWatch):
    """Records the uses of some parameters while it is active.

    Args:
        parameters: Parameters that rules may cover.
        spread: Numbers of the uses whose single row is repeated for every record.
        records: Number of records, for these uses.
        broadcasts: Dimension of the records where a parameter is repeated for them.
        shared: Uses that repeat a parameter for other ends; None if no use is looked for that is
            not among ``broadcasts``.

    Attributes:
        uses: The recorded uses, in order of execution.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        spread: Collection[int] = (),
        records: int = 1,
        broadcasts: Mapping[BroadcastKey, int] | None = None,
        shared: Collection[BroadcastKey] | None = (),
    ) -> None:
        super().__init__()
        self.uses: list[ParameterUse] = []
        self._functions = FunctionsOfParameters(parameters)
        self._spread, self._records = frozenset(spread), records
        self._broadcasts = dict(broadcasts or {})
        self._shared = None if shared is None else frozenset(shared)
        self._rows = RowsOfRun(records)
        self._of_records: dict[int, ref[Tensor]] = {}
        # Functions of parameters that no rule covers, with their versions.
        self._constants: dict[int, tuple[Tensor, int]] = {}
        self._recording = True

    def holds_records(self, tensors: Iterable[Tensor]) -> None:
        """Note that tensors hold records, as those of the batch do.

        What is computed from them holds records, too. Anything else is a constant.

        Args:
            tensors: Tensors that the model will get.
        """
        for tensor in tensors:
            self._of_records[id(tensor)] = ref(tensor)

    def _has_records(self, tensor: Tensor) -> bool:
        """Return whether a tensor that is no function of parameters depends on records."""
        constant = self._constants.get(id(tensor))
        if constant is not None and constant[1] == tensor._version:
            return False
        # The inputs of a recomputation may be leaves, which no parameter is.
        if tensor.requires_grad and (
            not tensor.is_leaf or not (self._recording or isinstance(tensor, nn.Parameter))
        ):
            return True
        known = self._of_records.get(id(tensor))
        return known is not None and known() is tensor

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._recording:
            self.watch(func, args, kwargs)
        if func in DESCRIPTIONS:
            return func(*args, **kwargs)
        # torch switches the mode off while this method runs. It is switched on again for the
        # parts of a composite operation, which have rules of their own.
        if (decomposition := DECOMPOSITIONS.get(func)) is not None:
            with self:
                output = decomposition(*args, **kwargs)
            if output is NotImplemented and func in PACKED_CELLS:
                output = self._of_packed(func, args)
            if output is NotImplemented:
                output = func(*args, **kwargs)
                self._rows.follow(func, args, kwargs, output)
            return output
        sources, records, find = [], False, self._functions.find
        for tensor in tensors_in((*args, *kwargs.values()) if kwargs else args):
            if find(tensor) is not None:
                sources.append(tensor)
            else:
                records = records or self._has_records(tensor)
        if not sources or not torch.is_grad_enabled():
            output = func(*args, **kwargs)
            if not records and not sources:
                self._constants.update(
                    (id(t), (t, t._version)) for t in tensors_in([output]) if t.requires_grad
                )
            if records:
                self._mark(output)
                self._rows.follow(func, args, kwargs, output)
            return output
        return self._with_parameters(func, args, kwargs, sources, records=records)

    def _of_packed(self, func: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run recurrent layers on packed sequences, whose records are known from their rows."""
        rows, sizes = self._rows.find(args[0]), args[1]
        order = None
        if rows is not None and rows.total == int(sizes[0]):
            order = rows.numbers[: rows.total]
        with self:
            return packed_layers(func, order, *args)

    def _mark(self, output: Any) -> None:
        """Note results that need no gradient, but depend on records."""
        for tensor in tensors_in((output,)):
            if not tensor.requires_grad:
                self._of_records[id(tensor)] = ref(tensor)

    def _with_parameters(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sources: list[Tensor],
        *,
        records: bool,
    ) -> Any:
        """Run a call in which parameters, or functions of them, take part."""
        # One number chooses a part of a parameter, as the number of an expert does.
        if func is GET_ITEM and isinstance(args[1], Tensor) and not args[1].dim():
            args, records = (args[0], args[1].item()), False
        if not records and not self._looks_like_records(func, args):
            if func is Tensor.repeat:
                with self:
                    return PARAMETER_DECOMPOSITIONS[func](*args, **kwargs)
            if func in EXPANDING and (output := self._expanded(func, args, kwargs)) is not None:
                return output
            if func in ELEMENTWISE:
                args, kwargs = self._repeated(func, args, kwargs, among_constants=True)
                given = {id(tensor) for tensor in tensors_in((*args, *kwargs.values()))}
                sources = [tensor for tensor in sources if id(tensor) in given]
            if not sources:
                return func(*args, **kwargs)
            # The gradients of parameters are pulled back through this call after the backward pass,
            # when nothing is recomputed any more.
            with tensors_kept() if active_saved_tensors_hooks() else nullcontext():
                output = func(*args, **kwargs)
            changed = args[0] if func is Tensor.__setitem__ else output
            self._functions.add(func, args, kwargs, sources, changed)
            return output
        if (decomposition := PARAMETER_DECOMPOSITIONS.get(func)) is not None:
            with self:
                output = decomposition(*args, **kwargs)
            if output is not NotImplemented:
                return output
        operation = self._operation(func, args, kwargs)
        if operation is not None and (functions := self._covered(operation)):
            plain = self._plain(functions)
            output = func(
                *[map_arguments(value, plain) for value in args],
                **{key: map_arguments(value, plain) for key, value in kwargs.items()},
            )
            rows = self._rows.among((operation.input, *args), kwargs)
            unequal = rows is None and self._rows.unequal.among(args, kwargs)
            output = self._recorded(func, operation, functions, output, rows, unequal=unequal)
            self._rows.follow(func, args, kwargs, output)
            return output
        if func in EXPANDING and (output := self._expanded(func, args, kwargs)) is not None:
            return output
        if func in ELEMENTWISE or func in IN_PLACE or func is ATTENTION:
            args, kwargs = self._repeated(func, args, kwargs)
        output = func(*args, **kwargs)
        self._mark(output)
        self._rows.follow(func, args, kwargs, output)
        return output

    def _operation(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Operation | None:
        """Return the operation of a call that has a rule."""
        if func in PRODUCTS:
            return product_operation(
                func, args, kwargs, lambda tensor: self._functions.find(tensor) is not None
            )
        rule = RULES.get(func)
        return None if rule is None else rule(*args, **kwargs)

    def _looks_like_records(self, func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
        """Return whether a constant may stand for records, as first states or token types do."""
        return (func in RULES or func in PRODUCTS) and any(
            tensor.dim() > 1
            and len(tensor) == self._records
            and not (tensor.requires_grad or isinstance(tensor, nn.Parameter))
            for tensor in tensors_in(args)
        )

    def _covered(self, operation: Operation) -> dict[int, ParameterFunction]:
        """Return the trained parameters of a call; none unless all are covered by rules."""
        if self._functions.find(operation.input) is not None:
            return {}
        found: dict[int, ParameterFunction] = {}
        for parameter in operation.parameters:
            if parameter is not None and parameter.requires_grad:
                function = self._functions.find(parameter)
                if function is None:
                    return {}
                found[id(parameter)] = function
        return found

    @staticmethod
    def _plain(functions: Collection[int]) -> Callable[[Tensor], Tensor]:
        """Return a function that detaches the covered parameters."""
        return lambda tensor: tensor.detach() if id(tensor) in functions else tensor

    def _recorded(
        self,
        func: Callable[..., Any],
        operation: Operation,
        functions: dict[int, ParameterFunction],
        output: Tensor,
        rows: ChosenRows | None,
        *,
        unequal: bool,
    ) -> Tensor:
        """Return the output of a call, with a graph edge, and record the use."""
        is_view = output._is_view()
        if is_view and not _is_whole(output):
            output, is_view = output.clone(), False
        # If only parameters would need a gradient, the output is detached from the graph. It
        # needs an edge all the same, at which its gradient arrives.
        if not output.requires_grad:
            output, is_view = output.clone() if is_view else output, False
            output = _with_edge(output)
        hooks = active_saved_tensors_hooks()
        # The hooks of a recomputation count the tensors that they are given: both runs of a
        # checkpointed function give them the same.
        packed = None if hooks is None else hooks[0](operation.input.detach())
        # A use that ran once for all records gets one copy of its row per record, so that
        # each record's loss reaches its own copy. Recomputed uses are never spread.
        if self._recording and len(self.uses) in self._spread and hooks is None:
            output, is_view = output.expand(self._records, *output.shape[1:]).clone(), False
            row = operation.input
            operation = operation._replace(input=row.expand(self._records, *row.shape[1:]))
        if self._recording:
            name = getattr(func, "__name__", None) or str(func)
            # A view that is changed in place gets another edge; its base keeps this one.
            source = output._base if is_view else output
            assert source is not None
            edge = get_gradient_edge(source)
            use = ParameterUse(
                name, operation, functions, output.shape, edge, rows=rows, unequal=unequal
            )
            if hooks is not None:
                recomputed, size = RecomputedInput(hooks[1], packed), operation.input.numel()
                source.register_hook(recomputed.find)  # type: ignore[no-untyped-call]
                operation = operation._replace(input=FREED)
                use = use._replace(operation=operation, recomputed=recomputed, freed=size)
            self.uses.append(use)
        return output

    def _repeated(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        among_constants: bool = False,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of an elementwise call, with parameters repeated for the records.

        Among constants, this is done if one of them may have rows for the records.
        """
        shape = broadcast_shape(func, args, kwargs)
        if shape is None or (func in IN_PLACE and self._functions.find(args[0]) is not None):
            return args, kwargs
        if among_constants and not self._may_have_records(shape, args, kwargs):
            return args, kwargs
        name = func.__name__ + (OF_CONSTANTS if among_constants else "")
        activations = [] if func is not ATTENTION else [*args[:3], *(
            kwargs.get(name) for name in ("query", "key", "value"))]  # fmt: skip

        def change(tensor: Tensor) -> Tensor:
            if any(tensor is each for each in activations):
                return tensor
            if self._functions.find(tensor) is None or not promotes_alike(args, kwargs, tensor):
                return tensor
            rows = self._rows.among(args, kwargs)
            unequal = rows is None and self._rows.unequal.among(args, kwargs)
            copies = self._copies(name, tensor, shape, rows, unequal=unequal)
            return tensor if copies is None else copies

        return (
            tuple(map_arguments(value, change) for value in args),
            {key: map_arguments(value, change) for key, value in kwargs.items()},
        )

    def _may_have_records(
        self, shape: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Return whether parameters are repeated along a dimension that may count records."""
        own = [
            padded_shape(tensor, len(shape))
            for tensor in tensors_in((*args, *kwargs.values()))
            if self._functions.find(tensor) is not None
        ]
        return any(
            size and size % self._records == 0 and all(each[d] == 1 for each in own)
            for d, size in enumerate(shape)
        )

    def _expanded(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Return a parameter that is expanded for the records; None if it is not for them."""
        if self._functions.find(args[0]) is None:
            return None
        shape = func(args[0].detach(), *args[1:], **kwargs).shape
        if not self._may_have_records(shape, args[:1], {}):
            return None
        copies = self._copies(func.__name__ + OF_CONSTANTS, args[0], shape)
        return None if copies is None else copies.expand(shape)

    def _copies(
        self,
        name: str,
        parameter: Tensor,
        shape: Sequence[int],
        rows: ChosenRows | None = None,
        *,
        unequal: bool = False,
    ) -> Tensor | None:
        """Return a parameter with one copy per record, and record the use."""
        function = self._functions.find(parameter)
        key = name, tuple(size == 1 for size in padded_shape(parameter, len(shape)))
        dimension = self._broadcasts.get(key)
        if dimension is None and (self._shared is None or key in self._shared):
            return None
        copies = copies_for_records(parameter, shape, dimension)
        if copies is None or function is None:
            return None
        if self._recording:
            operation, functions = broadcast_operation(parameter, copies), {id(parameter): function}
            self.uses.append(
                ParameterUse(
                    name,
                    operation,
                    functions,
                    copies.shape,
                    get_gradient_edge(copies),
                    key,
                    rows=rows,
                    unequal=unequal,
                )
            )
        return copies

    def gradients(
        self, loss: Tensor, others: Sequence[Tensor] = (), *, retain_graph: bool = False
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Return a loss's gradients of the outputs of all uses, and of other tensors.

        Args:
            loss: A scalar that was computed while the tape was active.
            others: Further tensors to differentiate with respect to.
            retain_graph: Whether another backward pass follows.

        Returns:
            Gradients per use, in the output's shape, and gradients per other tensor; None where
            the loss does not depend on it.
        """
        # torch takes graph edges and tensors alike.
        wanted: list[Any] = [*(use.edge for use in self.uses), *others]
        if not wanted:
            return [], []
        one = torch.ones_like(loss)
        with self._replayed():
            # torch.autograd.grad would run under no tape, as torch switches the mode off while
            # the mode handles a call. This is what it calls.
            found = run_backward(
                (loss,),
                (one,),
                retain_graph,
                False,  # create_graph
                tuple(wanted),
                allow_unreachable=True,
                accumulate_grad=False,
            )
        own: list[Tensor | None] = [
            gradient
            if gradient is None or gradient.shape == use.shape
            else gradient.reshape(use.shape)
            for use, gradient in zip(self.uses, found, strict=False)
        ]
        self._put_recomputed_inputs()
        return own, list(found[len(own) :])

    def _put_recomputed_inputs(self) -> None:
        """Give the uses the inputs that the last backward pass has recomputed, if any."""
        for number, use in enumerate(self.uses):
            if use.recomputed is not None and use.recomputed.found:
                operation = use.operation._replace(input=use.recomputed.found.pop())
                self.uses[number] = use._replace(operation=operation)

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        """Be active, without recording, during a backward pass that may recompute activations.

        Recomputed activations must equal those of the forward pass, on detached parameters.
        """
        self._recording = False
        try:
            with self:
                yield
        finally:
            self._recording = True


run_backward: Callable[..., tuple[Tensor | None, ...]] = (
    torch.autograd.Variable._execution_engine.run_backward
)
"""The backward pass of torch; with inputs, it returns their gradients."""

DESCRIPTIONS = torch_functions((
    "shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "is_nested",
    "is_cpu", "is_cuda", "is_mps", "is_sparse", "is_quantized", "is_meta", "itemsize", "dim",
    "size", "numel", "nelement", "stride", "is_floating_point", "is_complex", "is_contiguous",
    "element_size", "storage_offset", "get_device", "__len__",
))  # fmt: skip
"""What describes a tensor without its numbers: no result holds records or parameters."""

GET_ITEM = Tensor.__getitem__

FREED = torch.empty(0)
"""Stands for an input that is freed until the backward pass."""


def tensors_kept() -> torch.autograd.graph.saved_tensors_hooks:
    """Return a context in which autograd keeps tensors as it does without hooks.

    Returns:
        Hooks on saved tensors that change nothing, in the place of those that are active.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def active_saved_tensors_hooks() -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]] | None:
    """Return the active hooks on saved tensors.

    Returns:
        The pair of ``torch.autograd.graph.saved_tensors_hooks``; None if there are none.
    """
    if torch.compiler.is_compiling():  # no graph is traced through hooks
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return None if hooks is None else (hooks[0], hooks[1])
