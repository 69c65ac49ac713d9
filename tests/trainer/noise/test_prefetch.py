"""Noise ahead of time: what is made when, handed out once, and never left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dpaudit.trainer.noise.prefetch import NoisePrefetcher
from dpaudit.vocabulary.errors import ForkedSession, NoiseReused

PATIENCE = 20.0


class Maker:
    """Makes tensors that tell their step, and writes down every call."""

    def __init__(self, *, failing: tuple[int, ...] = ()) -> None:
        self.calls: list[int] = []
        self.threads: set[int] = set()
        self.made: list[weakref.ref[Tensor]] = []
        self.failing = set(failing)

    def __call__(self, step: int) -> Tensor:
        self.calls.append(step)
        self.threads.add(threading.get_ident())
        if step in self.failing:
            self.failing.remove(step)
            raise ValueError(f"no noise for {step}")
        noise = torch.full((3,), float(step))
        self.made.append(weakref.ref(noise))
        return noise

    @property
    def alive(self) -> int:
        return sum(noise() is not None for noise in self.made)


def value(noise: Tensor) -> int:
    assert len(set(noise.tolist())) == 1
    return int(noise[0])


def settle(ahead: NoisePrefetcher) -> None:
    """Wait until the thread has nothing left to do."""
    ahead._thread.submit(int).result(PATIENCE)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def ahead(maker: Maker) -> Iterator[NoisePrefetcher]:
    with NoisePrefetcher(maker) as made:
        yield made


def test_steps_in_order_are_each_made_once_and_in_one_other_thread(
    ahead: NoisePrefetcher, maker: Maker
) -> None:
    assert [value(ahead.take(step)) for step in range(50)] == list(range(50))
    settle(ahead)
    assert maker.calls == list(range(51))
    assert len(maker.threads) == 1
    assert threading.get_ident() not in maker.threads


def test_the_next_step_s_noise_is_made_before_it_is_asked_for(
    ahead: NoisePrefetcher, maker: Maker
) -> None:
    settle(ahead)
    assert maker.calls == [0]
    ahead.take(0)
    settle(ahead)
    assert maker.calls == [0, 1]


def test_the_noise_is_made_while_the_caller_works() -> None:
    begun = threading.Event()

    def make(step: int) -> Tensor:
        if step == 1:
            begun.set()
        return torch.zeros(1)

    with NoisePrefetcher(make) as ahead:
        ahead.take(0)
        assert begun.wait(PATIENCE)  # though nobody asked for step 1


@given(st.lists(st.integers(0, 30), unique=True, max_size=20), st.integers(0, 30))
def test_whatever_the_order_each_step_gets_its_own_noise(steps: list[int], first: int) -> None:
    maker = Maker()
    with NoisePrefetcher(maker, first=first) as ahead:
        for number, step in enumerate(steps):
            assert value(ahead.take(step)) == step
            for used in steps[: number + 1]:
                with pytest.raises(NoiseReused, match=f"step {used}"):
                    ahead.take(used)
    assert set(steps) <= set(maker.calls)


def test_another_step_than_the_next_is_made_on_the_spot(
    ahead: NoisePrefetcher, maker: Maker
) -> None:
    settle(ahead)
    assert value(ahead.take(7)) == 7
    assert value(ahead.take(8)) == 8
    settle(ahead)
    assert maker.calls == [0, 7, 8, 9]


def test_a_step_that_was_made_in_vain_can_still_be_had(ahead: NoisePrefetcher) -> None:
    assert [value(ahead.take(step)) for step in (7, 0, 1, 8)] == [7, 0, 1, 8]


def test_a_step_that_was_handed_out_is_not_made_again(ahead: NoisePrefetcher, maker: Maker) -> None:
    for step in (1, 0, 2):
        ahead.take(step)
    settle(ahead)
    assert maker.calls.count(1) == 1


def test_no_more_than_one_step_is_kept(ahead: NoisePrefetcher, maker: Maker) -> None:
    for step in (0, 1, 2, 9, 10, 4, 11):
        ahead.take(step)
        settle(ahead)
        assert maker.alive <= 1


def test_long_runs_in_order_leave_nothing_to_remember(ahead: NoisePrefetcher) -> None:
    for step in range(200):
        ahead.take(step)
    assert len(ahead._taken._others) == 0


def test_what_the_maker_raises_is_raised_where_the_noise_is_asked_for() -> None:
    with NoisePrefetcher(Maker(failing=(0, 2, 9))) as ahead:
        for step in (0, 1, 2, 9):
            if step != 1:
                with pytest.raises(ValueError, match=f"no noise for {step}"):
                    ahead.take(step)
            assert value(ahead.take(step)) == step


def test_what_is_raised_for_a_step_that_nobody_takes_is_not_heard() -> None:
    with NoisePrefetcher(Maker(failing=(1,))) as ahead:
        ahead.take(0)
        assert value(ahead.take(5)) == 5


def test_after_the_close_there_is_neither_noise_nor_thread(maker: Maker) -> None:
    ahead = NoisePrefetcher(maker)
    ahead.take(0)
    (thread,) = ahead._thread._threads
    ahead.close()
    ahead.close()
    assert not thread.is_alive()
    assert maker.alive == 0
    with pytest.raises(RuntimeError):
        ahead.take(1)


def test_many_callers_get_each_step_once(ahead: NoisePrefetcher) -> None:
    def attempt(step: int) -> int:
        try:
            return value(ahead.take(step))
        except NoiseReused:
            return -1

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(attempt, [step for step in range(40) for _ in range(4)]))
    assert sorted(step for step in found if step >= 0) == list(range(40))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_gets_no_noise(ahead: NoisePrefetcher) -> None:
    ahead.take(0)
    child = os.fork()
    if child == 0:
        try:
            ahead.take(1)
        except ForkedSession:
            ahead.close()
            os._exit(42)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
    assert value(ahead.take(1)) == 1


SCRIPT = """
import torch
from dpaudit.trainer.noise.prefetch import NoisePrefetcher
ahead = NoisePrefetcher(lambda step: torch.zeros(step + 1))
print(len(ahead.take(0)))
"""


def test_a_process_that_does_not_close_ends_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
