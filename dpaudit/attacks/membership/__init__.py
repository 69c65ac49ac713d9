"""Membership inference: attacks that decide whether a model was trained on a record.

A larger score always means member. An attack is a pure function of the outputs of models
(``output_signals``) and returns ``RecordScores``. ``evaluate`` computes how well scores
distinguish members from non-members.

``reference_training`` trains reference (shadow) models and ``model_stacks`` computes their
outputs; both need torch. ``learned_attacks`` and ``attribute_inference`` need scikit-learn. Names
from these modules and ``open_model`` are imported on first use.
"""

from typing import TYPE_CHECKING

from dpaudit.attacks.membership.augmented_queries import mean_over_queries, query_copies
from dpaudit.attacks.membership.confidence_laws import predictive_law, published_law
from dpaudit.attacks.membership.evaluation import evaluate
from dpaudit.attacks.membership.lira import lira_offline, lira_online
from dpaudit.attacks.membership.loss_tail import loss_tail_rate
from dpaudit.attacks.membership.normality import normality_diagnostics
from dpaudit.attacks.membership.output_attacks import (
    calibrated_loss,
    label_only_scores,
    loss_scores,
    loss_threshold,
)
from dpaudit.attacks.membership.record_risk import record_risks
from dpaudit.attacks.membership.reference_models import ReferenceConfidences, random_halves
from dpaudit.attacks.membership.regression_signals import regression_confidence
from dpaudit.attacks.membership.rmia import (
    base_offline,
    base_online,
    informia_offline,
    informia_online,
    rmia_offline,
    rmia_online,
    tune_offline_scale,
)
from dpaudit.attacks.membership.scores import MembershipScores, RecordScores, pool_scores
from dpaudit.attacks.membership.slices import evaluate_slices
from dpaudit.attacks.membership.upload_attacks import (
    gradient_alignment_scores,
    gradient_regression_scores,
    loss_difference_scores,
)
from dpaudit.vocabulary import lazy_exports

if TYPE_CHECKING:
    from dpaudit.attacks.membership.attribute_inference import (
        InferenceCase,
        infer_feature,
        infer_labels,
    )
    from dpaudit.attacks.membership.learned_attacks import (
        attack_classifier,
        quantile_regression,
        tune_quantile_regression,
    )
    from dpaudit.attacks.membership.reference_training import model_signals, train_references
    from dpaudit.attacks.membership.target_models.model_files import open_model

__all__ = [
    "InferenceCase",
    "MembershipScores",
    "RecordScores",
    "ReferenceConfidences",
    "attack_classifier",
    "base_offline",
    "base_online",
    "calibrated_loss",
    "evaluate",
    "evaluate_slices",
    "gradient_alignment_scores",
    "gradient_regression_scores",
    "infer_feature",
    "infer_labels",
    "informia_offline",
    "informia_online",
    "label_only_scores",
    "lira_offline",
    "lira_online",
    "loss_difference_scores",
    "loss_scores",
    "loss_tail_rate",
    "loss_threshold",
    "mean_over_queries",
    "model_signals",
    "normality_diagnostics",
    "open_model",
    "pool_scores",
    "predictive_law",
    "published_law",
    "quantile_regression",
    "query_copies",
    "random_halves",
    "record_risks",
    "regression_confidence",
    "rmia_offline",
    "rmia_online",
    "train_references",
    "tune_offline_scale",
    "tune_quantile_regression",
]

_SOURCES = {
    "InferenceCase": "attribute_inference",
    "infer_feature": "attribute_inference",
    "infer_labels": "attribute_inference",
    "tune_quantile_regression": "learned_attacks",
    "attack_classifier": "learned_attacks",
    "quantile_regression": "learned_attacks",
    "train_references": "reference_training",
    "model_signals": "reference_training",
    "open_model": "target_models.model_files",
}

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    __getattr__, __dir__ = lazy_exports(__name__, _SOURCES)
