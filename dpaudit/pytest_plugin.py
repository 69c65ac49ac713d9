"""Privacy in your own tests: a fixture for a finished run, and assertions with explanations.

    from dpaudit.pytest_plugin import assert_conforms, assert_epsilon_at_most

    def test_the_release_keeps_its_budget(dpaudit_run):  # pytest --dpaudit-run runs/release
        assert_epsilon_at_most(dpaudit_run, 3.0, delta=1e-5)

pytest loads this file wherever dpaudit is installed: it imports nothing heavy, and each
assertion imports what it needs. No assertion passes on NaN, on empty input, or on inconclusive
evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dpaudit.attacks.conformance import Effort, MakeTrainer, Record
    from dpaudit.attacks.membership.scores import MembershipScores
    from dpaudit.runs.directory import RunDirectory
    from dpaudit.vocabulary.conformance import StepClaim
    from dpaudit.workflow.assertions import PrivacySpending

OPTION, INI = "--dpaudit-run", "dpaudit_run"
MAX_TPR_AT_FPR: Mapping[float, float] = MappingProxyType({0.01: 0.05})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the option and the ini-file key that set the run under test.

    Args:
        parser: pytest's parser of options.
    """
    help_text = "the finished run that the fixture dpaudit_run opens"
    parser.getgroup("dpaudit").addoption(OPTION, metavar="PATH", default=None, help=help_text)
    parser.addini(INI, f"{help_text}; relative to this file", default="")


@pytest.fixture(scope="session")
def dpaudit_run(pytestconfig: pytest.Config) -> RunDirectory:
    """Return the run under test: finished, and verified against its ledger.

    It is set by ``--dpaudit-run PATH``, or else by ``dpaudit_run = PATH`` in the ini-file. If
    neither is set, the test fails: it is never skipped.

    Args:
        pytestconfig: pytest's configuration.

    Returns:
        The run.

    Raises:
        InvalidArgument: If no run is set, or there is none at the path.
        IntegrityError: If the run is unfinished or was altered.
    """
    from dpaudit.runs.directory import open_run

    run = open_run(_named_run(pytestconfig))
    run.read_finished()
    return run


def assert_epsilon_at_most(
    run: PrivacySpending,
    epsilon: float,
    *,
    delta: float,
    accountant: str = "pld",
    unit: str = "record",
    released: str = "every-step",
) -> None:
    """Fail unless the upper bound of epsilon at ``delta`` is at most ``epsilon``.

    Args:
        run: A run directory or its path, verified first; a mechanism, for neighbors that
            differ by adding or removing one record; or what ``make_private`` returned.
        epsilon: Largest allowed upper bound, in nats.
        delta: The delta at which epsilon is computed, in (0, 1).
        accountant: The accountant whose upper bound counts: pld, rdp or naive.
        unit: Required unit of privacy: record or user.
        released: Releases that the claim must cover: every-step or final-model.

    Raises:
        AssertionError: If it is above, nothing was spent, or a run's noise comes from a seed.
        InvalidArgument: If an argument is out of range.
        IntegrityError: If the run is unfinished or was altered.

    Example:
        >>> from dpaudit.accountants import Gaussian
        >>> assert_epsilon_at_most(Gaussian(1.0), 4.5, delta=1e-5)
    """
    __tracebackhide__ = True
    from dpaudit.workflow.assertions import EpsilonRequirement, explain_epsilon_failure

    requirement = EpsilonRequirement(epsilon, delta, accountant, unit, released)
    _require_empty(explain_epsilon_failure(run, requirement))


