"""The accountant for Flower's strategies: what it costs, what it records, what it cannot cover.

Flower is not needed: its configuration and events are stood in for by plain objects.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
from ledgers import header

from dpaudit.accountants import Gaussian, PoissonSampled, from_flower
from dpaudit.runs.directory import RunDirectory
from dpaudit.runs.ledger_file import LedgerWriter
from dpaudit.trainer.federated.flower import LedgerAccountant
from dpaudit.vocabulary.errors import IntegrityError, InvalidArgument, RunExists, RunLocked
from dpaudit.vocabulary.ledger import UPDATE_SUM, Randomness, ReleaseEntry, ResumeEntry, Sampling
from dpaudit.vocabulary.privacy_terms import Adjacency, Unit
from dpaudit.workflow.account import epsilon_answers, request_for_run

SPENT = (1.993091, 2.943225, 3.7086349)
"""Epsilon of 1, 2 and 3 Gaussian releases with noise multiplier 2, at delta 1e-5."""


class Relation(Enum):
    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class Method(Enum):
    POISSON = "poisson"
    WITHOUT_REPLACEMENT = "without-replacement"
    NO_AMPLIFICATION = "no-amplification"


@dataclass(frozen=True)
class Config:
    target_delta: float = 1e-5
    population_size: int = 10
    neighboring_relation: Relation = Relation.ADD_OR_REMOVE_ONE
    sampling_method: Method = Method.NO_AMPLIFICATION
    max_epsilon: float | None = None


@dataclass(frozen=True)
class Event:
    noise_multiplier: float = 2.0
    sample_size: int = 4
    population_size: int = 10


@contextmanager
def accounting(out: Path, config: Config | None = None) -> Iterator[LedgerAccountant]:
    accountant = LedgerAccountant(config or Config(), out, clip_norm=0.1)
    try:
        yield accountant
    finally:
        accountant.close()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_epsilon_grows_by_the_known_figures(out: Path) -> None:
    with accounting(out) as accountant:
        before = accountant.get_privacy_spent()
        assert (before.epsilon, before.delta, before.num_releases) == (0.0, 1e-5, 0)
        for number, epsilon in enumerate(SPENT, 1):
            accountant.compose(Event())
            spent = accountant.get_privacy_spent()
            assert spent.epsilon == pytest.approx(epsilon, abs=5e-7)
            assert spent.num_releases == accountant.num_releases == number
        assert (spent.accounting_method, spent.optimal_order) == ("pld", None)
        assert accountant.get_epsilon(1e-6) > accountant.get_epsilon(1e-5) > SPENT[2] - 1e-6


def test_delta_and_epsilon_are_inverse(out: Path) -> None:
    with accounting(out) as accountant:
        assert accountant.get_delta(1.0) == 0.0
        accountant.compose(Event(), count=3)
        assert accountant.get_delta(accountant.get_epsilon(1e-5)) == pytest.approx(1e-5, rel=1e-6)


def test_asking_for_the_cost_of_a_release_changes_nothing(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        state, ledger = accountant.state_dict(), RunDirectory(out).ledger.read_bytes()
        assert accountant.would_exceed(Event(), max_epsilon=2.9)
        assert not accountant.would_exceed(Event(), max_epsilon=2.95)
        assert accountant.would_exceed(Event(), max_epsilon=2.95, count=2)
        assert accountant.state_dict() == state
        assert RunDirectory(out).ledger.read_bytes() == ledger


def test_the_budget_of_the_config_is_the_default(out: Path) -> None:
    with accounting(out, Config(max_epsilon=1.99)) as accountant:
        assert accountant.would_exceed(Event())
        assert not accountant.would_exceed(Event(), max_epsilon=2.0)
    with accounting(out.with_name("other")) as accountant, pytest.raises(InvalidArgument):
        accountant.would_exceed(Event())


def test_the_config_is_the_object_that_was_given(out: Path) -> None:
    config = Config()
    with accounting(out, config) as accountant:
        assert accountant.config is config


def test_the_ledger_is_a_run_and_says_what_is_not_covered(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event(), count=3)
        accountant.finish()
    ledger = RunDirectory(out).read_finished()
    header = ledger.header
    assert [(one.what, one.mechanism) for one in ledger.releases] == [
        (UPDATE_SUM, Gaussian(2.0))
    ] * 3
    assert (header.unit, header.adjacency) == (Unit.PARTICIPANT, Adjacency.ZERO_OUT)
    assert (header.sampling, header.randomness) == (Sampling.FULL_BATCH, Randomness.SEEDED)
    assert (header.clip_norm, header.schedule_fixed_in_advance) == (0.1, True)
    assert header.federation is not None
    assert header.federation.participants == 10
    assert "server" not in header.federation.protects_against
    told = " / ".join(ledger.unaccounted)
    for missing in ("round", "clip norm", "standard deviation", "replies", "randomness", "metrics"):
        assert missing in told
    request = request_for_run(out, None)
    (answer,) = epsilon_answers(request, "pld")
    assert answer.epsilon.upper == pytest.approx(SPENT[2], abs=5e-7)
    assert (answer.unit, answer.delta) == (Unit.PARTICIPANT, 1e-5)


def test_an_unfinished_ledger_is_accounted_for_with_a_given_delta(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        request = request_for_run(out, 1e-5)
    assert request.caveat is not None
    assert epsilon_answers(request, "pld")[0].epsilon.upper == pytest.approx(SPENT[0], abs=5e-7)


def test_a_restarted_server_continues_with_what_it_spent(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
    with accounting(out) as accountant:
        assert accountant.num_releases == 1
        accountant.compose(Event(), count=2)
        assert accountant.get_privacy_spent().epsilon == pytest.approx(SPENT[2], abs=5e-7)
    lines = RunDirectory(out).read_unfinished().lines
    assert [type(line) is ResumeEntry for line in lines] == [False, True, False, False]


def test_a_torn_last_line_counts_as_a_release(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event(), count=2)
    ledger = RunDirectory(out).ledger
    ledger.write_bytes(ledger.read_bytes()[:-20])
    with accounting(out) as accountant:
        assert accountant.num_releases == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"population_size": 11}, "federation"),
        ({"sampling_method": Method.POISSON}, "adjacency"),
        (
            {
                "sampling_method": Method.WITHOUT_REPLACEMENT,
                "neighboring_relation": Relation.REPLACE_ONE,
            },
            "adjacency",
        ),
    ],
)
def test_a_ledger_of_other_settings_is_not_continued(
    out: Path, change: dict[str, object], named: str
) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
    with pytest.raises(InvalidArgument, match=named):
        LedgerAccountant(Config(**change), out, clip_norm=0.1)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="clip_norm"):
        LedgerAccountant(Config(), out, clip_norm=0.2)
    with accounting(out) as accountant:  # a refused attempt leaves the ledger usable
        assert accountant.num_releases == 1


def test_a_finished_run_is_not_continued(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        accountant.finish()
    with pytest.raises(RunExists):
        LedgerAccountant(Config(), out, clip_norm=0.1)


def test_two_accountants_cannot_share_a_ledger(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        with pytest.raises(RunLocked):
            LedgerAccountant(Config(), out, clip_norm=0.1)


def test_a_run_without_a_release_cannot_be_finished(out: Path) -> None:
    with accounting(out) as accountant, pytest.raises(IntegrityError):
        accountant.finish()


def test_a_release_that_cannot_be_written_is_an_error(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        with RunDirectory(out).ledger.open("ab") as file:
            file.write(b"\n")
        with pytest.raises(IntegrityError):
            accountant.compose(Event())


# --- State


@pytest.mark.parametrize(
    ("config", "mechanism"),
    [
        (Config(), Gaussian(2.0)),
        (Config(sampling_method=Method.POISSON), PoissonSampled(Gaussian(2.0), 0.4)),
    ],
)
def test_a_state_is_json_and_has_all_releases(out: Path, config: Config, mechanism: object) -> None:
    with accounting(out, config) as accountant:
        accountant.compose(Event(), count=3)
        state = json.loads(json.dumps(accountant.state_dict()))
        found = from_flower(state)
        assert (found.mechanism, found.times) == (mechanism, 3)  # type: ignore[union-attr]
        accountant.load_state_dict(state)
        assert accountant.num_releases == 3
        assert accountant.state_dict() == state


def test_a_fixed_sample_has_its_size_in_the_state(out: Path) -> None:
    config = Config(
        sampling_method=Method.WITHOUT_REPLACEMENT, neighboring_relation=Relation.REPLACE_ONE
    )
    with accounting(out, config) as accountant:
        accountant.compose(Event())
        (entry,) = json.loads(json.dumps(accountant.state_dict()))["compositions"]
        assert entry["event"]["sample_size"] == 4
        # Replacing one participant moves the sum by twice the clip norm.
        assert accountant.get_epsilon(1e-5) > SPENT[0]


def test_a_state_gives_a_new_ledger_the_releases_that_it_lacks(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event(), count=2)
        state = accountant.state_dict()
    with accounting(out.with_name("copy")) as accountant:
        accountant.load_state_dict(state)
        assert accountant.num_releases == 2
        accountant.compose(Event())
        accountant.load_state_dict(state)  # an old state does not make the ledger forget
        assert accountant.num_releases == 3
        assert accountant.get_privacy_spent().epsilon == pytest.approx(SPENT[2], abs=5e-7)


def test_the_state_of_flowers_own_accountant_can_be_taken_over(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        state = accountant.state_dict()
    rdp = state | {"backend": "rdp", "orders": [2.0, 8.0]}
    with accounting(out.with_name("copy")) as accountant:
        accountant.load_state_dict(rdp)
        assert accountant.num_releases == 1


def test_a_state_of_another_run_or_config_is_refused(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        state = accountant.state_dict()
        with pytest.raises(InvalidArgument, match="config"):
            accountant.load_state_dict(
                state | {"config": {**state["config"], "target_delta": 1e-6}}
            )  # type: ignore[dict-item]
        with pytest.raises(InvalidArgument, match="state"):
            accountant.load_state_dict({})
    with accounting(out.with_name("other")) as accountant:
        accountant.compose(Event(noise_multiplier=1.0))
        with pytest.raises(InvalidArgument, match="of the run"):
            accountant.load_state_dict(state)
        assert accountant.num_releases == 1


# --- Refusals


@pytest.mark.parametrize(
    "event",
    [
        Event(noise_multiplier=0),
        Event(noise_multiplier=math.nan),
        Event(sample_size=0),
        Event(sample_size=11),
        Event(sample_size=4.5),  # type: ignore[arg-type]
        Event(population_size=9),
    ],
)
def test_a_malformed_event_is_refused_and_not_recorded(out: Path, event: Event) -> None:
    with accounting(out) as accountant:
        for ask in (accountant.compose, lambda one: accountant.would_exceed(one, max_epsilon=1.0)):
            with pytest.raises(InvalidArgument):
                ask(event)  # type: ignore[operator]
        assert accountant.num_releases == 0


def test_noise_of_numpy_is_recorded(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event(noise_multiplier=np.float64(2.0)))
        accountant.compose(Event(noise_multiplier=2))
        assert accountant.num_releases == 2
    recorded = RunDirectory(out).read_unfinished().releases
    assert [one.mechanism for one in recorded] == [Gaussian(2.0)] * 2


def test_more_releases_than_a_ledger_holds_are_refused(out: Path) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        state = accountant.state_dict()
        state["compositions"][0]["count"] = 10**15  # type: ignore[index]
        with pytest.raises(InvalidArgument, match="state"):
            accountant.load_state_dict(state)
        with pytest.raises(InvalidArgument, match="count"):
            accountant.compose(Event(), 10**15)
        with pytest.raises(InvalidArgument, match="state"):
            accountant.load_state_dict(None)  # type: ignore[arg-type]
        assert accountant.num_releases == 1


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_malformed_count_is_refused(out: Path, count: int) -> None:
    with accounting(out) as accountant, pytest.raises(InvalidArgument, match="count"):
        accountant.compose(Event(), count=count)


@pytest.mark.parametrize(
    "config",
    [
        Config(target_delta=0),
        Config(target_delta=math.nan),
        Config(population_size=0),
        Config(max_epsilon=0),
        Config(neighboring_relation=Relation.REPLACE_ONE),
        Config(sampling_method=Method.WITHOUT_REPLACEMENT),
    ],
)
def test_a_malformed_config_writes_no_file(out: Path, config: Config) -> None:
    with pytest.raises(InvalidArgument):
        LedgerAccountant(config, out, clip_norm=0.1)
    with pytest.raises(InvalidArgument, match="clip_norm"):
        LedgerAccountant(Config(), out, clip_norm=math.nan)
    assert not out.exists()


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_malformed_delta_epsilon_or_budget_is_refused(out: Path, value: float) -> None:
    with accounting(out) as accountant:
        accountant.compose(Event())
        with pytest.raises(InvalidArgument):
            accountant.get_epsilon(value)
        with pytest.raises(InvalidArgument):
            accountant.get_delta(value)
        with pytest.raises(InvalidArgument):
            accountant.would_exceed(Event(), max_epsilon=value)


def test_the_ledger_of_another_kind_of_run_is_not_continued(out: Path) -> None:
    out.mkdir()
    with LedgerWriter.create(out / "ledger.jsonl", header()) as writer:
        writer.record_release(ReleaseEntry("gradient sum", Gaussian(1.0), step=0))
    with pytest.raises(InvalidArgument):
        LedgerAccountant(Config(), out, clip_norm=0.1)


def test_neither_flower_nor_torch_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys, dpaudit.trainer\n"
        "from dpaudit.trainer.federated.flower import LedgerAccountant, ServerSettings\n"
        "found = {'flwr', 'torch', 'grpc'} & sys.modules.keys()\n"
        "raise SystemExit(str(found) if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
