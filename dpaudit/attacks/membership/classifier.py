"""The attack classifier: learn from shadow models what a model says of its own records.

Source: Shokri et al. 2017, arXiv:1610.05820, section V; one classifier that sees the label
in place of one for each class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpaudit.attacks.membership.scores import RecordScores
from dpaudit.vocabulary.errors import InvalidArgument, MissingExtra

try:
    from sklearn.ensemble import HistGradientBoostingClassifier
except ImportError as error:  # pragma: no cover - needs an environment without scikit-learn
    raise MissingExtra("scikit-learn", "train") from error

MOST_ROWS = 100_000  # more teach the classifier nothing that is worth the time


def attack_classifier(
    outputs: NDArray[np.float32],
    shadow_outputs: NDArray[np.float32],
    shadow_member: NDArray[np.bool_],
    *,
    seed: int,
) -> RecordScores:
    """Score by the log-odds of a classifier that was trained on shadow models.

    Args:
        outputs: What the target says of each record, shape ``(records, features)``, as of
            ``confidence.features_for_classifier``.
        shadow_outputs: What the shadow models say, shape ``(models, records, features)``.
        shadow_member: What they trained on, shape ``(models, records)``.
        seed: Of the classifier, and of the rows that it is trained on.

    Raises:
        InvalidArgument: shapes that do not fit, or shadow models that trained on all records,
            or on none.
    """
    if shadow_outputs.shape[1:] != outputs.shape or shadow_member.shape != shadow_outputs.shape[:2]:
        given = f"shapes {outputs.shape}, {shadow_outputs.shape}, {shadow_member.shape}"
        raise InvalidArgument("shadow_outputs", given, "of the target's records and features")
    rows, member = shadow_outputs.reshape(-1, outputs.shape[1]), shadow_member.reshape(-1)
    if member.all() or not member.any():
        raise InvalidArgument("shadow_member", f"all {member[0]}", "both members and non-members")
    chosen = np.random.default_rng(seed).permutation(len(rows))[:MOST_ROWS]
    model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(rows[chosen], member[chosen])
    return RecordScores(np.asarray(model.decision_function(outputs), dtype=np.float64))
