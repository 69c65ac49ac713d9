"""Private steps that were interrupted: the same again when seeded, and never a release too few."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dpaudit.accountants import pld
from dpaudit.accountants.answers import claim_from_ledger
from dpaudit.runs.ledger_file import read_ledger, read_unfinished
from dpaudit.trainer.adam import AdamCorrected
from dpaudit.trainer.attach import make_private
from dpaudit.trainer.batches.samplers import BallsInBins, Cyclic, Poisson, Shuffled
from dpaudit.trainer.clip_rules import Quantile
from dpaudit.trainer.engine import Flat
from dpaudit.trainer.noise import gradient_noise
from dpaudit.trainer.noise.correlated_noise import Banded
from dpaudit.trainer.noise.gradient_noise import GradientNoise, Independent, OnGrid, Prefetched
from dpaudit.trainer.noise.kernels import NUMPY_KERNELS
from dpaudit.trainer.private import Private
from dpaudit.trainer.session import settings as session_settings
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists
from dpaudit.vocabulary.ledger import Randomness, ResumeEntry
from dpaudit.vocabulary.mechanism import (
    BandedMatrixFactorization,
    Composed,
    Gaussian,
    RandomAllocation,
    Repeated,
)
from dpaudit.vocabulary.privacy_terms import Adjacency

pytestmark = pytest.mark.filterwarnings("ignore:certified bounds", "ignore:shuffled passes")

RECORDS, WIDTH, STEPS = 40, 6, 7
OptimizerOf = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def momentum(own: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(own, lr=0.5, momentum=0.9)


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(net(x), y, reduction="none")


@pytest.fixture(autouse=True)
def _new_data() -> None:
    """Each test has records of its own, the same in all its steps."""
    data.cache_clear()


@cache
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(RECORDS, WIDTH, generator=generator)
    return x, torch.randint(0, 3, (RECORDS,), generator=generator)


@dataclass(frozen=True)
class Run:
    """A run in a folder of its own, and what every process of it is started with."""

    folder: Path
    options: Callable[[], dict[str, object]] = dict
    optimizer: OptimizerOf = momentum

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self, **changes: object) -> Private:
        """Return a new process's trainer, whose model no process before has touched."""
        self.folder.mkdir(exist_ok=True)
        torch.manual_seed(7 if "resume" not in changes else 8)
        net = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))
        given: dict[str, object] = {
            "noise_multiplier": 1.3,
            "clip_norm": 0.5,
            "sampling_rate": 0.25,
            "expected_batch_size": 10.0,
            "ledger": self.ledger,
            "seed": 11,
            **self.options(),
            **changes,
        }
        return make_private(net, self.optimizer(list(net.parameters())), **given)  # type: ignore[arg-type]

    def resume(self, **changes: object) -> Private:
        return self.start(resume=self.checkpoints, **changes)

    def interrupted(self, kept: int, at: int, **changes: object) -> Private:
        """Take ``at`` steps, of which a checkpoint keeps ``kept``, and die."""
        trainer = self.start(**changes)
        take(trainer, kept)
        trainer.checkpoint(self.checkpoints)
        take(trainer, at - kept)
        die(trainer)
        return trainer


def take(trainer: Private, steps: int) -> Private:
    for batch in trainer.batches(data(), steps=steps):
        trainer.step(loss, batch)
    return trainer


def die(trainer: Private) -> None:
    """Give back the ledger's lock, as the end of a process does."""
    trainer.close()


def weights(trainer: Private) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def files_in(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# The kind of noise.


@pytest.mark.parametrize("noise", [Independent(), OnGrid()])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_resumed_run_keeps_its_kind_of_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: GradientNoise, compiled: bool
) -> None:
    """On a machine with another default, too."""
    run = Run(tmp_path / "run")
    run.interrupted(2, 2, noise=noise)
    chosen = replace(NUMPY_KERNELS, compiled=compiled)
    monkeypatch.setattr(gradient_noise, "kernels", lambda: chosen)
    resumed = run.resume()
    assert resumed.step_settings.noise == noise
    assert resumed.header.noise is noise.kind
    die(resumed)


@pytest.mark.parametrize("kept", [1, 2])
def test_another_kind_of_noise_than_recorded_is_refused(tmp_path: Path, kept: int) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(kept, 2, noise=OnGrid())
    with pytest.raises(InvalidArgument, match="noise"):
        run.resume(noise=Independent())
    die(run.resume(noise=Prefetched(OnGrid())))  # the same noise


