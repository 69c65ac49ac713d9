"""Train a part of a model: low-rank adapters beside its layers, or its last layer alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.settings import ModelSettings

ADAPTER_SCALE = 1.0
"""Factor of the adapters' output: alpha equals the rank."""


class LowRankAdapter(nn.Module):
    """A frozen layer plus a trained map of low rank, which is zero at first.

    Args:
        base: The layer; its parameters are frozen.
        inputs: Number of its input features.
        outputs: Number of its output features.
        rank: Rank of the added map, at least 1.

    References:
        Hu et al. (2021), arXiv:2106.09685.
    """

    def __init__(self, base: nn.Module, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = next(base.parameters())
        self.down = nn.Linear(inputs, rank, bias=False).to(like.device, like.dtype)
        self.up = nn.Linear(rank, outputs, bias=False).to(like.device, like.dtype)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output plus the adapter's.

        Args:
            x: Shape ``(records, ..., inputs)``.

        Returns:
            Shape ``(records, ..., outputs)``.
        """
        out: Tensor = self.base(x) + ADAPTER_SCALE * self.up(self.down(x))
        return out


def select_trained_part(model: nn.Module, settings: ModelSettings) -> nn.Module:
    """Return a model of which the part that settings name is trained.

    Args:
        model: The model, which is changed in place.
        settings: The rank of adapters, and whether the body is frozen.

    Returns:
        The model.

    Raises:
        InvalidArgument: If the model has no layer to adapt, or no last linear layer.
    """
    if settings.lora_rank is not None:
        add_adapters(model, settings.lora_rank)
    if settings.freeze_body:
        freeze_body(model)
    return model


def add_adapters(model: nn.Module, rank: int) -> None:
    """Freeze a model and add a low-rank adapter to each linear layer except the last one.

    Args:
        model: The model, which is changed in place.
        rank: Rank of each adapter, at least 1.

    Raises:
        InvalidArgument: If the model has no linear layer besides the last one.
    """
    head = last_layer(model)
    model.requires_grad_(False)
    adapted: dict[int, LowRankAdapter] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            sizes = None if child is None or child is head else _sizes(child)
            if child is None or sizes is None:
                continue
            if id(child) not in adapted:
                adapted[id(child)] = LowRankAdapter(child, *sizes, rank)
            setattr(parent, name, adapted[id(child)])
    if not adapted:
        given = f"{type(model).__name__} with rank {rank}"
        raise InvalidArgument("lora", given, "for a model with linear layers before its last one")


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Return the numbers of input and output features of a linear layer; None for others.

    A subclass is no such layer: others may read its weight and pass by the adapter.
    """
    if type(module) is nn.Linear:
        return module.in_features, module.out_features
    # A linear layer with a transposed weight, as in the transformers library's GPT-2.
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return int(inputs), int(outputs)
    return None


def freeze_body(model: nn.Module) -> None:
    """Freeze every parameter except those of the last linear layer.

    Args:
        model: The model, which is changed in place.

    Raises:
        InvalidArgument: If the model has no linear layer.
    """
    head = last_layer(model)
    if head is None:
        allowed = "for a model with a last linear layer, which it trains"
        raise InvalidArgument("freeze_body", type(model).__name__, allowed)
    model.requires_grad_(False)
    head.requires_grad_(True)


def last_layer(model: nn.Module) -> nn.Module | None:
    """Return the layer that makes the outputs.

    Args:
        model: Any model.

    Returns:
        What ``get_output_embeddings`` returns, if the model has it; else the last linear layer
        in the order of registration; None if there is none.
    """
    named = getattr(model, "get_output_embeddings", None)
    found = named() if callable(named) else None
    if isinstance(found, nn.Module):
        return found
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


def trained_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that are trained.

    Args:
        model: Any model.

    Returns:
        Names as in ``named_parameters``; one name for a tied parameter.
    """
    return frozenset(name for name, p in model.named_parameters() if p.requires_grad)


def fill_trained_part(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill the trained parameters of a model from a release that holds them alone.

    Args:
        model: The model, whose frozen part has its values already.
        tensors: The released tensors by name.

    Raises:
        ValueError: If names or shapes are not those of the trained parameters.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != tensors.keys():
        raise ValueError(f"the trained parameters are {sorted(parameters)[:3]} ...")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}")
            parameter.copy_(tensors[name])
