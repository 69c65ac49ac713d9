"""examples/ci-gate as its CI sees it: a healthy change passes, a bad one fails and says why."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT

from dpaudit.cli.entry_point import _run
from dpaudit.runs.directory import open_run
from dpaudit.runs.file_io import read_json
from dpaudit.vocabulary.baseline import Baseline
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.workflow.gate.baselines import baseline_of_run
from dpaudit.workflow.gate.policy_sources import read_policy
from tests.planted_bugs.parts import checks_alone

pytestmark = pytest.mark.needs("torch")  # the sample trains

SAMPLE = ROOT / "examples" / "ci-gate"
MODULES = ("data", "settings", "train", "test_privacy")
CHANGES = sorted(path.stem for path in (SAMPLE / "changes").glob("*.patch"))
IGNORED = shutil.ignore_patterns("runs", "reports", "__pycache__", ".*_cache")
# Plugins of our own tests take seconds to load, and a user's CI has none of them.
OTHERS = "-p no:hypothesispytest -p no:xdist -p no:anyio -p no:cacheprovider"


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str | None], Path]:
    """Return what copies the sample and applies one change to it, without any git identity."""

    def copied(change: str | None) -> Path:
        folder = Path(shutil.copytree(SAMPLE, tmp_path / "sample", ignore=IGNORED))
        if change is not None:
            subprocess.run(
                ["git", "apply", f"changes/{change}.patch"],
                cwd=folder, check=True, env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            )  # fmt: skip
        return folder

    return copied


# --- ci.sh, as CI runs it


def ci(folder: Path) -> tuple[int, str]:
    """Run what CI runs; return its exit code, and what it printed on one line."""
    done = subprocess.run(
        ["./ci.sh"],
        cwd=folder, capture_output=True, text=True, check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "PYTEST_ADDOPTS": OTHERS,
        },
    )  # fmt: skip
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_healthy_change_passes(changed: Callable[[str], Path]) -> None:
    folder = changed("healthy")
    code, said = ci(folder)
    assert code == 0, said
    assert "4 passed" in said
    assert (
        "PASS regression.max_epsilon_increase epsilon was at most 2.757, is at most 2.496" in said
    )
    header, first, *rows = (folder / "runs/ci/metrics.csv").read_text().splitlines()
    assert header == "step,update"
    assert len(rows) == 59
    assert float(first.split(",")[1]) > 0
    assert {file.name for file in (folder / "reports").iterdir()} == {"pytest.xml", "gate.xml"}


@pytest.mark.slow
def test_less_noise_fails_with_its_cause(changed: Callable[[str], Path]) -> None:
    code, said = ci(changed("less-noise"))
    assert code == 1
    assert (
        "FAIL claim.max_epsilon epsilon is at most 4.662 at delta 1e-05 (pld), the policy "
        "allows 3" in said
    )
    assert (
        "FAIL regression.max_epsilon_increase epsilon was at most 2.757, is at most 4.662, "
        "may grow by 0; noise multiplier (gradient sum) was 1.5, is 1.1: raises epsilon" in said
    )


@pytest.mark.slow  # the same finding without ci.sh: below
def test_shuffled_batches_fail_with_their_cause(changed: Callable[[str], Path]) -> None:
    code, said = ci(changed("shuffled-batches"))
    assert code == 1
    assert "FAIL sampler, steps" in said
    assert "records are not sampled as claimed: joint inclusions in steps 1 apart: 0" in said
    assert "3 passed" in said  # neither the ledger nor the model shows it


@pytest.mark.slow
def test_released_training_loss_fails_with_its_cause(changed: Callable[[str], Path]) -> None:
    folder = changed("released-training-loss")
    code, said = ci(folder)
    assert code == 1
    assert "FAIL noise, scale of each group" in said
    assert "the noise of training loss has 0 times the claimed standard deviation" in said
    assert (folder / "runs/ci/metrics.csv").read_text().startswith("step,update,training loss")


# --- the same in other ways, in this process


@pytest.fixture
def modules(
    changed: Callable[[str | None], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str | None], ModuleType]]:
    """Return what imports the tests of a changed sample, and changes into its folder."""

    def imported(change: str | None) -> ModuleType:
        folder = changed(change)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module("test_privacy")

    assert not set(MODULES) & set(sys.modules)
    yield imported
    for name in MODULES:
        sys.modules.pop(name, None)


def refused(tests: ModuleType, kind: str) -> str:
    """Return why the checks of one kind refuse a trainer; ci.sh runs all of them."""
    with checks_alone(kind), pytest.raises(AssertionError) as failure:
        tests.test_every_step_does_what_is_claimed()
    return " ".join(str(failure.value).split())


def trained() -> Path:
    run = Path("runs/ci")
    sys.modules["train"].main(run)
    return run


def gated(run: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["dpaudit", "gate", str(run), "--baseline", "baseline.json"])
    return _run()


def test_less_noise_than_is_recorded_is_refused(
    modules: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refused(modules("less-noise-than-recorded"), "noise")
    assert "FAIL noise, scale" in said
    assert "the noise as a whole has 0.8" in said
    assert gated(trained(), monkeypatch) == 0  # the ledger cannot show it
    assert "FAIL" not in capsys.readouterr().out


def test_shuffled_batches_are_refused(modules: Callable[[str], ModuleType]) -> None:
    said = refused(modules("shuffled-batches"), "sampler")
    assert "FAIL sampler, steps" in said
    assert "records are not sampled as claimed: joint inclusions in steps 1 apart: 0" in said


@pytest.mark.filterwarnings("ignore:shuffled passes")
def test_shuffled_batches_that_are_recorded_are_refused_by_the_gate(
    modules: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    modules("shuffled-batches-recorded")
    assert gated(trained(), monkeypatch) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "FAIL claim.sampling sampling was shuffled, allowed is poisson" in said
    assert "sampling was poisson, is shuffled" in said


def test_shuffled_batches_in_place_of_those_drawn_take_no_step(
    modules: Callable[[str], ModuleType],
) -> None:
    modules("shuffled-batches-in-the-step")
    with pytest.raises(InvalidArgument, match=r"drawn by it.*the ledger records its sampling"):
        trained()


def test_a_mean_loss_that_is_released_is_refused(modules: Callable[[str], ModuleType]) -> None:
    said = refused(modules("released-mean-loss"), "noise")
    assert "FAIL noise, finite" in said
    assert "the step may divide by the actual number of records" in said


# --- the sample itself


def test_the_baseline_is_that_of_the_sample(modules: Callable[[None], ModuleType]) -> None:
    modules(None)
    policy = read_policy(Path("dpaudit.toml"))
    again = baseline_of_run(open_run(trained()), policy)
    written = read_json(Path("baseline.json"), Baseline)
    assert again.recorded == written.recorded
    assert again.claim.epsilon.upper == pytest.approx(written.claim.epsilon.upper, rel=1e-9)
    assert policy.claim is not None
    settings = sys.modules["settings"]
    assert policy.claim.max_epsilon == settings.MAX_EPSILON
    assert policy.claim.delta == settings.SETTINGS.delta


def test_every_change_is_described_and_run_here() -> None:
    table = [line for line in (SAMPLE / "README.md").read_text().splitlines() if line[:3] == "| `"]
    described = [line.split("`")[1] for line in table]
    here = Path(__file__).read_text()
    for change in CHANGES:
        assert change in described
        assert f'"{change}"' in here