def test_a_run_of_an_earlier_version_continues_with_independent_noise(tmp_path: Path) -> None:
    """Its header names no noise, which was independent by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_settings, "noise_kind", lambda noise: None)
        run = Run(tmp_path / "run")
        run.interrupted(2, 2, noise=Independent())
    resumed = run.resume()
    assert resumed.header.noise is None
    assert resumed.step_settings.noise == Independent()
    die(resumed)
    with pytest.raises(InvalidArgument, match="noise"):
        run.resume(noise=OnGrid())


# Seeded: the same again.


RUNS: dict[str, tuple[Callable[[], dict[str, object]], OptimizerOf]] = {
    "momentum": (dict, momentum),
    "adam": (dict, lambda own: torch.optim.Adam(own, lr=0.1)),
    "corrected adam": (dict, lambda own: AdamCorrected(own, lr=0.1, least=1e-4)),
    "quantile": (lambda: {"clipping": Quantile(0.5, count_noise=1.0)}, momentum),
    "quantile and adam": (
        lambda: {"clipping": Quantile(0.5, count_noise=1.0)},
        lambda own: torch.optim.Adam(own, lr=0.1),
    ),
    "schedules": (
        lambda: {
            "clip_norm": lambda step: 0.5 / (1 + step),
            "noise_multiplier": lambda step: 1.3 + step,
        },
        momentum,
    ),
    "ahead of time": (lambda: {"noise": Prefetched()}, momentum),
    "on a grid": (lambda: {"noise": OnGrid()}, momentum),
    "banded": (lambda: {"noise": Banded(3), "sampler": Cyclic(3, STEPS)}, momentum),
    "banded, adam corrected": (
        lambda: {"noise": Banded(3), "sampler": Cyclic(3, STEPS)},
        lambda own: AdamCorrected(own, lr=0.1, least=1e-4),
    ),
    "balls in bins": (lambda: {"sampler": BallsInBins(4)}, momentum),
    "shuffled": (lambda: {"sampler": Shuffled(10, RECORDS)}, momentum),
}


RESUMED_AT = [(4, 6), (0, 2), (3, 3)]
"""Steps kept by the checkpoint, and steps taken before the interruption."""


@pytest.mark.parametrize(
    ("name", "kept", "at"),
    [("momentum", *point) for point in RESUMED_AT]
    + [
        pytest.param(name, *point, marks=() if point == RESUMED_AT[0] else pytest.mark.slow)
        for name in RUNS
        for point in RESUMED_AT
        if name != "momentum"
    ],
)
def test_a_seeded_run_resumed_is_the_run_uninterrupted_bit_for_bit(
    tmp_path: Path, name: str, kept: int, at: int
) -> None:
    options, optimizer = RUNS[name]
    whole = take(Run(tmp_path / "whole", options, optimizer).start(), STEPS)
    run = Run(tmp_path / "run", options, optimizer)
    run.interrupted(kept, at)
    resumed = run.resume()
    assert resumed.steps == kept
    take(resumed, STEPS - kept)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.clip_rule.learned_clip_norm == whole.clip_rule.learned_clip_norm


def test_a_run_resumed_again_and_again_is_the_run_uninterrupted(tmp_path: Path) -> None:
    whole = take(Run(tmp_path / "whole").start(), STEPS)
    run = Run(tmp_path / "run")
    run.interrupted(1, 2)
    for _ in range(2):
        trainer = take(run.resume(), 2)
        trainer.checkpoint(run.checkpoints)
        die(trainer)
    last = run.resume()
    assert last.steps == 5
    assert torch.equal(weights(take(last, STEPS - 5)), weights(whole))


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trainer = run.start()
    for _ in range(4):
        take(trainer, 1).checkpoint(run.checkpoints)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-3", "step-4"]


# Secure: fresh noise, and all of it recorded.


def test_a_secure_run_resumed_draws_fresh_coins_and_noise(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    first = run.interrupted(2, 5, seed=None)
    shutil.copytree(run.folder, tmp_path / "copy")
    resumed = [r.resume(seed=None) for r in (run, Run(tmp_path / "copy"))]
    assert torch.equal(*(weights(trainer) for trainer in resumed))
    keys = {trainer._session.stream.key for trainer in (first, *resumed)}
    assert len(keys) == 3
    one, other = (weights(take(trainer, 3)) for trainer in resumed)
    assert not (one == other).any()
    assert not (one == weights(first)).any()
    assert ResumeEntry(2, Randomness.SECURE) in read_ledger(run.ledger).lines


@pytest.mark.parametrize("seed", [None, 11])
def test_steps_since_the_checkpoint_are_recorded_again(tmp_path: Path, seed: int | None) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 5, seed=seed)
    before = run.ledger.read_bytes()
    resumed = run.resume(seed=seed)
    ledger = read_ledger(run.ledger)
    assert resumed.epsilon(delta=1e-5) == pld.profile(ledger.mechanism).epsilon(delta=1e-5)
    assert len(ledger.releases) == 5
    take(resumed, STEPS - 2)
    assert run.ledger.read_bytes().startswith(before)
    ledger = read_ledger(run.ledger)
    counts = Counter(release.step for release in ledger.releases)
    assert counts == dict.fromkeys(range(STEPS), 1) | dict.fromkeys([2, 3, 4], 2)
    epsilon = resumed.epsilon(delta=1e-5)
    assert epsilon == claim_from_ledger(ledger, 1e-5, "pld").epsilon
    assert epsilon == pld.profile(Repeated(ledger.releases[0].mechanism, 10)).epsilon(delta=1e-5)


def test_a_pass_that_a_fresh_key_begins_in_the_middle_is_recorded_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", lambda: {"sampler": BallsInBins(4), "seed": None})
    run.interrupted(2, 6)
    resumed = take(run.resume(), 5)
    # At 0 and 4 under the first key; at 2 and 4 under the second.
    assert resumed._session.recorded == {RandomAllocation(Gaussian(1.3), 4): 4}
    assert [r.step for r in read_ledger(run.ledger).releases] == [0, 4, 2, 4]
    claim = claim_from_ledger(read_ledger(run.ledger), 1e-5, "pld")
    assert claim.epsilon == resumed.epsilon(delta=1e-5)


def test_a_banded_run_that_a_fresh_key_takes_over_books_what_is_left(tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        lambda: {"noise": Banded(3), "sampler": Cyclic(3, STEPS), "seed": None},
    )
    run.interrupted(2, 4)
    resumed = take(run.resume(), STEPS - 2)
    both = [BandedMatrixFactorization(Gaussian(1.3), steps, 3) for steps in (STEPS, STEPS - 2)]
    assert [r.mechanism for r in read_ledger(run.ledger).releases] == both
    expected = pld.profile(Composed(tuple(both))).epsilon(delta=1e-5)
    assert resumed.epsilon(delta=1e-5) == expected


def test_a_budget_counts_what_was_recorded_before_and_passes_cut_short(tmp_path: Path) -> None:
    """A key that begins in the middle of a pass gets fewer steps for its first release."""
    run = Run(
        tmp_path / "run",
        lambda: {"sampler": BallsInBins(4), "seed": None, "noise_multiplier": 3.0},
    )
    run.interrupted(3, 3)
    allocation = RandomAllocation(Gaussian(3.0), 4)
    # Room for the one before and two more, and not for three.
    prices = [pld.profile(Repeated(allocation, n)).epsilon(delta=1e-5).upper for n in range(1, 5)]
    resumed = run.resume()
    resumed.stop_at(epsilon=(prices[2] + prices[3]) / 2, delta=1e-5)
    take(resumed, 100)
    # Step 3 ends the first pass; steps 4 to 7 are the second.
    assert resumed.steps == 8
    assert resumed._session.recorded == {allocation: 3}
    assert resumed.epsilon(delta=1e-5).upper <= (prices[2] + prices[3]) / 2


def test_no_key_and_no_noise_is_written(tmp_path: Path) -> None:
    """Nor what gives the noise away: sum and noise apart, or the batch drawn."""
    run = Run(tmp_path / "run", lambda: {"seed": None, "noise": Banded(3),
                                         "sampler": Cyclic(3, STEPS)})  # fmt: skip
    trainer = run.interrupted(4, 5)
    key, noise = trainer._session.stream.key, trainer.step_settings.noise
    assert isinstance(noise, Banded)
    rows = [row.numpy().tobytes() for row in noise._rows]
    assert rows
    files = files_in(run.folder)
    assert {"ledger", "checkpoints/step-4/model.safetensors"} <= set(files)
    for content in files.values():
        for secret in (key, key.hex().encode(), *rows, *(row[:16] for row in rows)):
            assert secret not in content


# What is refused, with nothing changed.


def require_refused(run: Run, error: type[Exception], match: str, **changes: object) -> None:
    """Require that resuming is refused, and that files, model and optimizer stay as they are."""
    files = files_in(run.folder)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = momentum(list(net.parameters()))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    given: dict[str, object] = {
        "noise_multiplier": 1.3,
        "clip_norm": 0.5,
        "sampling_rate": 0.25,
        "expected_batch_size": 10.0,
        "ledger": run.ledger,
        "resume": run.checkpoints,
        "seed": 11,
        **changes,
    }
    with pytest.raises(error, match=match):
        make_private(net, optimizer, **given)  # type: ignore[arg-type]
    assert files_in(run.folder) == files
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not optimizer.state_dict()["state"]


@dataclass(frozen=True)
class ReplaceOne(Poisson):
    adjacency = Adjacency.REPLACE_ONE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sampling", {"sampler": BallsInBins(4)}),
        ("adjacency", {"sampler": ReplaceOne(0.25)}),
        ("clip_norm", {"clip_norm": 5.0}),
        ("clip_norm", {"clipping": Flat(0.6)}),
        ("unit", {"unit": "user"}),
        ("randomness", {"seed": None}),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    require_refused(run, InvalidArgument, name, **changes)


def test_a_secure_run_is_not_resumed_with_a_seed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3, seed=None)
    require_refused(run, InvalidArgument, "randomness", seed=11)


def test_a_ledger_that_was_cut_is_refused(tmp_path: Path) -> None:
    """Put back from an old copy, or cut off at a line's end, it under-counts."""
    run = Run(tmp_path / "run")
    run.interrupted(3, 5)
    lines = run.ledger.read_bytes().splitlines(keepends=True)
    for kept in (1, 2, 3):
        run.ledger.write_bytes(b"".join(lines[:kept]))
        require_refused(run, IntegrityError, "the ledger was cut")
    # An incomplete line that the checkpoint does not know of counts, though it was not used.
    last = [at for at, line in enumerate(lines) if b'"kind":"release"' in line][3]
    run.ledger.write_bytes(b"".join(lines[:last]) + lines[last][:-5])
    assert len(read_unfinished(run.ledger).releases) == 4
    assert run.resume().steps == 3


