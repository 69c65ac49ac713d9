"""Refuses programs of torch.export that hold more than numbers and a graph.

torch unpickles what such an archive marks as pickled, and loads native code from it: either
could run anything. What is left here is JSON, raw tensors, and sample inputs that torch's
restricted unpickler reads.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import torch

from dpaudit.vocabulary.errors import DpauditError, InvalidArgument

PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/\w+\.json"
    r"|data/weights/(weight_\d+|\w+_config\.json)"
    r"|data/constants/(tensor_\d+|\w+_config\.json)"
    r"|data/sample_inputs/\w+\.pt"
)


def require_plain(path: Path) -> None:
    """Refuse an archive from which loading could run code.

    Raises:
        InvalidArgument: names what it holds beside numbers and a graph, or is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) < len(names):
                raise InvalidArgument("checkpoint", str(path), "an archive without double names")
            for name in names:
                _require_plain(name.partition("/")[2], archive.read(name))
    except DpauditError:
        raise
    except Exception as error:  # zip, json, torch: whatever a broken file brings
        allowed = f"a plain program of torch.export ({error})"
        raise InvalidArgument("checkpoint", str(path), allowed) from error


def _require_plain(name: str, content: bytes) -> None:
    pickled = name.endswith("_config.json") and any(
        entry["use_pickle"] is not False for entry in json.loads(content)["config"].values()
    )
    if pickled or not PLAIN.fullmatch(name):
        allowed = "a program of torch.export without pickled objects or native code"
        raise InvalidArgument("checkpoint", name, allowed)
    if name.endswith(".pt") and content:
        torch.load(io.BytesIO(content), weights_only=True)
