"""Differences between two runs are named by cause, and by what they do to epsilon."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dpaudit.gate.run_differences import (
    EpsilonEffect,
    differences_in_words,
    find_differences,
    isolated_changes,
)
from dpaudit.vocabulary.baseline import ReleaseCount
from dpaudit.vocabulary.ledger import NoiseKind, Randomness, Sampling
from dpaudit.vocabulary.mechanism import (
    Gaussian,
    Laplace,
    PoissonSampled,
    SampledWithoutReplacement,
)
from dpaudit.vocabulary.privacy_terms import Adjacency
from tests.gate.figures import CLAIM, COUNT, RUN, STEP


def step(noise: float = 1.1, rate: float = 0.01, times: int = 1000) -> ReleaseCount:
    return ReleaseCount("gradient sum", PoissonSampled(Gaussian(noise), rate), times)


@pytest.mark.parametrize(
    ("recorded", "cause", "before", "after", "effect"),
    [
        ((step(times=2000), COUNT), "steps", "1000", "2000", EpsilonEffect.RAISES),
        ((step(times=500), COUNT), "steps", "1000", "500", EpsilonEffect.LOWERS),
        ((step(rate=0.02), COUNT), "sampling rate", "0.01", "0.02", EpsilonEffect.RAISES),
        ((step(noise=0.8), COUNT), "noise multiplier", "1.1", "0.8", EpsilonEffect.RAISES),
        ((step(noise=2.0), COUNT), "noise multiplier", "1.1", "2", EpsilonEffect.LOWERS),
        ((STEP,), "release", "record count", "not there", EpsilonEffect.LOWERS),
        (
            (STEP, COUNT, ReleaseCount("loss", Laplace(1.0), 1)),
            "release",
            "not there",
            "loss",
            EpsilonEffect.RAISES,
        ),
        (
            (ReleaseCount("gradient sum", Gaussian(1.1), 1000), COUNT),
            "mechanism",
            "poisson-sampled gaussian",
            "gaussian",
            EpsilonEffect.UNKNOWN,
        ),
        (
            (step(times=500), step(noise=2.0, times=500), COUNT),
            "schedule",
            "1 kinds of step",
            "2 kinds of step",
            EpsilonEffect.UNKNOWN,
        ),
    ],
)
def test_what_the_ledger_books_is_compared_by_cause(
    recorded: tuple[ReleaseCount, ...], cause: str, before: str, after: str, effect: EpsilonEffect
) -> None:
    (found,) = find_differences(RUN, replace(RUN, recorded=recorded))
    assert found.cause.split(" (")[0] == cause
    assert (found.before, found.after, found.effect) == (before, after, effect)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("adjacency", Adjacency.ZERO_OUT, "adjacency"),
        ("sampling", Sampling.SHUFFLED, "sampling"),
        ("accountant", "rdp", "accountant"),
        ("delta", 1e-6, "delta"),
        ("unit", "user", "unit of privacy"),
        ("unaccounted", ("hyperparameter-tuning",), "unaccounted"),
        ("randomness", Randomness.SEEDED, "randomness"),
        ("noise", NoiseKind.GRID, "noise"),
        ("dpaudit_version", "2", "version of dpaudit"),
    ],
)
def test_what_the_claim_says_is_compared(name: str, value: object, cause: str) -> None:
    (found,) = find_differences(RUN, replace(RUN, claim=replace(CLAIM, **{name: value})))
    assert found.cause == cause


def test_clip_norm_and_versions_leave_epsilon_as_it_is() -> None:
    found = find_differences(RUN, replace(RUN, clip_norm=1.0, versions={"numpy": "2"}))
    assert [one.cause for one in found] == [
        "clip norm",
        "version of torch",
        "version of numpy",
    ]
    assert {one.effect for one in found} == {EpsilonEffect.NONE}
    assert differences_in_words(found) == "nothing recorded in the ledgers differs"


def test_what_raises_epsilon_comes_first() -> None:
    after = replace(RUN, recorded=(step(noise=0.8, rate=0.001),), clip_norm=2.0)
    effects = [one.effect for one in find_differences(RUN, after)]
    assert effects == [
        EpsilonEffect.RAISES,
        EpsilonEffect.LOWERS,
        EpsilonEffect.LOWERS,
        EpsilonEffect.NONE,
    ]


def test_a_run_does_not_differ_from_itself() -> None:
    assert find_differences(RUN, RUN) == ()


def test_each_change_alone_leaves_the_rest_as_it_was() -> None:
    after = replace(RUN, recorded=(step(noise=0.8, rate=0.02, times=10), COUNT))
    alone = {one.difference.cause.split(" (")[0]: one.alone for one in isolated_changes(RUN, after)}
    assert alone == {
        "noise multiplier": (COUNT, step(noise=0.8)),
        "sampling rate": (COUNT, step(rate=0.02)),
        "steps": (COUNT, step(times=10)),
    }


def test_sizes_of_a_fixed_batch_are_compared_field_by_field() -> None:
    old = ReleaseCount("gradient sum", SampledWithoutReplacement(Gaussian(1.0), 10, 1000), 5)
    new = replace(old, mechanism=SampledWithoutReplacement(Gaussian(1.0), 20, 1000))
    (found,) = find_differences(replace(RUN, recorded=(old,)), replace(RUN, recorded=(new,)))
    assert str(found) == "batch size (gradient sum) was 10, is 20: raises epsilon"
