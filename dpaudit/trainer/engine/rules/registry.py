"""Registry of rules: per-record gradients of the parameters of one operation.

A rule gets the arguments of one call. It returns which of them may be parameters, and a
function from (input, output gradient), both with records first, to the per-record gradients
of those parameters. None means that the call has no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dpaudit.trainer.engine.gradient_forms import GradientForm

ParameterGradients = Sequence[tuple[Tensor | None, GradientForm | None]]
"""Pairs of an argument, None if it is missing, and its per-record gradients."""


Forms = Callable[[Tensor, Tensor], ParameterGradients]
"""Function of (input, output gradient), both with records first, that returns the gradients."""


class Operation(NamedTuple):
    """One call of an operation that has a rule.

    Attributes:
        parameters: The arguments that are parameters if they are trained.
        input: The tensor on which the gradients depend besides the output's gradient. Its
            records are where those of the output are.
        forms: Function of (input, output gradient), both with records first, that returns the
            gradients; called only if at least one parameter is trained.
        at: Function from the records' dimension in the output to their dimension in the input and
            to the forms there; None if the dimensions are equal and the forms do not depend on it.

    Example:
        >>> import torch
        >>> from dpaudit.trainer.engine.gradient_forms import DenseGradients
        >>> scale, rows = torch.ones(3), torch.randn(5, 3)
        >>> operation = Operation(  # of torch.mul(rows, scale)
        ...     (scale,), rows, lambda rows, by_output: [(scale, DenseGradients(rows * by_output))])
        >>> [(argument, form)] = operation.forms(operation.input, torch.ones(5, 3))
        >>> argument is scale, torch.equal(form.dense(), rows)
        (True, True)
    """

    parameters: tuple[Tensor | None, ...]
    input: Tensor
    forms: Forms
    at: Callable[[int], tuple[int, Forms]] | None = None


Rule = Callable[..., Operation | None]
"""Function of an operation's arguments; None if the rule does not cover the call."""

RULES: dict[Callable[..., Any], Rule] = {}
"""The registered rules, by the function of torch that they cover."""


def rule(*operations: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a rule.

    Args:
        *operations: Functions of torch that the rule covers.

    Returns:
        The decorator, which returns the rule unchanged.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return register
