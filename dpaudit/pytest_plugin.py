"""Privacy in a project's own tests: a fixture for its run, and assertions that explain.

    from dpaudit.pytest_plugin import assert_conforms, assert_epsilon_at_most

    def test_the_release_keeps_its_budget(dpaudit_run):  # pytest --dpaudit-run runs/release
        assert_epsilon_at_most(dpaudit_run, 3.0, delta=1e-5)

Every run of pytest loads this file where dpaudit is installed: it imports nothing heavy, and
each assertion imports what it needs. None of them passes on NaN, on nothing, or where the
evidence cannot tell.
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
    from dpaudit.workflow.asserting.epsilon import Spender

OPTION, INI = "--dpaudit-run", "dpaudit_run"
MAX_TPR_AT_FPR: Mapping[float, float] = MappingProxyType({0.01: 0.05})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the command line, or the configuration file, name the run under test."""
    says = "the finished run that the fixture dpaudit_run opens"
    parser.getgroup("dpaudit").addoption(OPTION, metavar="PATH", default=None, help=says)
    parser.addini(INI, f"{says}; relative to this file", default="")


@pytest.fixture(scope="session")
def dpaudit_run(pytestconfig: pytest.Config) -> RunDirectory:
    """Return the run under test: finished, and verified against its ledger.

    It is named by ``--dpaudit-run PATH``, or else by ``dpaudit_run = PATH`` in the ini-file.
    Where neither is there, the test fails: it is never skipped.
    """
    from dpaudit.runs.directory import open_run

    run = open_run(_named_run(pytestconfig))
    run.read_finished()
    return run


def assert_epsilon_at_most(
    run: Spender,
    epsilon: float,
    *,
    delta: float,
    accountant: str = "pld",
    unit: str = "record",
    released: str = "every-step",
) -> None:
    """Fail unless the upper bound of epsilon at ``delta`` is at most ``epsilon``.

    Args:
        run: A run directory or its path, verified first; a mechanism, for neighbours that
            differ by one record more or less; or what ``make_private`` returned.
        epsilon: The largest that is allowed, in nats.
        delta: At which it counts.
        accountant: Whose upper bound counts: pld, rdp or naive.
        unit: What neighbours must differ by: record or user.
        released: Which releases the claim must cover: every-step or final-model.

    Raises:
        AssertionError: it is above, nothing was spent, or a run's noise comes from a seed.
        InvalidArgument: an argument is out of range.
        IntegrityError: the run is unfinished, or was altered.
    """
    __tracebackhide__ = True
    from dpaudit.workflow.asserting.epsilon import Promise, why_not_at_most

    promise = Promise(epsilon, delta, accountant, unit, released)
    _require_empty(why_not_at_most(run, promise))


def assert_conforms(
    make_trainer: MakeTrainer,
    claim: StepClaim,
    *,
    records: Sequence[Record],
    probes: Sequence[Record] | None = None,
    effort: Effort | None = None,
    seed: int = 0,
) -> None:
    """Fail unless every check of the trainer's steps finds what ``claim`` says.

    A trainer that does what it claims fails once in 10,000 times at most.

    Args:
        make_trainer: From records and a seed to a trainer; ``dpaudit.attacks.conformance``
            says what it offers.
        claim: What is claimed of every step.
        records: Ordinary records, (x, y), at least two.
        probes: Records to replay in place of those that are made from them.
        effort: How much is run; None: enough to see 2% less noise.
        seed: Of the check, so that it can be repeated.

    Raises:
        AssertionError: a finding refutes the claim, or could not be told.
        InvalidArgument: the trainer does not return what it must.
    """
    __tracebackhide__ = True
    from dpaudit.attacks import conformance
    from dpaudit.workflow.asserting.conforming import why_not_conforming

    result = conformance.check(
        make_trainer, claim, records=records, probes=probes, effort=effort, seed=seed
    )
    _require_empty(why_not_conforming(result))


def assert_not_leaking(
    scores: MembershipScores | Path | str | ArrayLike,
    members: ArrayLike | None = None,
    *,
    max_tpr_at_fpr: Mapping[float, float] = MAX_TPR_AT_FPR,
    claim_epsilon: float | None = None,
    delta: float | None = None,
    confidence: float = 0.95,
) -> None:
    """Fail unless an attack's scores show less than is allowed.

    Args:
        scores: ``MembershipScores``; the path of a score file; or an array, shape
            ``(records,)``, larger for members.
        members: With an array: 1 for members, 0 for others, shape ``(records,)``.
        max_tpr_at_fpr: Largest true-positive rate, by false-positive rate; the upper end of
            its interval counts.
        claim_epsilon: What a lower bound from the scores must not be above; None: not tested.
        delta: Of that claim.
        confidence: Of each interval by itself, and of all lower bounds together.

    Raises:
        AssertionError: the scores show more, or too little to tell.
        InvalidArgument: scores or limits that cannot be used.
    """
    __tracebackhide__ = True
    from dpaudit.workflow.asserting.leaking import Allowed, scores_of, why_leaking

    allowed = Allowed(max_tpr_at_fpr, claim_epsilon, delta, confidence)
    _require_empty(why_leaking(scores_of(scores, members), allowed))


def assert_policy_holds(
    run: RunDirectory | Path | str,
    policy: Path | str = "dpaudit.toml",
    baseline: Path | str | None = None,
) -> None:
    """Fail unless the run keeps every rule of the policy, as ``dpaudit gate`` would say.

    Args:
        run: A finished run, or its path.
        policy: Its file, relative to the working directory.
        baseline: What ``dpaudit baseline write`` wrote, or another run.

    Raises:
        AssertionError: a rule that is not waived is violated, or cannot be told.
        InvalidArgument: there is no such run, policy or baseline.
        IntegrityError: the run is unfinished, or was altered.
    """
    __tracebackhide__ = True
    from dpaudit.workflow.asserting.holding import why_not_holding

    compared = None if baseline is None else Path(baseline)
    _require_empty(why_not_holding(run, Path(policy), compared))


def _require_empty(why_not: str) -> None:
    __tracebackhide__ = True
    if why_not:
        raise AssertionError(why_not)


def _named_run(config: pytest.Config) -> Path:
    """Return the path that was given; the command line's is relative to where it was typed."""
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
