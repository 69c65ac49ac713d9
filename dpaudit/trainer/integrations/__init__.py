"""Adapters: private steps inside the training loops of other libraries.

Each needs an extra of its name, and imports its library on use:

- ``PrivateTrainer`` for Hugging Face ``Trainer``: extra ``hugging-face``;
- ``prepare_private`` for Accelerate: extra ``accelerate``;
- ``PrivateModule`` for Lightning: extra ``lightning``.

Models sharded by ``fully_shard`` and adapters of peft need none: ``make_private`` takes both.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dpaudit.vocabulary import lazy_exports
from dpaudit.vocabulary.errors import MissingExtra

if TYPE_CHECKING:
    from dpaudit.trainer.integrations.accelerate_loop import AcceleratedPrivate, prepare_private
    from dpaudit.trainer.integrations.hugging_face import PrivateTrainer
    from dpaudit.trainer.integrations.lightning_module import PrivateModule

__all__ = ["AcceleratedPrivate", "PrivateModule", "PrivateTrainer", "prepare_private"]

_SOURCES = {
    "AcceleratedPrivate": "accelerate_loop",
    "PrivateModule": "lightning_module",
    "PrivateTrainer": "hugging_face",
    "prepare_private": "accelerate_loop",
}
_EXTRAS = {
    "accelerate_loop": ("accelerate", ("accelerate",)),
    "hugging_face": ("hugging-face", ("transformers", "accelerate")),
    "lightning_module": ("lightning", ("lightning",)),
}
"""Extra and libraries of each module."""

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    _import_name, __dir__ = lazy_exports(__name__, _SOURCES)

    def __getattr__(name: str) -> Any:
        """Return a public name; refuse one whose library is not installed."""
        extra, libraries = _EXTRAS.get(_SOURCES.get(name, ""), ("", ()))
        for library in libraries:
            if find_spec(library) is None:
                raise MissingExtra(library, extra)
        return _import_name(name)
