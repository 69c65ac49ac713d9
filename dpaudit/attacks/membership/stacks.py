"""Models of one kind as one: their parameters are stacked, and computed in one batched pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

State = dict[str, Tensor]


@dataclass(frozen=True)
class Stack:
    """Trained models, their parameters and buffers stacked along a first axis.

    ``base`` gives the computation; its own weights are not used.
    """

    base: nn.Module
    parameters: State
    buffers: State

    def __len__(self) -> int:
        return len(next(iter(self.parameters.values())))

    def __getitem__(self, which: slice) -> Stack:
        return Stack(
            self.base,
            {name: values[which] for name, values in self.parameters.items()},
            {name: values[which] for name, values in self.buffers.items()},
        )


def stacked(models: Sequence[nn.Module], device: str = "cpu") -> Stack:
    """Return models of one kind as a stack."""
    parameters, buffers = stack_module_state([model.to(device) for model in models])
    return Stack(copy.deepcopy(models[0]), parameters, buffers)


def outputs(stack: Stack, features: Tensor) -> Tensor:
    """Return what each model says of features of its own, ``(models, records, ...)``."""
    said: Tensor = vmap(_call(stack.base), randomness="different")(
        stack.parameters, stack.buffers, features
    )
    return said


def _call(base: nn.Module) -> Callable[[State, State, Tensor], Tensor]:
    def call(parameters: State, buffers: State, features: Tensor) -> Tensor:
        outputs: Tensor = functional_call(base, (parameters, buffers), (features,))
        return outputs

    return call


def logits(stack: Stack, features: Tensor) -> Tensor:
    """Return what every model says of the same records, shape ``(models, records, classes)``."""
    with torch.no_grad():
        said: Tensor = vmap(_call(stack.base), in_dims=(0, 0, None))(
            stack.parameters, stack.buffers, features
        )
    return said


def finished(stack: Stack) -> Stack:
    """Return a trained stack on the CPU, in evaluation mode, without gradients."""
    base = stack.base.to("cpu").eval()
    return Stack(
        base,
        {name: values.detach().cpu() for name, values in stack.parameters.items()},
        {name: values.detach().cpu() for name, values in stack.buffers.items()},
    )


def joined(stacks: Sequence[Stack]) -> Stack:
    """Return the models of several stacks as one."""

    def join(states: Sequence[State]) -> State:
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    return Stack(
        stacks[0].base,
        join([stack.parameters for stack in stacks]),
        join([stack.buffers for stack in stacks]),
    )
