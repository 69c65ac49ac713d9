"""Warnings of measurements that cannot decide the policy in force, before they are made."""

from __future__ import annotations

from dpaudit.cli.printing import warn


def warn_of_low_confidence(confidence: float) -> None:
    """Warn if the gate would find a confidence too low by the policy of the working folder.

    Args:
        confidence: Joint confidence of the bounds or intervals that are measured.
    """
    from dpaudit.workflow.gate.policy_sources import demanded_confidence

    demanded = demanded_confidence()
    if demanded is None or confidence >= demanded[0]:
        return
    least, origin = demanded
    warn(
        f"dpaudit: warning: the policy ({origin}) demands a confidence of {least:g}: with "
        f"{confidence:g}, dpaudit gate is INCONCLUSIVE; repeat with --confidence {least:g}"
    )
