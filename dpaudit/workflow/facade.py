"""The functions that ``import dpaudit`` offers: one for each command group.

Arguments have one name, order and unit in all of them: ``run`` (a path or what ``open_run``
returned), ``mechanism``, ``delta`` (a probability), ``epsilon`` and ``target_epsilon`` (nats),
``confidence`` (a probability), ``seed``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpaudit.accountants import calibrate as calibration
from dpaudit.accountants.answers import compute_delta, compute_epsilon
from dpaudit.accountants.registry import find_accountant
from dpaudit.runs import directory
from dpaudit.runs.directory import RunDirectory
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_count,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import Adjacency, Bound

if TYPE_CHECKING:
    from dpaudit.accountants.calibrate import CalibrationResult
    from dpaudit.attacks.conformance.trainer_protocol import MakeTrainer, Record
    from dpaudit.vocabulary.audit import AttackReport, AuditReport
    from dpaudit.vocabulary.conformance import ConformanceResult, StepClaim
    from dpaudit.vocabulary.verdict import Verdict
    from dpaudit.workflow.audit.final_model_trials import TrainModel
    from dpaudit.workflow.audit.trainer_data import TrainerData

Run = RunDirectory | str | os.PathLike[str]


def epsilon(
    mechanism: Mechanism,
    *,
    delta: float,
    accountant: str = "pld",
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Bound the epsilon of a mechanism at a given delta.

    Args:
        mechanism: What is released, composed over all steps.
        delta: Probability in (0, 1).
        accountant: ``pld``, ``rdp``, ``naive``, ``zcdp`` or ``gdp``.
        adjacency: Which data sets are neighbors.

    Returns:
        An interval that contains the tight epsilon, in nats: ``upper`` is what may be claimed.
        ``lower`` is 0 where the accountant proves no lower bound.

    Raises:
        InvalidArgument: If ``delta`` is out of range or the accountant is unknown.
        UnsupportedMechanism: If the accountant does not cover ``mechanism``.

    Example:
        >>> import dpaudit
        >>> from dpaudit.accountants import Gaussian
        >>> round(dpaudit.epsilon(Gaussian(1.0), delta=1e-5).upper, 3)
        4.377
    """
    _require_mechanism(mechanism)
    require_delta("delta", delta)
    return compute_epsilon(accountant, mechanism, delta, adjacency, None).epsilon


