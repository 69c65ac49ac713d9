"""Opening of model files: the format is detected, and its library imported on use.

The content of an archive decides its format, because a suffix can be wrong. Programs of torch run
only on request, and in a process with limits.
"""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from pathlib import Path

from dpaudit.attacks.membership.target_models import TargetModel
from dpaudit.files.archives import open_zip
from dpaudit.files.regular_files import DATA_LIMIT, InputFile, open_input
from dpaudit.vocabulary.errors import InvalidArgument

PACKAGE = "dpaudit.attacks.membership.target_models"
BUILT_IN_MODELS = ("auto", "linear", "mlp", "cnn", "scattering")
"""Values of ``--model`` for reference models; none is a factory for the weights of a file."""

EXPORT_REMEDY = (
    "save the weights by safetensors.torch.save_model, or torch.save(model.state_dict(), ...), "
    "and give --model package.module:factory; or export to ONNX"
)


class ModelFormat(Enum):
    """Formats of model files; values are text for messages."""

    SAFETENSORS = "safetensors"
    STATE_DICT = "weights that torch.save wrote"
    SCRIPT = "a TorchScript program"
    EXPORT = "a torch.export program"
    ONNX = "onnx"
    SKOPS = "skops"


FORMAT_BY_SUFFIX = {
    ".safetensors": ModelFormat.SAFETENSORS,
    ".onnx": ModelFormat.ONNX,
    ".skops": ModelFormat.SKOPS,
    ".pt": ModelFormat.STATE_DICT,
    ".pth": ModelFormat.STATE_DICT,
    ".bin": ModelFormat.STATE_DICT,
    ".ckpt": ModelFormat.STATE_DICT,
    ".pt2": ModelFormat.EXPORT,
    ".torchscript": ModelFormat.SCRIPT,
}
"""Formats of files that are no zip archives; torch files before version 1.6 are pickles."""

PROGRAM_FORMATS = (ModelFormat.SCRIPT, ModelFormat.EXPORT)


def open_model(
    path: Path,
    *,
    factory: str | None,
    shape: tuple[int, ...],
    classes: int,
    trust_model_code: bool = False,
) -> TargetModel:
    """Open a model file as a target model.

    Args:
        path: A file of weights (.safetensors, or ``torch.save`` of a state_dict), .onnx,
            .skops, or a program of TorchScript or torch.export.
        factory: ``package.module:function`` that makes the module for the weights. Other
            formats contain the whole model and ignore it.
        shape: Shape of the features of one record.
        classes: Number of classes.
        trust_model_code: Whether a program may run, in a process with limits.

    Returns:
        The target model. A program or an ONNX model has a process that ends with this object.

    Raises:
        InvalidArgument: If the file is missing or of no known format, does not fit the factory,
            or is a program that is not trusted.
        UserCodeError: If the factory raises an error.
        MissingExtra: If the library of the format is not installed.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "weights.pt"
        ...     torch.save(torch.nn.Softmax(dim=1).state_dict(), path)
        ...     model = open_model(path, factory="torch.nn:Softmax", shape=(3,), classes=3)
        >>> type(model).__name__
        'TorchModel'
    """
    source = InputFile(path, "checkpoint", DATA_LIMIT)
    kind = detect_format(source)
    if kind in PROGRAM_FORMATS:
        if not trust_model_code:
            raise InvalidArgument(
                "checkpoint", str(path), f"no program; it is {kind.value}, which runs code: "
                f"{EXPORT_REMEDY}; or run it in a process with limits: --trust-model-code "
                "(trust_model_code=True)",
            )  # fmt: skip
        program: TargetModel = import_module(f"{PACKAGE}.torch_program").load(
            source, kind is ModelFormat.SCRIPT
        )
        return program
    if kind in (ModelFormat.SAFETENSORS, ModelFormat.STATE_DICT):
        if factory is None or factory in BUILT_IN_MODELS:
            allowed = (
                f"package.module:function, given by --model: {path} holds weights without their "
                "module, such as a state_dict"
            )
            raise InvalidArgument("model", factory, allowed)
        function = "load" if kind is ModelFormat.SAFETENSORS else "load_state_dict"
        module = import_module(f"{PACKAGE}.torch_model")
        weights: TargetModel = getattr(module, function)(source, factory, shape, classes)
        return weights
    name = "onnx_model" if kind is ModelFormat.ONNX else "sklearn_model"
    model: TargetModel = import_module(f"{PACKAGE}.{name}").load(source)
    return model


def detect_format(source: InputFile) -> ModelFormat:
    """Detect the format of a model file.

    A zip archive is detected by its members, another file by its suffix. An archive that fits two
    formats gets the one that runs more code.

    Args:
        source: The file.

    Returns:
        Its format.

    Raises:
        InvalidArgument: If the file cannot be opened, or has no known format.
    """
    with open_input(source) as file:
        begin = file.read(4)
    if begin != b"PK\x03\x04":
        if source.path.suffix not in FORMAT_BY_SUFFIX:
            allowed = f"a file of kind {', '.join(FORMAT_BY_SUFFIX)}"
            raise InvalidArgument("checkpoint", str(source.path), allowed)
        return FORMAT_BY_SUFFIX[source.path.suffix]
    with open_zip(source) as archive:
        # torch puts all members into one folder: its name is dropped.
        names = {name.partition("/")[2] or name: name for name in archive.namelist()}
        whole = set(archive.namelist())
    return _archive_format(source, set(names) | whole)


def _archive_format(source: InputFile, names: set[str]) -> ModelFormat:
    """Return the format of a zip archive; formats that run code are tested first."""
    models = any(name.startswith("models/") and name.endswith(".json") for name in names)
    if models or names & {"archive_format", "serialized_exported_program.json"}:
        return ModelFormat.EXPORT
    if names & {"constants.pkl", "bytecode.pkl"} or any(n.startswith("code/") for n in names):
        return ModelFormat.SCRIPT
    if "data.pkl" in names:
        return ModelFormat.STATE_DICT
    if "schema.json" in names:
        return ModelFormat.SKOPS
    allowed = "an archive of torch.save, TorchScript, torch.export or skops"
    raise InvalidArgument("checkpoint", str(source.path), allowed)
