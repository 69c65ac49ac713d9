"""Opens a model file by what it is; the libraries of a kind are imported with it.

What a file is, is read in it: a suffix can lie. Whole programs of torch are run only on
request, and in a process of their own.
"""

from __future__ import annotations

from enum import Enum
from importlib import import_module
from pathlib import Path

from dpaudit.attacks.membership.models import Model
from dpaudit.files.archives import opened_zip
from dpaudit.files.opening import DATA, InputFile, opened
from dpaudit.vocabulary.errors import InvalidArgument

HERE = "dpaudit.attacks.membership.models"
BUILT_IN = ("auto", "linear", "mlp", "cnn", "scattering")
"""What ``--model`` names for reference models: none is a factory of given weights."""

WAYS_OUT = (
    "save the weights by safetensors.torch.save_model, or torch.save(model.state_dict(), ...), "
    "and give --model package.module:factory; or export to ONNX"
)


class Kind(Enum):
    """Kinds of model files."""

    SAFETENSORS = "safetensors"
    STATE_DICT = "weights that torch.save wrote"
    SCRIPT = "a TorchScript program"
    EXPORT = "a torch.export program"
    ONNX = "onnx"
    SKOPS = "skops"


BY_SUFFIX = {
    ".safetensors": Kind.SAFETENSORS,
    ".onnx": Kind.ONNX,
    ".skops": Kind.SKOPS,
    ".pt": Kind.STATE_DICT,
    ".pth": Kind.STATE_DICT,
    ".bin": Kind.STATE_DICT,
    ".ckpt": Kind.STATE_DICT,
    ".pt2": Kind.EXPORT,
    ".torchscript": Kind.SCRIPT,
}
"""Of files that are no zip archives; what torch wrote before it used these are pickles."""

PROGRAMS = (Kind.SCRIPT, Kind.EXPORT)


def open_model(
    path: Path,
    *,
    factory: str | None,
    shape: tuple[int, ...],
    classes: int,
    trust_model_code: bool = False,
) -> Model:
    """Return the model in ``path``.

    Args:
        path: A file of weights (.safetensors, or ``torch.save`` of a state_dict), .onnx,
            .skops, or a program of TorchScript or torch.export.
        factory: ``package.module:function`` of the module that weights belong to; the other
            kinds are whole, and need none.
        shape: Of one record.
        classes: How many there are.
        trust_model_code: Whether a program may be run, in a process of its own with limits.

    Raises:
        InvalidArgument: no such file, no such kind, or a program that is not trusted.
        UserCodeError: the factory raised an error.
        MissingExtra: the kind needs a library that is not installed.
    """
    source = InputFile(path, "checkpoint", DATA)
    kind = kind_of(source)
    if kind in PROGRAMS:
        if not trust_model_code:
            raise InvalidArgument(
                "checkpoint", str(path), f"no program, and it is {kind.value}, which runs code: "
                f"{WAYS_OUT}; or let it run in a process with limits: --trust-model-code "
                "(trust_model_code=True)",
            )  # fmt: skip
        program: Model = import_module(f"{HERE}.program").load(source, kind is Kind.SCRIPT)
        return program
    if kind in (Kind.SAFETENSORS, Kind.STATE_DICT):
        if factory is None or factory in BUILT_IN:
            allowed = (
                f"package.module:function, given by --model: {path} holds weights without their "
                "module, such as a state_dict"
            )
            raise InvalidArgument("model", factory, allowed)
        function = "load" if kind is Kind.SAFETENSORS else "load_state_dict"
        module = import_module(f"{HERE}.weights")
        weights: Model = getattr(module, function)(source, factory, shape, classes)
        return weights
    name = "onnx_file" if kind is Kind.ONNX else "estimator"
    model: Model = import_module(f"{HERE}.{name}").load(source)
    return model


def kind_of(source: InputFile) -> Kind:
    """Return what a model file is.

    An archive that could be two kinds counts as the one that runs more.

    Raises:
        InvalidArgument: It cannot be opened, or is of no known kind.
    """
    with opened(source) as file:
        begin = file.read(4)
    if begin != b"PK\x03\x04":
        if source.path.suffix not in BY_SUFFIX:
            allowed = f"a file of kind {', '.join(BY_SUFFIX)}"
            raise InvalidArgument("checkpoint", str(source.path), allowed)
        return BY_SUFFIX[source.path.suffix]
    with opened_zip(source) as archive:
        names = {name.partition("/")[2] or name: name for name in archive.namelist()}
        whole = set(archive.namelist())
    return _kind_of_archive(source, set(names) | whole)


def _kind_of_archive(source: InputFile, names: set[str]) -> Kind:
    models = any(name.startswith("models/") and name.endswith(".json") for name in names)
    if models or names & {"archive_format", "serialized_exported_program.json"}:
        return Kind.EXPORT
    if names & {"constants.pkl", "bytecode.pkl"} or any(n.startswith("code/") for n in names):
        return Kind.SCRIPT
    if "data.pkl" in names:
        return Kind.STATE_DICT
    if "schema.json" in names:
        return Kind.SKOPS
    allowed = "an archive of torch.save, TorchScript, torch.export or skops"
    raise InvalidArgument("checkpoint", str(source.path), allowed)
