"""Black-box audits of any trainer: train models with and without a record, and bound epsilon."""

from __future__ import annotations

from pathlib import Path

from dpaudit.attacks.final_model import OutputView, TrialOutputs, audit_trials
from dpaudit.vocabulary.audit import AuditReport
from dpaudit.vocabulary.errors import InvalidArgument, require_open_unit
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
from dpaudit.workflow.audit.trainer_data import TrainerData, digest_trainer_data


def audit_final_model(
    train: TrainModel,
    *,
    label: int,
    folder: Path | str,
    pairs: int = 100,
    delta: float = 1e-5,
    confidence: float = 0.95,
    claimed_epsilon: float | None = None,
    outputs: OutputView = OutputView.LOGITS,
    stops_early: bool = False,
    settings: dict[str, str] | None = None,
    data: TrainerData = (),
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a training procedure by the final models that it gives with and without a record.

    Every model must be trained independently: data, target record and query are fixed, all other
    randomness comes from the seed. An interrupted audit resumes when it is called again.

    Args:
        train: Trains one model from ``(with_record, seed)``, and returns its logits on the query,
            shape ``(classes,)``.
        label: The class of the target record.
        folder: Folder of the outputs of finished models; it is made if it is missing.
        pairs: Number of pairs of models, one without and one with the record.
        delta: The delta of the bounds, in (0, 1).
        confidence: Probability with which all bounds hold together, in (0, 1).
        claimed_epsilon: The claim to test, in nats; None: nothing is claimed.
        outputs: What is read of each model: logits, or the predicted class alone.
        stops_early: Whether to stop as soon as the claim is refuted. Then one bound is computed,
            which is valid at any stopping time.
        settings: Further settings that a resumed audit must share, as text by name.
        data: Arrays and paths of what ``train`` reads. A resumed audit must have the same.
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
        ...     report = audit_final_model(train, label=0, folder=folder, pairs=50)
        >>> report.bounds[0].kind.value, report.bounds[0].epsilon_lower > 1
        ('certified', True)
    """
    require_open_unit("confidence", confidence)
    if stops_early and claimed_epsilon is None:
        raise InvalidArgument("stops_early", True, "given together with a claimed epsilon")
    files = TrialFiles.within(Path(folder))
    fixed = {"label": str(label), "outputs": outputs.value, **(settings or {})}
    plan = fix_plan(files, pairs=pairs, settings=fixed, stops_early=stops_early)
    plan = fix_data(files, plan, digest_trainer_data(data))
    trials = train_planned(
        OneByOne(train, label), files, plan, claimed_epsilon, delta, confidence, outputs, progress
    )
    found = audit_trials(
        trials,
        delta=delta,
        confidence=confidence,
        view=outputs,
        stops_early=stops_early,
        claimed_epsilon=claimed_epsilon,
    )
    return AuditReport(
        ledger_head="", confidence=confidence, bounds=found, membership=(), files=files.digests
    )


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
    if claimed_epsilon is None or not plan.stops_early:
        return train_trials(trainer, files, plan, progress=progress)
    refutes = refutation_of(claimed_epsilon, delta=delta, confidence=confidence, view=view)
    return train_trials(trainer, files, plan, refutes=refutes, progress=progress)