def delta(
    mechanism: Mechanism,
    *,
    epsilon: float,
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> Bound:
    """Bound the delta of a mechanism at a given epsilon, by the PLD accountant.

    Args:
        mechanism: What is released, composed over all steps.
        epsilon: Privacy loss in nats, at least 0.
        adjacency: Which data sets are neighbors.

    Returns:
        An interval that contains the tight delta.

    Raises:
        InvalidArgument: If ``epsilon`` is out of range.
        UnsupportedMechanism: If the accountant does not cover ``mechanism``.

    Example:
        >>> import dpaudit
        >>> from dpaudit.accountants import Gaussian
        >>> round(dpaudit.delta(Gaussian(1.0), epsilon=1.0).upper, 4)
        0.1269
    """
    _require_mechanism(mechanism)
    _require_number("epsilon", epsilon)
    return compute_delta(epsilon, mechanism, adjacency).delta


def calibrate(
    build: Callable[[float], Mechanism],
    *,
    target_epsilon: float,
    delta: float,
    accountant: str = "pld",
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE,
) -> CalibrationResult[float]:
    """Find the least noise multiplier whose epsilon is at most a target.

    Args:
        build: Returns the mechanism for a noise multiplier, which is the standard deviation of
            the noise divided by the L2 sensitivity.
        target_epsilon: The largest epsilon allowed, in nats, above 0.
        delta: The delta of the target, in (0, 1).
        accountant: ``pld``, ``rdp``, ``naive``, ``zcdp`` or ``gdp``.
        adjacency: Which data sets are neighbors.

    Returns:
        The noise multiplier, as ``value``, and its epsilon, which was computed and is at most
        the target. ``dpaudit.accountants.calibrate`` finds other parameters.

    Raises:
        InvalidArgument: If an argument is out of range, or no noise up to 1e9 meets the target.
        UnsupportedMechanism: If the accountant does not cover the mechanism.

    Example:
        >>> import dpaudit
        >>> from dpaudit.accountants import Gaussian
        >>> round(dpaudit.calibrate(Gaussian, target_epsilon=1.0, delta=1e-5).value, 2)
        3.73
    """
    require_positive("target_epsilon", target_epsilon)
    require_delta("delta", delta)
    return calibration.noise_multiplier(
        build,
        target_epsilon=target_epsilon,
        delta=delta,
        adjacency=adjacency,
        accountant=find_accountant(accountant).profile,
    )


def open_run(path: str | os.PathLike[str]) -> RunDirectory:
    """Open a run directory.

    Args:
        path: What ``dpaudit train`` or ``private.finish()`` wrote.

    Returns:
        The run: its files by name, and methods that read and verify them.

    Raises:
        InvalidArgument: If there is no such directory.
        IntegrityError: If it has no ledger.

    Example:
        >>> import dpaudit
        >>> dpaudit.open_run("runs/mnist").read_finished().header.adjacency  # doctest: +SKIP
        <Adjacency.ADD_OR_REMOVE_ONE: 'add-or-remove-one'>
    """
    return directory.open_run(_path("run", path))


def audit_run(run: Run, *, confidence: float = 0.95, view: str = "every-step") -> AuditReport:
    """Measure lower bounds on the epsilon of a finished run, and write them into it.

    Args:
        run: A finished run, or its path.
        confidence: Probability with which all lower bounds hold together.
        view: What of the gradient canaries is read: ``every-step``, or ``final-iterate`` as if
            only the final model were released.

    Returns:
        Lower bounds with their assumptions and power, and membership inference by loss; also in
        the run's audit.json.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If an argument is out of range or the run has nothing to measure.

    Example:
        >>> import dpaudit
        >>> report = dpaudit.audit_run("runs/mnist")  # doctest: +SKIP
        >>> max(bound.epsilon_lower for bound in report.bounds)  # doctest: +SKIP
    """
    from dpaudit.workflow.audit.run_audit import audit_run as audit

    return audit(_opened(run), confidence=confidence, view=view)


def audit_final_model(
    train: TrainModel,
    *,
    target_label: int,
    folder: str | os.PathLike[str],
    models: int = 200,
    delta: float = 1e-5,
    confidence: float = 0.95,
    claim_epsilon: float | None = None,
    outputs: str = "logits",
    stop_when_refuted: bool = False,
    trainer_data: TrainerData = (),
) -> AuditReport:
    """Bound the epsilon of any trainer by final models with and without one target record.

    Data, target record and query are fixed; all other randomness must come from the seed. The
    outputs of finished models are stored in ``folder``, where an interrupted audit resumes.

    Args:
        train: Trains one model from ``(with_record, seed)``, and returns its logits on the query,
            shape ``(classes,)``.
        target_label: The class of the target record.
        folder: Folder of the outputs; it is made if it is missing.
        models: Number of models, half of them with the record; even, at least 4. A warning says
            so before training if they are too few to refute the claim.
        delta: The delta of the bounds, in (0, 1).
        confidence: Probability with which all bounds hold together, in (0, 1).
        claim_epsilon: The claim to test, in nats; None: nothing is claimed.
        outputs: What is read of each model: ``logits``, or ``labels``, the predicted class.
        stop_when_refuted: Whether to stop as soon as the claim is refuted. Then one bound is
            computed, which is valid at any stopping time.
        trainer_data: Arrays, and paths of files or folders, that ``train`` reads: records, target
            record and query. Their digest is kept in ``folder``, and a resumed audit must have the
            same.

    Returns:
        Certified lower bounds for add-or-remove-one neighbors, and one that is conditional on a
        Gaussian trade-off curve.

    Raises:
        InvalidArgument: If an argument is out of range, or ``folder`` holds another audit.
        IntegrityError: If a file in ``folder`` is broken.

    Example:
        >>> import dpaudit
        >>> from my_package import train_one  # doctest: +SKIP
        >>> report = dpaudit.audit_final_model(
        ...     train_one, target_label=3, folder="audits/mine", claim_epsilon=4.0
        ... )  # doctest: +SKIP
        >>> max(bound.epsilon_lower for bound in report.bounds)  # doctest: +SKIP
    """
    from dpaudit.attacks.final_model import OutputView
    from dpaudit.workflow.audit.final_model import audit_final_model as audit

    if outputs not in {view.value for view in OutputView}:
        raise InvalidArgument("outputs", outputs, "logits or labels")
    return audit(
        train,
        target_label=target_label,
        folder=Path(folder),
        models=models,
        delta=delta,
        confidence=confidence,
        claim_epsilon=claim_epsilon,
        outputs=OutputView(outputs),
        stop_when_refuted=stop_when_refuted,
        trainer_data=trainer_data,
    )


def attack_run(
    run: Run,
    *,
    seed: int = 0,
    attacks: Sequence[str] | None = None,
    references: int = 16,
    confidence: float = 0.95,
    workers: int = 1,
) -> AttackReport:
    """Attack the model of a finished run by membership inference, and write the result into it.

    A language model is attacked by its token log-probabilities, without reference models.

    Args:
        run: A finished run, or its path. Its training data must still be there.
        seed: Seeds everything that is drawn.
        attacks: Names of attacks, as in ``dpaudit attack --attack``; None: its defaults.
        references: Number of reference (shadow) models to train.
        confidence: Of each interval of a true-positive rate.
        workers: Processes that train reference models; 1 for this one.

    Returns:
        True-positive rates at fixed false-positive rates with intervals, by attack; also in the
        run's attack.json.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If an argument is out of range, or the data are gone.

    Example:
        >>> import dpaudit
        >>> report = dpaudit.attack_run("runs/mnist")  # doctest: +SKIP
        >>> [result.attack for result in report.membership]  # doctest: +SKIP
    """
    from dpaudit.attacks.membership.attack_registry import DEFAULT_ATTACKS
    from dpaudit.workflow.attack import model_attacks
    from dpaudit.workflow.attack.attack_settings import AttackSettings
    from dpaudit.workflow.audit.run_canary_files import is_text_run

    require_count("seed", seed, least=0)
    require_open_unit("confidence", confidence)
    opened = _opened(run)
    if is_text_run(opened):
        from dpaudit.workflow.attack.text_attacks import TextAttackSettings
        from dpaudit.workflow.attack.text_run_attacks import attack_text_run

        asked = TextAttackSettings(tuple(attacks or ()), confidence, seed=seed)
        return attack_text_run(opened, asked).report
    settings = AttackSettings(
        tuple(DEFAULT_ATTACKS if attacks is None else attacks),
        seed,
        references=references,
        confidence=confidence,
        workers=workers,
    )
    return model_attacks.attack_run(opened, settings).report


def check_conformance(
    trainer: Run | MakeTrainer,
    *,
    claim: StepClaim | None = None,
    records: Sequence[Record] | None = None,
    seed: int = 0,
) -> ConformanceResult:
    """Check that a trainer clips, samples and adds noise as is claimed of each of its steps.

    Of a federated run, the clients or the server are checked. For servers and clients of your own,
    see ``dpaudit.attacks.conformance.federated``.

    Args:
        trainer: A finished run or its path: the trainer that its settings describe, and the
            result is written into it. Or a function that makes a trainer from records and a
            seed; see ``dpaudit.attacks.conformance``.
        claim: What is claimed of each step; required for a function. None: what the run's
            settings say.
        records: Ordinary records, pairs (x, y), at least two; required for a function.
        seed: Seeds the check of a function.

    Returns:
        PASS, FAIL or INCONCLUSIVE, with each finding.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If claim or records are missing for a function, or given for a run.

    Example:
        >>> import dpaudit
        >>> dpaudit.check_conformance("runs/mnist").verdict  # doctest: +SKIP
        <Outcome.PASS: 'PASS'>
    """
    if callable(trainer):
        from dpaudit.attacks.conformance import check

        if claim is None or records is None:
            missing = "claim" if claim is None else "records"
            raise InvalidArgument(missing, None, "given where the trainer is a function")
        return check(trainer, claim, records=records, seed=seed)
    from dpaudit.workflow.audit.conformance_check import check_run_conformance

    if records is not None:
        raise InvalidArgument("records", "given", "left out: a run has its own")
    return check_run_conformance(_opened(trainer), claim)


def evaluate_policy(
    run: Run,
    *,
    policy: str | os.PathLike[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    history: str | os.PathLike[str] | None = None,
) -> Verdict:
    """Evaluate a finished run against a policy, and write the verdict into it.

    Args:
        run: A finished run, or its path.
        policy: A TOML file; None: dpaudit.toml and pyproject.toml of the working directory,
            and the variables ``DPAUDIT_POLICY_...``, each of which is a warning.
        baseline: What ``dpaudit baseline write`` wrote, or another run, to compare with.
        history: A folder that records the verdict.

    Returns:
        The outcome of each rule; ``outcome`` and ``exit_code`` of all together. Also in the
        run's verdict.json.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If there is no policy, or a file cannot be used.

    Example:
        >>> import dpaudit
        >>> dpaudit.evaluate_policy("runs/mnist").outcome  # doctest: +SKIP
        <Outcome.PASS: 'PASS'>
    """
    from dpaudit.workflow.gate.baselines import read_baseline
    from dpaudit.workflow.gate.policy_sources import load_policy
    from dpaudit.workflow.gate.run_evaluation import (
        GateSettings,
        PolicyProvenance,
        evaluate_run,
    )

    opened = _opened(run)
    named = None if policy is None else _path("policy", policy)
    loaded = load_policy(named, environment=os.environ if named is None else {})
    for key, origin in sorted(loaded.overriding_keys().items()):
        warnings.warn(f"{key} is set by {origin}", stacklevel=2)
    compared = (
        None if baseline is None else read_baseline(_path("baseline", baseline), loaded.policy)
    )
    settings = GateSettings(loaded.policy, compared, sources=PolicyProvenance.of(loaded))
    return evaluate_run(opened, settings, None if history is None else _path("history", history))


def write_report(run: Run, *, output: str | os.PathLike[str] | None = None) -> Path:
    """Write the HTML report of a finished run.

    Args:
        run: A finished run, or its path.
        output: The file to write; None: report.html in the run.

    Returns:
        The file that was written.

    Raises:
        IntegrityError: If the run is unfinished, or a file is missing or altered.
        InvalidArgument: If the output cannot be written.

    Example:
        >>> import dpaudit
        >>> dpaudit.write_report("runs/mnist")  # doctest: +SKIP
        PosixPath('runs/mnist/report.html')
    """
    from dpaudit.files.regular_files import PRIVATE, write_bytes
    from dpaudit.report.report_pages import report_page
    from dpaudit.runs.file_io import require_new_file
    from dpaudit.workflow.report.run_evidence import gather_evidence

    opened = _opened(run)
    target = opened.report if output is None else _path("output", output)
    require_new_file("output", target)
    write_bytes(target, report_page(gather_evidence(opened)).encode(errors="replace"), PRIVATE)
    return target


def _require_mechanism(mechanism: object) -> None:
    if isinstance(mechanism, int | float):
        raise InvalidArgument("mechanism", mechanism, "a mechanism such as Gaussian(1.0)")
    if isinstance(mechanism, RunDirectory | str | os.PathLike):
        allowed = (
            "a mechanism such as Gaussian(1.0); the releases of a run are "
            "open_run(path).read_finished().mechanism, and its claim is in claim.json"
        )
        raise InvalidArgument("mechanism", str(mechanism), allowed)


def _require_number(name: str, given: object) -> None:
    """Refuse text, None and other things that are no number; the range is checked elsewhere."""
    if not hasattr(given, "__float__"):
        raise InvalidArgument(name, repr(given), "a number")


def _path(name: str, given: str | os.PathLike[str]) -> Path:
    """Return a path; refuse what is none, such as a number."""
    try:
        return Path(given)
    except TypeError as error:
        raise InvalidArgument(name, repr(given), "a path: text or os.PathLike") from error


def _opened(run: Run) -> RunDirectory:
    return run if isinstance(run, RunDirectory) else open_run(run)
