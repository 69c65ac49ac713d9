"""Opens a model file by its kind; the libraries of a kind are imported with it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from dpaudit.attacks.membership.models import Model
from dpaudit.vocabulary.errors import InvalidArgument

HERE = "dpaudit.attacks.membership.models"
KINDS = {
    ".pt": ("exported", "load_script"),
    ".torchscript": ("exported", "load_script"),
    ".pt2": ("exported", "load_export"),
    ".onnx": ("onnx_file", "load"),
    ".skops": ("estimator", "load"),
}
"""By suffix: the module that reads it, and its function."""


def open_model(path: Path, *, factory: str | None, shape: tuple[int, ...], classes: int) -> Model:
    """Return the model in ``path``.

    Args:
        path: A .safetensors, .pt, .torchscript, .pt2, .onnx or .skops file.
        factory: ``package.module:function`` of the module that the weights of a .safetensors
            belong to; the other kinds are whole, and need none.
        shape: Of one record.
        classes: How many there are.

    Raises:
        InvalidArgument: no such file, no such kind, or not what its suffix says.
        MissingExtra: the kind needs a library that is not installed.
    """
    if not path.is_file():
        raise InvalidArgument("checkpoint", str(path), "a file that exists")
    if path.suffix == ".safetensors":
        if factory is None:
            raise InvalidArgument("model", factory, "package.module:function for these weights")
        weights: Model = import_module(f"{HERE}.weights").load(path, factory, shape, classes)
        return weights
    if path.suffix not in KINDS:
        allowed = f"a file of kind .safetensors, {', '.join(KINDS)}"
        raise InvalidArgument("checkpoint", str(path), allowed)
    module, function = KINDS[path.suffix]
    model: Model = getattr(import_module(f"{HERE}.{module}"), function)(path)
    return model
