"""The accountants: the one list that claims, the command line and calibration read.

To add an accountant, write its ``profile`` function, add an entry to ``REGISTRY`` and its name to
``dpaudit.vocabulary.privacy_terms``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dpaudit.accountants import calibrate, gdp, naive, pld, rdp, zcdp
from dpaudit.vocabulary.errors import InvalidArgument
from dpaudit.vocabulary.mechanism import Mechanism
from dpaudit.vocabulary.privacy_terms import SAMPLING_ACCOUNTANTS, Adjacency, Bound


@dataclass(frozen=True)
class Accountant:
    """One accountant: its privacy profile, and the methods that bound epsilon by it.

    Attributes:
        name: As in policies, claims and ``--accountant``.
        profile: Returns the privacy profile of a mechanism.
        methods: Each method's label, and the function of profile and delta that bounds epsilon.
    """

    name: str
    profile: calibrate.Accountant
    methods: Mapping[str, Callable[[Any, float], Bound]]

    def bounds(self, mechanism: Mechanism, delta: float, adjacency: Adjacency) -> dict[str, Bound]:
        """Bound epsilon at ``delta`` by every method of this accountant.

        Args:
            mechanism: What is released, composed over all steps.
            delta: Probability in (0, 1).
            adjacency: Which data sets are neighbors.

        Returns:
            An interval that contains the tight epsilon, for each method.

        Raises:
            UnsupportedMechanism: If the accountant does not cover ``mechanism``.
            InvalidArgument: If ``delta`` is out of range.
        """
        profile = self.profile(mechanism, adjacency=adjacency)
        return {label: method(profile, delta) for label, method in self.methods.items()}


_NAIVE = Accountant(
    "naive",
    naive.profile,
    {
        "basic composition": lambda profile, delta: profile.basic(delta=delta),
        "advanced composition": lambda profile, delta: profile.advanced(delta=delta),
        "optimal composition": lambda profile, delta: profile.optimal(delta=delta),
    },
)
_RDP = Accountant(
    "rdp",
    rdp.profile,
    {
        "moments, integer orders": lambda profile, delta: profile.at_integer_orders(delta=delta)[0],
        "Renyi, real orders": lambda profile, delta: profile.at_real_orders(delta=delta)[0],
    },
)
_PLD = Accountant(
    "pld",
    pld.profile,
    {"privacy loss distribution": lambda profile, delta: profile.epsilon(delta=delta)},
)
_ZCDP = Accountant(
    "zcdp",
    zcdp.profile,
    {"concentrated DP": lambda profile, delta: profile.epsilon(delta=delta)},
)
_GDP = Accountant(
    "gdp",
    gdp.profile,
    {"one Gaussian": lambda profile, delta: profile.epsilon(delta=delta)},
)

REGISTRY: Mapping[str, Accountant] = MappingProxyType(
    {one.name: one for one in (_NAIVE, _RDP, _PLD, _ZCDP, _GDP)}
)
"""Every accountant by its name."""


def find_accountant(name: str) -> Accountant:
    """Return the accountant called ``name``.

    Args:
        name: As in policies, claims and ``--accountant``.

    Returns:
        Its profile function and methods.

    Raises:
        InvalidArgument: If there is none.
    """
    if name not in REGISTRY:
        raise InvalidArgument("accountant", name, f"one of {', '.join(REGISTRY)}")
    return REGISTRY[name]


def sampling_accountants() -> tuple[Accountant, ...]:
    """Return the accountants that accept sampled mechanisms."""
    return tuple(REGISTRY[name] for name in SAMPLING_ACCOUNTANTS)
