"""The claim of a federation: the largest over its participants, and everything that it assumes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from federations import DELTA, LOCAL_STEP, ROUND, header_of
from ledgers import header
from msgspec.structs import replace

from dpaudit.accountants import answers, pld
from dpaudit.accountants.answers import (
    claim_from_ledger,
    compute_epsilon,
    costliest_ledger,
    ledger_epsilons,
)
from dpaudit.vocabulary.errors import IntegrityError, UnsupportedMechanism
from dpaudit.vocabulary.federation import DP_FEDAVG, FEDAVG
from dpaudit.vocabulary.ledger import (
    SERVER,
    ChangeEntry,
    PrivacyLedger,
    Randomness,
    ReleaseEntry,
    ResumeEntry,
    participant_name,
)
from dpaudit.vocabulary.mechanism import Composed, Gaussian, PoissonSampled, Release, Repeated
from dpaudit.vocabulary.privacy_terms import Unit


def lines(release: Release, times: int) -> tuple[ReleaseEntry, ...]:
    return tuple(ReleaseEntry("gradient sum", release, step) for step in range(times))


def participant(
    number: int, *more: Any, strategy: str = FEDAVG, **changes: object
) -> PrivacyLedger:
    return PrivacyLedger(header_of(strategy, 3, number, **changes), tuple(more), f"{number}" * 64)


def federation(*ledgers: PrivacyLedger, own: tuple[Any, ...] = (), strategy: str = FEDAVG,
               **changes: object) -> PrivacyLedger:  # fmt: skip
    named = {participant_name(number): one for number, one in enumerate(ledgers)}
    return PrivacyLedger(header_of(strategy, 3, None, **changes), own, "f" * 64, named)


def epsilon_of(mechanism: Any) -> Any:
    return pld.profile(mechanism).epsilon(delta=DELTA)


def test_claim_is_that_of_the_costliest_participant() -> None:
    ledger = federation(
        participant(0, *lines(LOCAL_STEP, 5)),
        participant(1, *lines(LOCAL_STEP, 20)),
        participant(2, *lines(LOCAL_STEP, 10)),
    )
    claim = claim_from_ledger(ledger, DELTA, "pld")
    assert claim.epsilon == epsilon_of(Repeated(LOCAL_STEP, 20))
    assert (claim.releases, claim.ledger_head, claim.unit) == (35, "f" * 64, Unit.RECORD)
    assert claim.federation == ledger.header.federation
    assert costliest_ledger(ledger, DELTA) is ledger.participants["001"]


def test_both_ends_of_the_claim_are_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ledger with the largest upper end need not be the one with the largest lower end.
    wide, narrow = lines(LOCAL_STEP, 2), lines(LOCAL_STEP, 3)
    real = answers.compute_epsilon

    def computed(accountant: str, mechanism: Any, *more: Any) -> Any:
        found = real(accountant, mechanism, *more)
        ends = (0.1, 9.0) if mechanism == Composed((Repeated(LOCAL_STEP, 2),)) else (2.0, 3.0)
        return replace(found, epsilon=type(found.epsilon)(*ends))

    monkeypatch.setattr(answers, "compute_epsilon", computed)
    claim = claim_from_ledger(
        federation(participant(0, *wide), participant(1, *narrow)), DELTA, "pld"
    )
    assert (claim.epsilon.lower, claim.epsilon.upper) == (2.0, 9.0)


def test_equal_compositions_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[Any] = Counter()
    real = compute_epsilon

    def counted(accountant: str, mechanism: Any, *more: Any) -> Any:
        asked[mechanism] += 1
        return real(accountant, mechanism, *more)

    monkeypatch.setattr(answers, "compute_epsilon", counted)
    other = PoissonSampled(Gaussian(3.0), 0.1)
    mixed = (*lines(LOCAL_STEP, 2), *lines(other, 2))
    ledger = federation(
        participant(0, *mixed), participant(1, *mixed[::-1]), participant(2, *lines(LOCAL_STEP, 2))
    )
    assert len(ledger_epsilons(ledger, DELTA, "pld")) == 3
    assert sorted(asked.values()) == [1, 1]


def test_releases_of_the_server_count_for_every_record() -> None:
    ledger = federation(participant(0, *lines(LOCAL_STEP, 5)), participant(1), own=lines(ROUND, 2))
    found = ledger_epsilons(ledger, DELTA, "pld")
    both = Composed((Repeated(ROUND, 2), Repeated(LOCAL_STEP, 5)))
    assert found["000"].epsilon == epsilon_of(both)
    assert found["001"].epsilon == epsilon_of(Repeated(ROUND, 2))
    assert claim_from_ledger(ledger, DELTA, "pld").releases == 7


def test_participant_level_claim_is_the_largest_of_server_and_participants() -> None:
    level: dict[str, Any] = {"strategy": DP_FEDAVG}
    ahead = federation(
        participant(0, *lines(ROUND, 4), **level),
        participant(1, *lines(ROUND, 3), **level),
        own=lines(ROUND, 3),
        **level,
    )
    claim = claim_from_ledger(ahead, DELTA, "pld")
    assert claim.epsilon == epsilon_of(Repeated(ROUND, 4))
    assert (claim.unit, claim.releases) == (Unit.PARTICIPANT, 4)
    assert set(ahead.accounted_ledgers) == {SERVER, "000", "001"}


def test_participant_without_release_costs_nothing() -> None:
    ledger = federation(participant(0), participant(1, *lines(LOCAL_STEP, 1)))
    assert list(ledger.accounted_ledgers) == ["001"]
    with pytest.raises(IntegrityError, match="no release"):
        claim_from_ledger(federation(participant(0), participant(1)), DELTA, "pld")
    with pytest.raises(IntegrityError, match="no release"):
        costliest_ledger(federation(participant(0)), DELTA)


def test_claim_lists_what_any_ledger_leaves_out_or_assumes() -> None:
    changed = ChangeEntry("pruned", 3)
    ledger = federation(
        participant(
            0, *lines(LOCAL_STEP, 1), changed, unaccounted=("tuning",), assumed_public=("a",)
        ),
        participant(
            1, *lines(LOCAL_STEP, 1), unaccounted=("warm start",), assumed_public=("b", "a")
        ),
        unaccounted=("tuning",),
        assumed_public=("c",),
    )
    claim = claim_from_ledger(ledger, DELTA, "pld")
    assert claim.unaccounted == (
        "tuning",
        "model changed outside of the recorded steps at step 3: pruned",
        "warm start",
    )
    assert claim.assumed_public == ("c", "a", "b")


def test_one_seeded_process_makes_the_claim_seeded() -> None:
    seeded = ResumeEntry(1, Randomness.SEEDED)
    secure = federation(participant(0, *lines(LOCAL_STEP, 1)))
    mixed = federation(
        participant(0, *lines(LOCAL_STEP, 1)), participant(1, *lines(LOCAL_STEP, 1), seeded)
    )
    assert claim_from_ledger(secure, DELTA, "pld").randomness is Randomness.SECURE
    assert claim_from_ledger(mixed, DELTA, "pld").randomness is Randomness.SEEDED


def test_one_participant_that_no_theorem_covers_refuses_the_claim() -> None:
    ledger = federation(
        participant(0, *lines(LOCAL_STEP, 1)),
        participant(1, *lines(LOCAL_STEP, 2), schedule_fixed_in_advance=False),
    )
    with pytest.raises(UnsupportedMechanism, match="chosen during the run"):
        claim_from_ledger(ledger, DELTA, "pld")


def test_claim_of_one_trainer_is_as_before() -> None:
    ledger = PrivacyLedger(header(), lines(LOCAL_STEP, 7), "a" * 64)
    claim = claim_from_ledger(ledger, DELTA, "pld")
    assert (claim.releases, claim.federation) == (7, None)
    assert claim.epsilon == epsilon_of(Repeated(LOCAL_STEP, 7))
    assert costliest_ledger(ledger, DELTA) == ledger
