"""Black-box audits of the final model: many models, with and without one target record.

An auditor trains pairs of models, one without and one with the target record, and reads the
outputs of each final model on one query. Each model is an independent trial, so the bounds are
certified for any training procedure. ``scored_trials`` computes them from the outputs. The other
modules need torch: ``target_records`` chooses the record and the query, and
``attacks.membership.private_training`` trains many models at once.

The workflow ``dpaudit.workflow.audit.final_model`` runs such an audit and resumes it.
"""

from dpaudit.attacks.final_model.scored_trials import (
    FINAL_MODEL_AUDITS,
    OutputView,
    TrialOutputs,
    attainable_epsilon,
    audit_trials,
    planned_audits,
    published_estimate,
    trial_statistics,
)

__all__ = [
    "FINAL_MODEL_AUDITS",
    "OutputView",
    "TrialOutputs",
    "attainable_epsilon",
    "audit_trials",
    "planned_audits",
    "published_estimate",
    "trial_statistics",
]
