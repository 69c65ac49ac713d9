"""Which operations the engine knows, and what it asks of a rule.

A rule is told the arguments of one call. It says which of them may be parameters, and
makes of the call's input and of the gradient of its output, both with records first, the
per-record gradients of those parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dpaudit.trainer.engine.forms import Form

Forms = Sequence[tuple[Tensor | None, Form | None]]
"""Parameters and their per-record gradients."""


@dataclass(frozen=True)
class Operation:
    """One call of an operation that has a rule.

    Attributes:
        parameters: The tensors that are parameters if they are trained.
        input: What the gradients depend on besides the output's gradient; it has its
            records where the output has them.
        forms: (input, output's gradient), both records first, to gradients; called where
            at least one parameter is trained.
    """

    parameters: tuple[Tensor | None, ...]
    input: Tensor
    forms: Callable[[Tensor, Tensor], Forms]


Rule = Callable[..., Operation | None]
"""Takes an operation's arguments; None: this call is not one that the rule covers."""

RULES: dict[Callable[..., Any], Rule] = {}


def rule(*operations: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register a rule for ``operations``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register
