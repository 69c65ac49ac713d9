"""Objects from before an audit are exempt from garbage collection, and only during it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from dpaudit.attacks import conformance
from dpaudit.attacks.conformance.garbage_collection import exempt_existing_objects

CLAIM = conformance.StepClaim(
    noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.5, steps=2, update_scale=1.0
)


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.own = self


@pytest.fixture(autouse=True)
def nothing_exempt() -> Iterator[None]:
    before = gc.get_freeze_count()
    gc.unfreeze()
    yield
    gc.unfreeze()
    if before:  # as the other tests have it
        gc.freeze()


def test_existing_objects_are_exempt_during_an_audit() -> None:
    found: list[int] = []

    class StopAudit(Exception):
        pass

    def make_trainer(records: object, seed: int) -> None:
        found.append(gc.get_freeze_count())
        raise StopAudit

    with pytest.raises(StopAudit):
        conformance.check(make_trainer, CLAIM, records=[([0.0], 0), ([1.0], 1)])
    assert found[0] > 0
    assert gc.get_freeze_count() == 0


def test_new_objects_are_collected_and_existing_ones_afterwards() -> None:
    existing = Cycle()
    kept = weakref.ref(existing)
    with exempt_existing_objects():
        made = Cycle()
        freed = weakref.ref(made)
        del existing, made
        gc.collect()
        assert freed() is None
        assert kept() is not None
    gc.collect()
    assert kept() is None


def test_exemption_of_the_process_is_left_alone() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    with exempt_existing_objects():
        pass
    assert gc.get_freeze_count() >= before > 0
