"""Membership inference: attacks that decide whether a model was trained on a record.

A larger score always means member. An attack is a pure function of the outputs of models
(``output_signals``) and returns ``RecordScores``. ``evaluate`` computes how well scores
distinguish members from non-members.

``reference_training`` trains reference (shadow) models and ``model_stacks`` computes their
outputs; both need torch. ``learned_attacks`` needs scikit-learn. Names from these modules and
``open_model`` are imported on first use.
"""

from typing import TYPE_CHECKING

from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.output_attacks import (
    calibrated_loss,
    label_only_scores,
    loss_scores,
    loss_threshold,
)
from dpaudit.attacks.membership.reference_attacks import (
    lira_offline,
    lira_online,
    rmia_offline,
    rmia_online,
)
from dpaudit.attacks.membership.reference_models import ReferenceConfidences, random_halves
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores, pool_scores
from dpaudit.attacks.membership.upload_attacks import (
    gradient_alignment_scores,
    gradient_regression_scores,
    loss_difference_scores,
)
from dpaudit.vocabulary import lazy_exports

if TYPE_CHECKING:
    from dpaudit.attacks.membership.learned_attacks import attack_classifier, quantile_regression
    from dpaudit.attacks.membership.reference_training import model_signals, train_references
    from dpaudit.attacks.membership.target_models.model_files import open_model

__all__ = [
    "MembershipScores",
    "RecordScores",
    "ReferenceConfidences",
    "attack_classifier",
    "calibrated_loss",
    "evaluate",
    "gradient_alignment_scores",
    "gradient_regression_scores",
    "label_only_scores",
    "lira_offline",
    "lira_online",
    "loss_difference_scores",
    "loss_scores",
    "loss_threshold",
    "model_signals",
    "open_model",
    "pool_scores",
    "quantile_regression",
    "random_halves",
    "rmia_offline",
    "rmia_online",
    "train_references",
]

_SOURCES = {
    "attack_classifier": "learned_attacks",
    "quantile_regression": "learned_attacks",
    "train_references": "reference_training",
    "model_signals": "reference_training",
    "open_model": "target_models.model_files",
}

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    __getattr__, __dir__ = lazy_exports(__name__, _SOURCES)
