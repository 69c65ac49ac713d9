"""Whole torch programs: TorchScript archives and what torch.export saved."""

from __future__ import annotations

from pathlib import Path

import torch

from dpaudit.attacks.membership.models.module import Module
from dpaudit.attacks.membership.models.plain_archive import require_plain
from dpaudit.vocabulary.errors import InvalidArgument


def load_script(path: Path) -> Module:
    """Return a TorchScript archive, in evaluation mode.

    Raises:
        InvalidArgument: it cannot be read as one.
    """
    try:
        script = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # torch raises RuntimeError, and others of its own
        raise InvalidArgument("checkpoint", str(path), f"TorchScript ({error})") from error
    return Module(script.eval())


def load_export(path: Path) -> Module:
    """Return a program of ``torch.export.save``; it runs in the mode that it was exported in.

    Raises:
        InvalidArgument: it cannot be read as one, or could run code.
    """
    require_plain(path)
    try:
        program = torch.export.load(str(path))
    except Exception as error:  # torch raises RuntimeError, and others of its own
        allowed = f"a program of torch.export ({error})"
        raise InvalidArgument("checkpoint", str(path), allowed) from error
    return Module(program.module())
