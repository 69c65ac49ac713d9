"""Operations that are made of others: written out, so that rules see their parts."""

from collections.abc import Callable
from typing import Any

from dpaudit.trainer.engine.decompositions import attention, recurrent

DECOMPOSITIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **attention.DECOMPOSITIONS,
    **recurrent.DECOMPOSITIONS,
}

__all__ = ["DECOMPOSITIONS"]
