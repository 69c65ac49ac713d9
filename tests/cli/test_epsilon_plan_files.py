"""``dpaudit epsilon FILE``: answers that dpaudit wrote, plans of phases, and other libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from calling import Call
from foreign_files import ALLOCATED, EVENT, FLOWER_STATE, HISTORY, JAX_PLAN, TF_LEDGER

from dpaudit.accountants import pld
from dpaudit.vocabulary.errors import ExitCode, InvalidArgument
from dpaudit.vocabulary.mechanism import (
    Composed,
    DiscreteLaplace,
    Exponential,
    Gaussian,
    Laplace,
    Mechanism,
    PoissonSampled,
    PureDP,
    Repeated,
    SampledWithoutReplacement,
    Shuffled,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from dpaudit.workflow.plan_files import read_checkpoint_history

STEPS = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
PLAN = ("--sampling-rate", "0.01", "--noise-multiplier", "1", "--steps", "1000")


def priced(call: Call, *arguments: object) -> tuple[float, dict[str, object]]:
    """Return pld's upper end, and the printed document."""
    result = call("epsilon", *arguments, "--format", "json")
    assert result.code == ExitCode.PASS, result.err
    document = json.loads(result.out)
    (found,) = [one for one in document["results"] if one["accountant"] == "pld"]
    return found["epsilon"]["upper"], document


@pytest.mark.parametrize(
    "mechanism",
    [
        STEPS,
        Laplace(2.0),
        Composed([STEPS, Repeated(DiscreteLaplace(5.0, 2), 3), Exponential(0.1)]),
    ],
    ids=repr,
)
def test_a_mechanism_tree_is_read_as_it_is_written(
    call: Call, tmp_path: Path, mechanism: Mechanism
) -> None:
    path = tmp_path / "mechanism.json"
    path.write_bytes(msgspec.json.encode(mechanism))
    upper, document = priced(call, path, "--delta", "1e-6")
    assert upper == pld.profile(mechanism).epsilon(delta=1e-6).upper
    assert document["mechanism"] == json.loads(path.read_text())


@pytest.mark.parametrize("command", ["epsilon", "delta", "noise"])
def test_an_answer_is_read_back(call: Call, tmp_path: Path, command: str) -> None:
    goal = {
        "epsilon": ("--noise-multiplier", "1", "--delta", "1e-5"),
        "delta": ("--noise-multiplier", "1", "--epsilon", "2"),
        "noise": ("--target-epsilon", "2", "--delta", "1e-5"),
    }[command]
    written = call(command, "--sampling-rate", "0.01", "--steps", "1000", *goal, "--format", "json")
    path = tmp_path / "answer.json"
    path.write_text(written.out)
    mechanism = msgspec.convert(json.loads(written.out)["mechanism"], Mechanism)
    upper, _ = priced(call, path, "--delta", "1e-6")
    assert upper == pld.profile(mechanism).epsilon(delta=1e-6).upper


def test_an_answer_keeps_its_delta_and_adjacency(call: Call, tmp_path: Path) -> None:
    expected, document = priced(call, *PLAN, "--delta", "1e-5", "--adjacency", "zero-out")
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(document))
    assert priced(call, path)[0] == expected
    asked, _ = priced(call, path, "--adjacency", "add-or-remove-one", "--delta", "1e-6")
    assert asked == pld.profile(STEPS).epsilon(delta=1e-6).upper


LAPLACE = '[[release]]\nmechanism = { kind = "laplace", scale = 1.0 }\n'

PHASES = """
delta = 1e-5

[[release]]
noise_multiplier = 1.0
sampling_rate = 0.01
steps = 1000

[[release]]
mechanism = { kind = "laplace", scale = 10.0 }
times = 3

[[release]]
noise_multiplier = 20.0
"""


