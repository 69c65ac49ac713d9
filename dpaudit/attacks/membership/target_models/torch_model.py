"""Torch modules as target models, and reading of their weights from files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.membership.output_signals import logits_from_batches
from dpaudit.files.regular_files import InputFile, read_bytes
from dpaudit.files.user_code import call_factory, call_user_function, import_object
from dpaudit.vocabulary.errors import InvalidArgument

RECORDS_PER_CALL = 2048


@dataclass(frozen=True)
class TorchModel:
    """A torch module or another callable from features to outputs.

    Attributes:
        call: From features, shape ``(records, ...)``, to outputs; in evaluation mode. Of several
            outputs, the first of shape ``(records, classes)`` is used.
        name: Name of the model in errors.
    """

    call: Callable[[Tensor], Any]
    name: str = "the model"

    def predict(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """Compute the logits of records, without gradients.

        Args:
            features: Shape ``(records, ...)``.

        Returns:
            Shape ``(records, classes)``.

        Raises:
            InvalidArgument: If no output has that shape.
            UserCodeError: If the model raises an error.
        """
        with torch.no_grad():
            parts = torch.split(torch.from_numpy(np.ascontiguousarray(features)), RECORDS_PER_CALL)
            return logits_from_batches([self._outputs(part) for part in parts])

    def _outputs(self, part: Tensor) -> NDArray[Any]:
        """Return the outputs of one batch; an error of the model names the shape of a record."""
        name = f"{self.name}, of records of shape {tuple(part.shape[1:])},"
        outputs: NDArray[Any] = call_user_function(name, self._read, part)
        return outputs

    def _read(self, part: Tensor) -> NDArray[Any]:
        """Call the model and copy its output; raise an error if it has no dense values."""
        found = self.call(part)
        for output in output_tensors(found):
            numbers = output.dtype != torch.bool and not output.is_complex()
            if output.ndim == 2 and len(output) == len(part) and numbers:
                wide = output if output.dtype == torch.float64 else output.float()
                return np.asarray(wide.detach().cpu())
        shapes = [(*output.shape, output.dtype) for output in output_tensors(found)]
        allowed = (
            f"a model with an output of numbers, of shape (records, classes), here ({len(part)}, "
            "...)"
        )
        raise InvalidArgument("checkpoint", f"outputs {shapes or type(found).__name__}", allowed)


def output_tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors among the outputs of a model.

    Args:
        outputs: A tensor, or a tuple, list or dict that may contain tensors.

    Yields:
        The tensor itself, or the tensors of the collection in order.
    """
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from (value for value in outputs.values() if isinstance(value, Tensor))
    elif isinstance(outputs, tuple | list):
        yield from (value for value in outputs if isinstance(value, Tensor))


# Weights in a file, and the factory that makes their module.

Weights = dict[str, Tensor]
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training checkpoints store the weights of a module."""


def load(source: InputFile, factory: str, shape: tuple[int, ...], classes: int) -> TorchModel:
    """Open a module with the weights of a .safetensors file.

    Args:
        source: The file.
        factory: ``package.module:function``, called with ``shape`` and ``classes``, or without
            arguments if it takes none.
        shape: Shape of the features of one record.
        classes: Number of classes.

    Returns:
        The module in evaluation mode.

    Raises:
        InvalidArgument: If there is no such factory, or the weights do not fit its module.
        UserCodeError: If the factory raises an error.
    """
    return _module_with_weights(source, factory, shape, classes, _safetensors_weights)


def load_state_dict(
    source: InputFile, factory: str, shape: tuple[int, ...], classes: int
) -> TorchModel:
    """Open a module with the weights of a file of ``torch.save(state_dict)``.

    The file is read with ``weights_only=True``, so none of its code runs.

    Args:
        source: The file.
        factory: ``package.module:function``, called with ``shape`` and ``classes``, or without
            arguments if it takes none.
        shape: Shape of the features of one record.
        classes: Number of classes.

    Returns:
        The module in evaluation mode.

    Raises:
        InvalidArgument: If there is no such factory, the weights do not fit its module, or the
            file contains more than weights.
        UserCodeError: If the factory raises an error.
    """
    return _module_with_weights(source, factory, shape, classes, _state_dict_weights)


def _module_with_weights(
    source: InputFile,
    factory: str,
    shape: tuple[int, ...],
    classes: int,
    weights_of: Callable[[bytes], Weights],
) -> TorchModel:
    """Make the module, read the weights and load them; ``weights_of`` parses the file."""
    allowed = "package.module:function that can be imported"
    module = call_factory(
        "model", factory, import_object("model", factory, allowed), shape, classes
    )
    if not isinstance(module, nn.Module):
        raise InvalidArgument("model", factory, "a function that returns a torch.nn.Module")
    content = read_bytes(source)
    try:
        weights = weights_of(content)
        _load_weights(module, weights)
    except Exception as error:  # of any type, from safetensors, pickle or torch
        raise InvalidArgument(
            "checkpoint", str(source.path), f"weights of {factory} ({_shortened(error)})"
        ) from error
    return TorchModel(module.eval(), f"model {factory}")


def _load_weights(module: nn.Module, weights: Weights) -> None:
    """Load weights into a module; the file may have one of several tied tensors."""
    missing, unexpected = module.load_state_dict(weights, strict=False)
    own = module.state_dict(keep_vars=True)
    given = {id(own[name]) for name in weights if name in own}
    missing = [name for name in missing if id(own[name]) not in given]
    if missing or unexpected:
        raise ValueError(f"missing tensors: {missing[:5]}; unexpected tensors: {unexpected[:5]}")


def _safetensors_weights(content: bytes) -> Weights:
    """Return the tensors of a .safetensors file."""
    return safetensors.torch.load(content)


def _state_dict_weights(content: bytes) -> Weights:
    """Return the state_dict in a file, or in a training checkpoint under a usual key."""
    found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    for name in CHECKPOINT_KEYS:
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError("it is no state_dict, which maps names to tensors")
    return found


def _shortened(error: Exception) -> str:
    """Return the beginning of an error; torch continues with advice to trust the file."""
    return " ".join(str(error).split())[:300]
