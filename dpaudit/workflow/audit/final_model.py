"""Black-box audits of any trainer: train models with and without a record, and bound epsilon."""

from __future__ import annotations

import warnings
from pathlib import Path

from dpaudit.attacks.final_model import (
    OutputView,
    TrialOutputs,
    attainable_epsilon,
    audit_trials,
)
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.errors import InvalidArgument, require_count, require_open_unit
from dpaudit.vocabulary.rounding import round_down, round_up
from dpaudit.vocabulary.settings import Progress
from dpaudit.workflow.audit.final_model_trials import (
    OneByOne,
    PairTrainer,
    TrainModel,
    TrialFiles,
    TrialPlan,
    fix_data,
    fix_plan,
    refutation_of,
    train_trials,
)
from dpaudit.workflow.audit.trainer_data import (
    TrainerData,
    digest_trainer_data,
    require_outside_data,
)

MOST_PAIRS_TRIED = 4096
"""Pairs of models up to which a sufficient number is looked for."""


def audit_final_model(
    train: TrainModel,
    *,
    target_label: int,
    folder: Path | str,
    models: int = 200,
    delta: float = 1e-5,
    confidence: float = 0.95,
    claim_epsilon: float | None = None,
    outputs: OutputView = OutputView.LOGITS,
    stop_when_refuted: bool = False,
    settings: dict[str, str] | None = None,
    trainer_data: TrainerData = (),
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a training procedure by the final models that it gives with and without a record.

    Every model must be trained independently: data, target record and query are fixed, all other
    randomness comes from the seed. An interrupted audit resumes when it is called again.

    Args:
        train: Trains one model from ``(with_record, seed)``, and returns its logits on the query,
            shape ``(classes,)``.
        target_label: The class of the target record.
        folder: Folder of the outputs of finished models; it is made if it is missing.
        models: Number of models, half of them with the record; even, at least 4.
        delta: The delta of the bounds, in (0, 1).
        confidence: Probability with which all bounds hold together, in (0, 1).
        claim_epsilon: The claim to test, in nats; None: nothing is claimed.
        outputs: What is read of each model: logits, or the predicted class alone.
        stop_when_refuted: Whether to stop as soon as the claim is refuted. Then one bound is
            computed, which is valid at any stopping time.
        settings: Further settings that a resumed audit must share, as text by name.
        trainer_data: Arrays and paths of what ``train`` reads. A resumed audit must have the same.
        progress: Receives each finished model.

    Returns:
        Certified lower bounds for add-or-remove-one neighbors, and one that is conditional on a
        Gaussian trade-off curve.

    Raises:
        InvalidArgument: If an argument is out of range, or ``folder`` holds an audit of other
            settings or data.
        IntegrityError: If a file in ``folder`` is broken.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> def train(with_record, seed):  # a model that reveals its record
        ...     noise = np.random.default_rng(seed).normal(size=2)
        ...     return noise + np.array([6.0, 0.0]) * with_record
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = audit_final_model(train, target_label=0, folder=folder, models=100)
        >>> report.bounds[0].kind.value, report.bounds[0].epsilon_lower > 1
        ('certified', True)
    """
    require_open_unit("confidence", confidence)
    require_models(models)
    if stop_when_refuted and claim_epsilon is None:
        raise InvalidArgument("stop_when_refuted", True, "given together with claim_epsilon")
    data_digest = digest_trainer_data(trainer_data)
    require_outside_data(Path(folder), trainer_data)
    files = TrialFiles.within(Path(folder))
    fixed = {"label": str(target_label), "outputs": outputs.value, **(settings or {})}
    plan = fix_plan(files, pairs=models // 2, settings=fixed, stops_early=stop_when_refuted)
    plan = fix_data(files, plan, data_digest)
    trainer = OneByOne(train, target_label)
    trials = train_planned(
        trainer, files, plan, claim_epsilon, delta, confidence, outputs, progress
    )
    found = audit_trials(
        trials,
        delta=delta,
        confidence=confidence,
        view=outputs,
        stops_early=stop_when_refuted,
        claimed_epsilon=claim_epsilon,
    )
    return AuditReport(
        ledger_head="", confidence=confidence, bounds=found, membership=(), files=files.digests
    )


def require_models(models: int) -> None:
    """Raise an error unless a number of models has pairs, one without and one with the record.

    Args:
        models: Number of models.

    Raises:
        InvalidArgument: If it is odd, or below 4.
    """
    require_count("models", models, least=4)
    if models % 2:
        raise InvalidArgument("models", models, "an even number: half of them have the record")


def train_planned(
    trainer: PairTrainer,
    files: TrialFiles,
    plan: TrialPlan,
    claimed_epsilon: float | None,
    delta: float,
    confidence: float,
    view: OutputView,
    progress: Progress | None,
) -> TrialOutputs:
    """Train the missing models, and stop early if the plan says so.

    Args:
        trainer: Trains the models.
        files: Where plan and outputs are.
        plan: The fixed plan.
        claimed_epsilon: The claim, in nats; None: nothing is claimed.
        delta: The delta of the claim.
        confidence: Probability with which a true claim is never refuted.
        view: What is read of each model.
        progress: Receives each finished model.

    Returns:
        The outputs of all models.
    """
    _warn_of_few_models(plan, claimed_epsilon, delta, confidence)
    if claimed_epsilon is None or not plan.stops_early:
        return train_trials(trainer, files, plan, progress=progress)
    refutes = refutation_of(claimed_epsilon, delta=delta, confidence=confidence, view=view)
    return train_trials(trainer, files, plan, refutes=refutes, progress=progress)


def _warn_of_few_models(
    plan: TrialPlan, claimed_epsilon: float | None, delta: float, confidence: float
) -> None:
    """Warn before training if no outputs of so many models could refute the claim."""
    needed = 0.0 if claimed_epsilon is None else claimed_epsilon
    most = attainable_epsilon(
        plan.pairs, delta=delta, confidence=confidence, stops_early=plan.stops_early
    )
    if most > needed:
        return
    what = (
        "so they certify nothing"
        if claimed_epsilon is None
        else f"so they cannot refute the claimed epsilon of {round_up(claimed_epsilon)}"
    )
    warnings.warn(
        f"{2 * plan.pairs} models certify an epsilon of at most {round_down(most)} at confidence "
        f"{confidence:g}, even if their outputs reveal the record without an error, {what}: "
        f"{_enough_models(plan, needed, delta, confidence)}",
        stacklevel=3,
    )


def _enough_models(plan: TrialPlan, epsilon: float, delta: float, confidence: float) -> str:
    """Return a number of models that could certify more than an epsilon."""
    pairs = plan.pairs
    while pairs < MOST_PAIRS_TRIED:
        pairs = min(2 * pairs, MOST_PAIRS_TRIED)
        if epsilon < attainable_epsilon(
            pairs, delta=delta, confidence=confidence, stops_early=plan.stops_early
        ):
            return f"plan {2 * pairs} models or more"
    return f"more than {2 * MOST_PAIRS_TRIED} models are needed"
