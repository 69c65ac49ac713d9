"""Flower as the engine beyond one machine: an accountant, and a strategy with its own release.

``LedgerAccountant`` gives Flower's fixed-clipping strategies epsilon by PLD, and a ledger; it
needs no Flower. ``DPFedAvg`` is a Flower strategy that draws participants by coins, records each
release before its noise, and adds noise of a keystream. ``SecureDPFedAvg`` does so over secure
aggregation. Names that need Flower import it on use.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dpaudit.vocabulary import lazy_exports
from dpaudit.vocabulary.errors import MissingExtra

if TYPE_CHECKING:
    from dpaudit.trainer.federated.flower.accountant import LedgerAccountant
    from dpaudit.trainer.federated.flower.client import answer_participant
    from dpaudit.trainer.federated.flower.secure_client import join_secure_sum
    from dpaudit.trainer.federated.flower.secure_settings import SecureServerSettings
    from dpaudit.trainer.federated.flower.secure_strategy import SecureDPFedAvg
    from dpaudit.trainer.federated.flower.server import ServerSettings
    from dpaudit.trainer.federated.flower.strategy import DPFedAvg

__all__ = [
    "DPFedAvg",
    "LedgerAccountant",
    "SecureDPFedAvg",
    "SecureServerSettings",
    "ServerSettings",
    "answer_participant",
    "join_secure_sum",
]

_SOURCES = {
    "DPFedAvg": "strategy",
    "LedgerAccountant": "accountant",
    "SecureDPFedAvg": "secure_strategy",
    "SecureServerSettings": "secure_settings",
    "ServerSettings": "server",
    "answer_participant": "client",
    "join_secure_sum": "secure_client",
}
_NEEDS_FLOWER = ("DPFedAvg", "SecureDPFedAvg", "answer_participant", "join_secure_sum")

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    _attribute, __dir__ = lazy_exports(__name__, _SOURCES)

    def __getattr__(name: str) -> Any:
        """Import a public name on use; say which extra it needs."""
        if name in _NEEDS_FLOWER and find_spec("flwr") is None:
            raise MissingExtra("flwr", "federated")
        return _attribute(name)