def test_a_plan_of_phases_is_priced(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(PHASES)
    whole = Composed([STEPS, Repeated(Laplace(10.0), 3), Gaussian(20.0)])
    assert priced(call, path)[0] == pld.profile(whole).epsilon(delta=1e-5).upper
    path.write_text('adjacency = "replace-one"\n' + PHASES)
    replaced = pld.profile(whole, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
    assert priced(call, path)[0] == replaced.upper
    # What is asked for overrides the file, in the phases as in the answer.
    asked = priced(call, path, "--adjacency", "add-or-remove-one")[0]
    assert asked == pld.profile(whole).epsilon(delta=1e-5).upper


def test_an_answer_keeps_its_unit(call: Call, tmp_path: Path) -> None:
    path, state = tmp_path / "answer.json", tmp_path / "state.json"
    state.write_text(json.dumps(FLOWER_STATE))
    _, document = priced(call, state)
    path.write_text(json.dumps(document))
    _, again = priced(call, path)
    assert [one["unit"] for one in again["results"]] == ["participant"] * len(again["results"])


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("release = []", "at least one phase"),
        ("[[release]]\nsteps = 3", "either noise_multiplier or mechanism"),
        ("[[release]]\nnoise_multiplier = 1.0\nsteps = 0", "whole number"),
        ("[[release]]\nnoise_multiplier = -1.0", "noise_multiplier"),
        ("[[release]]\nnoise_multiplier = 1.0\ntimes = 3", "left out beside noise_multiplier"),
        (LAPLACE + "steps = 3", "left out beside mechanism"),
        (LAPLACE + "sampling_rate = 0.5", "left out beside mechanism"),
        (LAPLACE + "times = 0", "whole number"),
        ("[[release]]\nnoise_multiplier = 1.0\nsampling_rate = 1.5", "sampling_rate"),
        ("[[release]]\nnoise = 1.0", "unknown key release[0].noise"),
        ("[[release]]\nsample_rate = 1.0", "did you mean sampling_rate?"),
        ('[[release]]\nmechanism = { kind = "magic" }', "magic"),
        ('[[release]]\nmechanism = { kind = "laplac" }', "did you mean laplace?"),
        ('[[release]]\nnoise_multiplier = "1"', "release[0].noise_multiplier"),
        ("[[releases]]\nnoise_multiplier = 1.0", "[[release]] tables"),
        ("", "[[release]] tables"),
        ("[[release]]\nnoise_multiplier = 1.0", "--delta"),
    ],
)
def test_what_is_no_plan_is_refused(call: Call, tmp_path: Path, plan: str, words: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(plan)
    result = call("epsilon", path)
    assert result.code == ExitCode.USAGE
    assert words in result.err
    assert "$." not in result.err


@pytest.mark.parametrize(
    ("document", "source"),
    [
        (HISTORY, "opacus"),
        ({"history": HISTORY, "mechanism": "prv"}, "opacus"),
        (EVENT, "dp-event"),
        (ALLOCATED, "dp-event"),
        (TF_LEDGER, "tf-privacy"),
        (JAX_PLAN, "jax-privacy"),
        (FLOWER_STATE, "flower"),
    ],
)
def test_a_lone_file_is_recognized(
    call: Call, tmp_path: Path, document: object, source: str
) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document))
    named = call("epsilon", "--from", source, path, "--delta", "1e-5", "--format", "json")
    found = call("epsilon", path, "--delta", "1e-5", "--format", "json")
    assert (found.code, found.out, found.err) == (named.code, named.out, named.err)
    assert found.code == ExitCode.PASS


@pytest.mark.parametrize("text", ["3", '"text"', "null", "{}", "[]", "[[1, 2]]"])
def test_a_file_that_is_none_of_these_is_refused(call: Call, tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    result = call("epsilon", path, "--delta", "1e-5")
    assert result.code == ExitCode.USAGE
    assert "Traceback" not in result.err


def test_batches_of_a_fixed_size_are_read(call: Call, tmp_path: Path) -> None:
    mechanism = Repeated(SampledWithoutReplacement(Gaussian(1.0), 10, 1000), 50)
    path = tmp_path / "mechanism.json"
    path.write_bytes(msgspec.json.encode(mechanism))
    upper, _ = priced(call, path, "--delta", "1e-5", "--adjacency", "replace-one")
    expected = pld.profile(mechanism, adjacency=Adjacency.REPLACE_ONE).epsilon(delta=1e-5)
    assert upper == expected.upper


@pytest.mark.parametrize("document", [EVENT, TF_LEDGER, JAX_PLAN])
def test_files_of_other_libraries_cost_what_their_steps_cost(
    call: Call, tmp_path: Path, document: object
) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps(document))
    upper, _ = priced(call, path, "--delta", "1e-5")
    steps = Repeated(PoissonSampled(Gaussian(1.0), 0.01), 1000)
    assert upper == pld.profile(steps).epsilon(delta=1e-5).upper


def test_a_ledger_of_tensorflow_privacy_comes_with_what_it_does_not_say(
    call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps(TF_LEDGER))
    assert "Poisson sampling only" in call("epsilon", path, "--delta", "1e-5").err


