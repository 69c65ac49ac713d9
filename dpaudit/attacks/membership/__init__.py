"""Membership inference: was this record trained on? Larger scores always mean member.

Attacks are pure functions of what models say of records (``confidence``), one file each; they
return ``RecordScores``. ``evaluate`` says how well scores tell members from non-members.
Reference models are trained by ``shadows`` and asked by ``signals``, which need torch.
"""

from importlib import import_module
from typing import Any

from dpaudit.attacks.membership.calibrated import calibrated
from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.halves import halves
from dpaudit.attacks.membership.label_only import label_only
from dpaudit.attacks.membership.lira import lira_offline, lira_online
from dpaudit.attacks.membership.loss import by_loss, loss_threshold
from dpaudit.attacks.membership.references import References
from dpaudit.attacks.membership.rmia import rmia_offline, rmia_online
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores, pooled

__all__ = [
    "MembershipScores",
    "RecordScores",
    "References",
    "by_loss",
    "calibrated",
    "evaluate",
    "halves",
    "label_only",
    "lira_offline",
    "lira_online",
    "loss_threshold",
    "pooled",
    "rmia_offline",
    "rmia_online",
]

_HEAVY = {
    "attack_classifier": "classifier",
    "quantile_regression": "quantile",
    "train_references": "shadows",
    "signals_of": "signals",
    "open_model": "models.opening",
}


def __getattr__(name: str) -> Any:
    """Import what needs scikit-learn or torch only when it is used."""
    if name not in _HEAVY:
        raise AttributeError(f"{__name__} has no {name!r}")
    return getattr(import_module(f"{__name__}.{_HEAVY[name]}"), name)
