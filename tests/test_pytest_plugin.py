"""Each assertion passes on good evidence, and fails on bad evidence with words that help."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dpaudit.attacks.conformance import Effort, StepClaim
from dpaudit.attacks.membership import MembershipScores
from dpaudit.pytest_plugin import (
    assert_conforms,
    assert_epsilon_at_most,
    assert_not_leaking,
    assert_policy_holds,
)
from dpaudit.runs.directory import RunDirectory, open_run
from dpaudit.runs.file_io import write_json
from dpaudit.trainer import make_private
from dpaudit.trainer.private import Private
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument
from dpaudit.vocabulary.ledger import Randomness
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled, Repeated
from dpaudit.vocabulary.privacy_terms import Unit
from dpaudit.workflow.gate.baselines import baseline_of_run

pytest_plugins = ["pytester"]

DELTA = 1e-5
PLAN = Repeated(PoissonSampled(Gaussian(1.5), 0.2), 4)  # what every run here releases
JUST_ENOUGH, TOO_LITTLE = 1.78, 1.75


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def private(steps: int, **options: Any) -> Private:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given = {"noise_multiplier": 1.5, "sampling_rate": 0.2, "expected_batch_size": 6, **options}
    trainer = make_private(model, optimizer, **given)
    data = torch.ones(30, 3), torch.arange(30) % 2
    for batch in trainer.batches(data, steps=steps):
        trainer.step(loss, batch)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("runs") / "release"
    return private(4, ledger=folder / "ledger.jsonl").finish(delta=DELTA)


def explained(assertion: Callable[[], None]) -> str:
    with pytest.raises(AssertionError) as failure:
        assertion()
    return " ".join(str(failure.value).split())


# --- epsilon


def test_epsilon_is_that_of_the_accountant() -> None:
    from dpaudit.accountants import pld

    upper = pld.profile(PLAN).epsilon(delta=DELTA).upper
    assert TOO_LITTLE < upper <= JUST_ENOUGH
    assert_epsilon_at_most(PLAN, upper, delta=DELTA)
    explained(lambda: assert_epsilon_at_most(PLAN, np.nextafter(upper, 0), delta=DELTA))


def test_a_claim_for_records_keeps_no_promise_to_users(run: RunDirectory) -> None:
    for spender in (run, private(4)):
        promised = {"delta": DELTA, "unit": "user"}
        said = explained(lambda: assert_epsilon_at_most(spender, JUST_ENOUGH, **promised))  # noqa: B023
        assert said.startswith("the claim is for something else")
        assert "for one user" in said
    assert_epsilon_at_most(run, JUST_ENOUGH, delta=DELTA, released="final-model")
    for name, value in (("unit", "household"), ("released", "nothing")):
        with pytest.raises(InvalidArgument, match=f"{name} must be one of"):
            assert_epsilon_at_most(run, JUST_ENOUGH, delta=DELTA, **{name: value})


@pytest.mark.parametrize("kind", ["directory", "path", "text", "mechanism", "private"])
def test_everything_that_spends_is_priced_alike(run: RunDirectory, kind: str) -> None:
    spender = {
        "directory": lambda: run,
        "path": lambda: run.path,
        "text": lambda: str(run.path),
        "mechanism": lambda: PLAN,
        "private": lambda: private(4),
    }[kind]()
    assert_epsilon_at_most(spender, JUST_ENOUGH, delta=DELTA)
    said = explained(lambda: assert_epsilon_at_most(spender, TOO_LITTLE, delta=DELTA))
    assert said.startswith("epsilon is above what is allowed")
    assert re.search(r"at most 1\.77\d at delta 1e-05 for one record \(every-step\) \(pld\)", said)
    assert "allowed at most 1.75 at delta 1e-05" in said
    assert "more noise, fewer steps" in said


def test_the_accountant_is_the_one_that_was_asked_for(run: RunDirectory) -> None:
    said = explained(
        lambda: assert_epsilon_at_most(run, JUST_ENOUGH, delta=DELTA, accountant="naive")
    )
    assert "(naive)" in said
    with pytest.raises(InvalidArgument, match="accountant"):
        assert_epsilon_at_most(run, 3, delta=DELTA, accountant="none")
    with pytest.raises(InvalidArgument, match="finish the run for others"):
        assert_epsilon_at_most(private(1), 3, delta=DELTA, accountant="rdp")


def test_a_run_with_the_noise_of_a_seed_claims_nothing(tmp_path: Path) -> None:
    seeded = private(4, ledger=tmp_path / "ledger.jsonl", seed=1).finish(delta=DELTA)
    said = explained(lambda: assert_epsilon_at_most(seeded, 100, delta=DELTA))
    assert "comes from a seed" in said


def test_nothing_spent_is_no_evidence() -> None:
    said = explained(lambda: assert_epsilon_at_most(private(0), 100, delta=DELTA))
    assert said.startswith("no step was taken")


class NotANumber:
    """Says of itself that it spent what is no number."""

    steps = 1
    header = SimpleNamespace(randomness=Randomness.SECURE, unit=Unit.RECORD)

    def epsilon(self, *, delta: float) -> Any:
        return SimpleNamespace(lower=0.0, upper=float("nan"))


def test_nan_never_passes() -> None:
    said = explained(lambda: assert_epsilon_at_most(NotANumber(), 100, delta=DELTA))
    assert "at most NaN" in said
    with pytest.raises(InvalidArgument, match="epsilon"):
        assert_epsilon_at_most(PLAN, float("nan"), delta=DELTA)
    with pytest.raises(InvalidArgument, match="delta"):
        assert_epsilon_at_most(PLAN, 3, delta=float("nan"))


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    private(2, ledger=tmp_path / "ledger.jsonl")
    with pytest.raises(IntegrityError, match="is not finished"):
        assert_epsilon_at_most(tmp_path, 100, delta=DELTA)


def test_what_spends_nothing_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="a run directory, a mechanism"):
        assert_epsilon_at_most(3, 3, delta=DELTA)  # type: ignore[arg-type]


# --- conformance

SMALL = Effort(noise_samples=20_000, sampler_steps=120, replays=1)
CLAIM = StepClaim(
    noise_multiplier=2.0, clip_norm=0.5, sampling_rate=0.25, steps=60, update_scale=1.0
)
Sum = NDArray[np.float64]


class Steps:
    """Sums of clipped records under Poisson sampling, with Gaussian noise."""

    noise = 2.0
    groups: dict[str, slice]

    def __init__(self, records: Sequence[tuple[Any, Any]], seed: int) -> None:
        self.records, self.seed, self.number = records, seed, 0
        self.sampled: list[int] = []
        self.groups = {"weights": slice(0, 100)}

    def step(self) -> Sum:
        self.number += 1
        draws = np.random.default_rng([self.seed, self.number])
        noise, coins = draws.standard_normal(100), draws.random(200)
        self.sampled = [i for i in range(len(self.records)) if coins[i] < 0.25]
        total = np.zeros(100)
        for i in self.sampled:
            x = np.resize(self.records[i][0], 100)
            if np.isfinite(x).all():
                total += x * min(1.0, 0.5 / max(float(np.linalg.norm(x)), 1e-12))
        return np.asarray(total + self.noise * 0.5 * noise)


class Quieter(Steps):
    """Adds less noise than is claimed."""

    noise = 1.6


class Silent(Steps):
    """Does not say who was in a step."""

    def step(self) -> Sum:
        total = super().step()
        del self.sampled
        return total


def records() -> list[tuple[Sum, int]]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(100), 0) for _ in range(20)]


def test_a_trainer_that_does_what_it_claims_passes() -> None:
    assert_conforms(Steps, CLAIM, records=records(), effort=SMALL)


def test_a_trainer_with_less_noise_is_refuted_in_words() -> None:
    said = explained(lambda: assert_conforms(Quieter, CLAIM, records=records(), effort=SMALL))
    assert said.startswith("the trainer does not do what it claims")
    assert "FAIL noise, scale tested noise on an empty data set" in said
    assert "the noise as a whole has 0.799" in said
    assert "power a standard deviation" in said
    assert "fails once in 10,000 checks" in said


def test_a_trainer_that_cannot_be_judged_fails() -> None:
    said = explained(lambda: assert_conforms(Silent, CLAIM, records=records(), effort=SMALL))
    assert said.startswith("whether the trainer does what it claims is inconclusive")
    assert "0 refute the claim, 2 are inconclusive" in said
    assert "INCONCLUSIVE sampler, inclusion" in said
    assert "INCONCLUSIVE noise, scale beside records" in said
    assert "no attribute sampled" in said


# --- leaking


def scored(gap: float, records: int = 2000) -> MembershipScores:
    rng = np.random.default_rng(3)
    return MembershipScores(rng.standard_normal(records) + gap, rng.standard_normal(records))


def as_rows(scores: MembershipScores) -> tuple[Sum, NDArray[np.int64]]:
    members, others = scores.members, scores.nonmembers
    return np.concatenate([members, others]), np.repeat([1, 0], [len(members), len(others)])


def test_uninformative_scores_pass_in_every_form(tmp_path: Path) -> None:
    scores = scored(0.0)
    values, members = as_rows(scores)
    np.savez(tmp_path / "scores.npz", score=values, member=members)
    assert_not_leaking(scores)
    assert_not_leaking(scored(0.0, records=200), max_tpr_at_fpr={}, claim_epsilon=1, delta=DELTA)
    assert_not_leaking(values, members)
    assert_not_leaking(values.tolist(), members.tolist())
    assert_not_leaking(tmp_path / "scores.npz")
    assert_not_leaking(str(tmp_path / "scores.npz"), max_tpr_at_fpr={0.1: 0.2})


def test_scores_that_separate_members_fail_with_reasons() -> None:
    said = explained(lambda: assert_not_leaking(scored(2.0)))
    assert said.startswith(
        "the model separates members from non-members more often than is allowed"
    )
    assert "2000 members, 2000 non-members" in said
    assert re.search(r"a true-positive rate at FPR 0\.01 of 0\.\d+ to 0\.\d+", said)
    assert "allowed an upper end of 0.05" in said


def test_a_lower_bound_above_the_claim_fails_in_words() -> None:
    apart = scored(4.0, records=200)

    def leaking() -> None:
        assert_not_leaking(apart, max_tpr_at_fpr={}, claim_epsilon=0.5, delta=DELTA)

    said = explained(leaking)
    assert said.startswith("more is leaked than is claimed")
    assert "epsilon is at most 0.5 at delta 1e-05" in said
    said = explained(
        lambda: assert_not_leaking(apart, max_tpr_at_fpr={}, claim_epsilon=20, delta=DELTA)
    )
    assert said.startswith("the scores could not have contradicted the claim")
    blind = scored(0.0, records=200)
    assert_not_leaking(blind, max_tpr_at_fpr={}, claim_epsilon=2, delta=DELTA)


def test_too_few_records_cannot_pass() -> None:
    said = explained(lambda: assert_not_leaking(scored(0.0, records=40)))
    assert "inconclusive" in said
    assert "score more records" in said


def test_the_upper_end_of_the_interval_counts() -> None:
    """The rate itself is below what is allowed; its interval reaches above."""
    scores = scored(0.0)
    threshold = np.quantile(scores.nonmembers, 0.99)
    rate = float((scores.members > threshold).mean())
    said = explained(lambda: assert_not_leaking(scores, max_tpr_at_fpr={0.01: rate + 0.004}))
    assert "inconclusive" in said


def test_scores_that_are_all_the_same_are_no_evidence() -> None:
    constant = MembershipScores(np.ones(500), np.ones(500))
    said = explained(lambda: assert_not_leaking(constant, claim_epsilon=8, delta=DELTA))
    assert said.startswith("the scores are no evidence either way")
    assert "every score is the same" in said


def test_each_attack_of_a_file_is_judged(tmp_path: Path) -> None:
    values, members = as_rows(scored(2.0))
    random = np.random.default_rng(5).standard_normal(len(values))
    np.savez(
        tmp_path / "scores.npz",
        score=np.concatenate([random, values]),
        member=np.concatenate([members, members]),
        attack=np.repeat(["guess", "lira"], len(values)),
    )
    said = explained(lambda: assert_not_leaking(tmp_path / "scores.npz"))
    assert "lira: 2000 members" in said
    assert "guess: 2000 members" not in said


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_tpr_at_fpr": {}}, "max_tpr_at_fpr"),
        ({"max_tpr_at_fpr": {0.01: float("nan")}}, "max_tpr_at_fpr"),
        ({"max_tpr_at_fpr": {float("nan"): 0.5}}, "max_tpr_at_fpr"),
        ({"claim_epsilon": 3.0}, "delta"),
        ({"claim_epsilon": float("nan"), "delta": DELTA}, "claim_epsilon"),
        ({"confidence": 1.0}, "confidence"),
    ],
)
def test_limits_that_test_nothing_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        assert_not_leaking(scored(0.0), **given)


def test_an_array_needs_its_members() -> None:
    with pytest.raises(InvalidArgument, match="members"):
        assert_not_leaking(np.zeros(4))


# --- policy


def policy_file(folder: Path, epsilon: float, more: str = "") -> Path:
    path = folder / "dpaudit.toml"
    path.write_text(f"[claim]\nmax_epsilon = {epsilon}\ndelta = {DELTA}\n{more}")
    return path


def test_a_run_that_keeps_the_policy_passes_and_is_left_as_it_is(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy_file(tmp_path, JUST_ENOUGH)
    before = sorted(file.name for file in run.path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert_policy_holds(run)
    assert_policy_holds(str(run.path), "dpaudit.toml")
    assert sorted(file.name for file in run.path.iterdir()) == before


def test_a_run_that_does_not_keep_it_fails_rule_by_rule(run: RunDirectory, tmp_path: Path) -> None:
    said = explained(lambda: assert_policy_holds(run, policy_file(tmp_path, TOO_LITTLE)))
    assert "FAIL claim.max_epsilon why epsilon is at most 1.77" in said
    assert "the policy allows 1.75" in said


def test_missing_evidence_fails(run: RunDirectory, tmp_path: Path) -> None:
    path = policy_file(tmp_path, JUST_ENOUGH, "[audit]\nrequire_conformance = true\n")
    said = explained(lambda: assert_policy_holds(run, path))
    assert "INCONCLUSIVE audit.require_conformance" in said


def test_a_run_is_compared_with_the_baseline(run: RunDirectory, tmp_path: Path) -> None:
    path = policy_file(tmp_path, 10, "[regression]\nmax_epsilon_increase = 0.0\n")
    said = explained(lambda: assert_policy_holds(run, path))
    assert "INCONCLUSIVE regression.baseline" in said
    baseline = tmp_path / "baseline.json"
    write_json(baseline, baseline_of_run(run, None))
    with pytest.raises(InvalidArgument, match="an earlier run"):
        assert_policy_holds(run, path, baseline)
    same = private(4, ledger=tmp_path / "s" / "ledger.jsonl")
    write_json(baseline, baseline_of_run(same.finish(delta=DELTA), None))
    assert_policy_holds(run, path, baseline)
    noisier = private(4, ledger=tmp_path / "n" / "ledger.jsonl", noise_multiplier=2.0)
    write_json(baseline, baseline_of_run(noisier.finish(delta=DELTA), None))
    said = explained(lambda: assert_policy_holds(run, path, baseline))
    assert "noise multiplier (gradient sum) was 2, is 1.5: raises epsilon" in said


# --- inside pytest

TEST = """
from dpaudit.pytest_plugin import assert_epsilon_at_most