def test_an_altered_or_missing_ledger_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    content = run.ledger.read_bytes()
    run.ledger.write_bytes(content.replace(b"1.3", b"9.3", 1))
    require_refused(run, IntegrityError, "altered")
    run.ledger.unlink()
    require_refused(run, IntegrityError, "cannot be read")
    require_refused(run, InvalidArgument, "ledger", ledger=None)


def test_another_runs_ledger_is_refused(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    run.interrupted(2, 3)
    other.interrupted(2, 5)
    shutil.copy(other.ledger, run.ledger)
    require_refused(run, IntegrityError, "another run")


@pytest.mark.parametrize("what", ["all", "folder"])
def test_a_missing_checkpoint_is_refused(tmp_path: Path, what: str) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    for folder in run.checkpoints.iterdir():
        shutil.rmtree(folder)
    if what == "folder":
        run.checkpoints.rmdir()
    require_refused(run, IntegrityError, "no complete checkpoint")


def test_checkpoint_that_died_before_its_marker_counts(tmp_path: Path) -> None:
    """Its files have the digests that the ledger recorded."""
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    (run.checkpoints / "step-2" / "COMPLETE").unlink()
    assert run.resume().steps == 2


def test_run_that_died_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    """What was released counts, and the steps are taken again with fresh noise."""
    run = Run(tmp_path / "run")
    die(take(run.start(seed=None), 3))
    again = run.resume(seed=None)
    assert again.steps == 0
    take(again, STEPS)
    whole = Repeated(again._next_release(), 3 + STEPS)
    assert again.epsilon(delta=1e-5) == pld.profile(whole).epsilon(delta=1e-5)
    assert len(read_unfinished(run.ledger).releases) == 3 + STEPS


FILES = ["model.safetensors", "optimizer.safetensors", "progress.json", "observations.npz"]


@pytest.mark.parametrize(("name", "content"), [*itertools.product(FILES, [b"", b"half", None])])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    damaged = run.checkpoints / "step-2" / name
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    require_refused(run, IntegrityError, r"altered|cannot be read|broken|observations")


def test_a_run_that_is_still_trained_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trainer = take(run.start(), 2)
    trainer.checkpoint(run.checkpoints)
    files = files_in(run.folder)
    with pytest.raises(RunExists, match="another process"):
        run.resume()
    assert files_in(run.folder) == files


def test_a_checkpoint_needs_a_ledger(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    trainer = take(run.start(ledger=None), 2)
    with pytest.raises(InvalidArgument, match="ledger"):
        trainer.checkpoint(run.checkpoints)
    assert not run.checkpoints.exists()


def test_a_new_run_does_not_take_over_a_ledger(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.interrupted(2, 3)
    files = files_in(run.folder)
    with pytest.raises(RunExists):
        run.start()
    assert files_in(run.folder) == files