def assert_conforms(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    *,
    records: Sequence[Record],
    probes: Sequence[Record] | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> None:
    """Fail unless every check of the trainer's steps agrees with ``claim``.

    A trainer that does what it claims fails with probability at most 1/10,000.

    Args:
        make_trainer: Returns a trainer for records and a seed; ``dpaudit.attacks.conformance``
            documents its protocol.
        claim: The claim on every step.
        records: Ordinary records, (x, y), at least two.
        probes: Records to replay in place of those that are made from ``records``.
        effort: Amount of testing; None: enough to detect 2% less noise.
        seed: Seed of the check, so that it can be repeated.

    Raises:
        AssertionError: If a finding refutes the claim or is inconclusive.
        InvalidArgument: If the trainer does not follow the protocol.

    Example:
        >>> assert_conforms(make_trainer, claim, records=records)  # doctest: +SKIP
    """
    __tracebackhide__ = True
    from dpaudit.attacks import conformance
    from dpaudit.workflow.assertions import explain_conformance_failure

    result = conformance.check(
        make_trainer, claim, records=records, probes=probes, effort=effort, seed=seed
    )
    _require_empty(explain_conformance_failure(result))


def assert_not_leaking(
    scores: MembershipScores | Path | str | ArrayLike,
    members: ArrayLike | None = None,
    *,
    max_tpr_at_fpr: Mapping[float, float] = MAX_TPR_AT_FPR,
    claim_epsilon: float | None = None,
    delta: float | None = None,
    confidence: float = 0.95,
) -> None:
    """Fail unless an attack's scores are within limits.

    Args:
        scores: ``MembershipScores``; the path of a score file; or an array, shape
            ``(records,)``, larger for members.
        members: With an array: 1 for members, 0 for non-members, shape ``(records,)``.
        max_tpr_at_fpr: Largest true-positive rate, by false-positive rate; the upper end of
            its interval counts.
        claim_epsilon: Upper bound, in nats, that a lower bound from the scores must not exceed;
            None: not tested.
        delta: Of that claim.
        confidence: Of each interval by itself, and of all lower bounds together.

    Raises:
        AssertionError: If the scores exceed a limit, or are inconclusive.
        InvalidArgument: If scores or limits cannot be used.

    Example:
        >>> import numpy as np
        >>> values = np.random.default_rng(0).standard_normal(4000)
        >>> assert_not_leaking(values, np.arange(4000) % 2)
    """
    __tracebackhide__ = True
    from dpaudit.workflow.assertions import LeakageLimits, explain_leakage_failure, load_scores

    allowed = LeakageLimits(max_tpr_at_fpr, claim_epsilon, delta, confidence)
    _require_empty(explain_leakage_failure(load_scores(scores, members), allowed))


def assert_policy_holds(
    run: RunDirectory | Path | str,
    policy: Path | str = "dpaudit.toml",
    baseline: Path | str | None = None,
) -> None:
    """Fail unless the run passes every rule of the policy, as ``dpaudit gate`` evaluates it.

    Nothing is written into the run.

    Args:
        run: A finished run, or its path.
        policy: The policy's file, relative to the working directory.
        baseline: A file of ``dpaudit baseline write``, or an earlier run; None: there is none.

    Raises:
        AssertionError: If a rule that is not waived is violated or inconclusive.
        InvalidArgument: If there is no such run, policy or baseline.
        IntegrityError: If the run is unfinished or was altered.

    Example:
        >>> assert_policy_holds("runs/release", "dpaudit.toml")  # doctest: +SKIP
    """
    __tracebackhide__ = True
    from dpaudit.workflow.assertions import explain_policy_failure

    compared = None if baseline is None else Path(baseline)
    _require_empty(explain_policy_failure(run, Path(policy), compared))


def _require_empty(why_not: str) -> None:
    __tracebackhide__ = True
    if why_not:
        raise AssertionError(why_not)


def _named_run(config: pytest.Config) -> Path:
    """Return the path of the run; on the command line, it is relative to the working directory."""
    from dpaudit.vocabulary.errors import InvalidArgument

    typed: str | None = config.getoption(OPTION)
    written: str = config.getini(INI)
    if typed is not None:
        return Path(config.invocation_params.dir, typed)
    if written:
        return Path(config.rootpath if config.inipath is None else config.inipath.parent, written)
    raise InvalidArgument(
        INI, None, f"the folder of a finished run: give {OPTION} PATH, or set {INI} in the ini-file"
    )