def test_budget(dpaudit_run):
    assert_epsilon_at_most(dpaudit_run, {epsilon}, delta=1e-5)
"""


def test_the_fixture_opens_the_run_of_the_command_line(
    pytester: pytest.Pytester, run: RunDirectory
) -> None:
    pytester.makepyfile(TEST.format(epsilon=JUST_ENOUGH))
    done = pytester.runpytest_inprocess("--dpaudit-run", run.path)
    done.assert_outcomes(passed=1)


def test_a_failure_shows_the_test_and_the_reason_and_nothing_of_ours(
    pytester: pytest.Pytester, run: RunDirectory
) -> None:
    pytester.makepyfile(TEST.format(epsilon=TOO_LITTLE))
    pytester.makeini(f"[pytest]\ndpaudit_run = {run.path}")
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            ">   *assert_epsilon_at_most(dpaudit_run, 1.75, delta=1e-5)",
            "E *AssertionError: epsilon is above what is allowed",
            "E *allowed*at most 1.75 at delta 1e-05",
        ]
    )
    done.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_a_run_in_the_ini_file_is_relative_to_it(
    pytester: pytest.Pytester, run: RunDirectory
) -> None:
    pytester.path.joinpath("runs").symlink_to(run.path.parent)
    pytester.makeini(f"[pytest]\ndpaudit_run = runs/{run.path.name}")
    test = pytester.mkpydir("deep") / "test_budget.py"
    test.write_text(TEST.format(epsilon=JUST_ENOUGH))
    pytester.chdir()
    pytester.runpytest_inprocess("--rootdir", pytester.path, "deep").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give --dpaudit-run PATH, or set dpaudit_run in the ini-file"),
        (["--dpaudit-run", "nowhere"], "run must be a run directory that exists"),
        (["--dpaudit-run", "."], "is not a run directory, or is incomplete"),
    ],
    ids=["none", "missing", "no run"],
)
def test_without_a_run_the_test_errs_and_is_not_skipped(
    pytester: pytest.Pytester, given: list[str], said: str
) -> None:
    pytester.makepyfile(TEST.format(epsilon=3))
    done = pytester.runpytest_inprocess(*given)
    done.assert_outcomes(errors=1)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    assert said in " ".join(done.stdout.str().split())


def test_the_fixture_refuses_a_run_that_was_altered(
    pytester: pytest.Pytester, run: RunDirectory
) -> None:
    copy = open_run(Path(shutil.copytree(run.path, pytester.path / "copy")))
    copy.model.write_bytes(b"other weights")
    pytester.makepyfile(TEST.format(epsilon=JUST_ENOUGH))
    done = pytester.runpytest_inprocess("--dpaudit-run", copy.path)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*IntegrityError*altered after its ledger recorded it*"])


LOADED = """
import json, sys, pytest
before = set(sys.modules)
import dpaudit.pytest_plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_plugin_brings_nothing_but_itself() -> None:
    """Everyone's pytest loads it: no library, and none of our packages."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    ours = [name for name in json.loads(done.stdout) if name.split(".")[0] == "dpaudit"]
    others = set(json.loads(done.stdout)) - set(ours)
    assert ours == ["dpaudit", "dpaudit.pytest_plugin", "dpaudit.vocabulary"]
    assert all(name.split(".")[0] in sys.stdlib_module_names for name in others), others


def test_pytest_finds_the_plugin_by_itself(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_inprocess("--help")
    done.stdout.fnmatch_lines(["dpaudit:", "*--dpaudit-run=PATH*"])
    done = pytester.runpytest_inprocess("-p", "no:dpaudit", "--dpaudit-run", "x")
    assert done.ret == pytest.ExitCode.USAGE_ERROR  # it can be switched off