def test_delta_0_answers_for_bounded_losses_and_is_refused_for_others(
    call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "mechanism.json"
    path.write_bytes(msgspec.json.encode(Repeated(Laplace(2.0), 3)))
    found = json.loads(call("epsilon", path, "--delta", "0", "--format", "json").out)
    assert [one["accountant"] for one in found["results"]] == ["pld"]
    assert found["results"][0]["epsilon"] == {"lower": 1.5, "upper": 1.5}
    for more in (("--accountant", "rdp"), ("--accountant", "naive")):
        assert call("epsilon", path, "--delta", "0", *more).code == ExitCode.USAGE
    path.write_bytes(msgspec.json.encode(Gaussian(1.0)))
    refused = call("epsilon", path, "--delta", "0")
    assert refused.code == ExitCode.USAGE
    assert "no bound of the privacy loss is known" in refused.err


def test_accountants_that_refuse_a_mechanism_are_left_out_of_all(
    call: Call, tmp_path: Path
) -> None:
    path = tmp_path / "mechanism.json"
    path.write_bytes(msgspec.json.encode(Shuffled(PureDP(1.0), 100)))
    arguments = ("--delta", "1e-5", "--adjacency", "replace-one", "--format", "json")
    found = json.loads(call("epsilon", path, *arguments).out)
    assert [one["accountant"] for one in found["results"]] == ["naive", "pld"]
    back = tmp_path / "answer.json"
    back.write_text(json.dumps(found))
    assert json.loads(call("epsilon", back, "--format", "json").out)["results"] == found["results"]


class TestCheckpoint:
    """A checkpoint of Opacus, read without running its code."""

    @pytest.fixture
    def torch(self) -> object:
        return pytest.importorskip("torch")

    def test_the_history_in_a_checkpoint_is_priced(
        self, call: Call, tmp_path: Path, torch: Any
    ) -> None:
        path, history = tmp_path / "checkpoint.pt", tmp_path / "history.json"
        state = {"history": [(1.0, 0.01, 1000)], "iteration": 1, "mechanism": "prv"}
        weights = torch.nn.Linear(2, 2).state_dict()
        torch.save({"module_state_dict": weights, "privacy_accountant_state_dict": state}, path)
        history.write_text(json.dumps(HISTORY))
        arguments = ("--delta", "1e-5", "--format", "json")
        assert call("epsilon", path, *arguments).out == call("epsilon", history, *arguments).out
        torch.save(state, path)
        assert call("epsilon", path, *arguments).out == call("epsilon", history, *arguments).out

    def test_a_log_named_history_does_not_hide_the_accountant(
        self, tmp_path: Path, torch: Any
    ) -> None:
        path, losses = tmp_path / "checkpoint.pt", [[2.9, 0.01, 1], [2.5, 0.02, 2]]
        state = {"history": [(1.0, 0.02, 50000)], "mechanism": "rdp"}
        under = {"privacy_accountant_state_dict": state}
        torch.save(under | {"history": [2.9, 2.5]}, path)
        assert read_checkpoint_history(path) == state
        torch.save(under | {"history": losses}, path)
        with pytest.raises(InvalidArgument, match=r"'privacy_accountant_state_dict' and 'history'"):
            read_checkpoint_history(path)
        torch.save(under | {"accountant": state | {"history": losses}}, path)
        with pytest.raises(InvalidArgument, match=r"_state_dict' and 'accountant'"):
            read_checkpoint_history(path)

    def test_code_in_a_checkpoint_is_not_run(self, call: Call, tmp_path: Path, torch: Any) -> None:
        path, mark = tmp_path / "checkpoint.pt", tmp_path / "mark"
        torch.save({"history": _Touch(str(mark))}, path)
        found = call("epsilon", path, "--delta", "1e-5")
        assert found.code == ExitCode.USAGE
        assert "weights_only" in found.err
        assert not mark.exists()

    @pytest.mark.parametrize("content", [{"weights": 1}, {"history": 3}, 7])
    def test_a_checkpoint_without_a_history_is_refused(
        self, call: Call, tmp_path: Path, torch: Any, content: object
    ) -> None:
        path = tmp_path / "checkpoint.pt"
        torch.save(content, path)
        found = call("epsilon", path, "--delta", "1e-5")
        assert found.code == ExitCode.USAGE
        assert "history" in found.err

    def test_without_torch_the_error_names_the_extra(
        self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "checkpoint.pt"
        path.write_bytes(b"PK")
        monkeypatch.setitem(sys.modules, "torch", None)
        found = call("epsilon", path, "--delta", "1e-5")
        assert found.code == ExitCode.USAGE
        assert "dpaudit[train]" in found.err


class _Touch:
    """An object whose pickle makes a file where it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(self.path),)  # type: ignore[return-value]
