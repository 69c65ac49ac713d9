"""The registry is the one list of accountants; names that others read agree with it."""

from __future__ import annotations

import pytest

from dpaudit.accountants.registry import REGISTRY, find_accountant, sampling_accountants
from dpaudit.vocabulary.errors import InvalidArgument, UnsupportedMechanism
from dpaudit.vocabulary.mechanism import Gaussian, PoissonSampled
from dpaudit.vocabulary.privacy_terms import ACCOUNTANTS, UNSAMPLED_ACCOUNTANTS, Adjacency

SAMPLED = PoissonSampled(Gaussian(1.0), 0.1)


def test_names_are_those_of_the_registry() -> None:
    assert tuple(REGISTRY) == ACCOUNTANTS
    assert [one.name for one in REGISTRY.values()] == list(REGISTRY)


@pytest.mark.parametrize("accountant", sampling_accountants(), ids=lambda one: one.name)
def test_sampling_accountants_bound_sampled_mechanisms(accountant) -> None:
    bounds = accountant.bounds(SAMPLED, 1e-5, Adjacency.ADD_OR_REMOVE_ONE)
    assert set(bounds) == set(accountant.methods)
    assert all(0 <= bound.lower <= bound.upper for bound in bounds.values())


@pytest.mark.parametrize("name", UNSAMPLED_ACCOUNTANTS)
def test_unsampled_accountants_refuse_sampled_mechanisms(name: str) -> None:
    with pytest.raises(UnsupportedMechanism):
        find_accountant(name).bounds(SAMPLED, 1e-5, Adjacency.ADD_OR_REMOVE_ONE)


def test_unknown_accountant_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidArgument, match="one of naive, rdp, pld, zcdp, gdp, got 'gpd'"):
        find_accountant("gpd")
