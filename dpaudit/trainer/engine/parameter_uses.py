"""Uses of parameters: what the tape keeps of one call until the gradient of its output arrives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dpaudit.trainer.engine.chosen_rows import ChosenRows
from dpaudit.trainer.engine.parameter_functions import ParameterFunction
from dpaudit.trainer.engine.rules import Operation

BroadcastKey = tuple[str, tuple[bool, ...]]
"""Name of an operation that repeats a parameter, and along which dimensions it may do so."""


class ParameterUse(NamedTuple):
    """One call in which trained parameters took part.

    Attributes:
        name: Name of the operation, for messages.
        operation: What the operation's rule returned.
        functions: The parameters that took part, or functions of parameters, by identity.
        shape: Shape of the output.
        edge: Edge at which the gradient of the output arrives, in this shape or flattened.
        broadcast: What the call has in common with others that repeat a parameter for every
            record; None for other operations.
        rows: The rows on which it worked, if records chose them.
        unequal: Whether records may have different numbers of rows there.
        recomputed: Where the input appears in a backward pass, if hooks on saved tensors free
            it until then, as activation checkpointing does; None: the operation holds it.
        freed: Entries of an input that is freed until then; 0 if the operation holds it.
    """

    name: str
    operation: Operation
    functions: dict[int, ParameterFunction]
    shape: torch.Size
    edge: GradientEdge
    broadcast: BroadcastKey | None = None
    rows: ChosenRows | None = None
    unequal: bool = False
    recomputed: RecomputedInput | None = None
    freed: int = 0

    @property
    def sources(self) -> set[int]:
        """Identities of the trained parameters that took part."""
        return {id(source) for f in self.functions.values() for source in f.sources}

    @property
    def may_be_shared(self) -> bool:
        """Whether the call may repeat a parameter for other ends than one copy per record."""
        return self.broadcast is not None and self.broadcast[0].endswith(OF_CONSTANTS)


OF_CONSTANTS = " of constants"
"""Ends the names of uses in which no activation takes part: their copies may be for records."""


@dataclass
class RecomputedInput:
    """The input of a use, handed to hooks on saved tensors as autograd hands its own.

    Under activation checkpointing, the hooks keep nothing. They run the checkpointed function
    again when the backward pass reaches it.

    Attributes:
        unpack: The hook that returns the input from what was kept.
        kept: What the other hook returned for the input.
        found: The input, from the last backward pass that reached the use.
    """

    unpack: Callable[[Any], Any]
    kept: Any
    found: list[Tensor] = field(default_factory=list)

    def find(self, _: Tensor) -> None:
        """Recover the input, in the backward pass that calls this with the output's gradient."""
        self.found = [self.unpack(self.kept)]
