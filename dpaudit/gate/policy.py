"""What a project demands of a run: read from dpaudit.toml, unknown keys refused."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import msgspec

from dpaudit.vocabulary.adjacency import Adjacency
from dpaudit.vocabulary.audit import BoundKind
from dpaudit.vocabulary.errors import (
    InvalidArgument,
    require_delta,
    require_open_unit,
    require_positive,
)
from dpaudit.vocabulary.ledger import Sampling


class ClaimPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the claim must say.

    Attributes:
        max_epsilon: The claim's upper end may not lie above it.
        delta: The delta at which epsilon counts.
        accountant: Whose upper bound counts.
        adjacency: Which data sets must count as neighbours.
        sampling: Which kinds of sampling are allowed.
        require_secure_randomness: Refuse runs whose noise a seed reproduces.
        may_leave_out: What the claim may leave out.
    """

    max_epsilon: float
    delta: float
    accountant: str = "pld"
    adjacency: Adjacency = Adjacency.ADD_OR_REMOVE_ONE
    sampling: tuple[Sampling, ...] = (Sampling.POISSON, Sampling.FULL_BATCH)
    require_secure_randomness: bool = True
    may_leave_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive("claim.max_epsilon", self.max_epsilon)
        require_delta("claim.delta", self.delta)
        if self.accountant not in {"naive", "rdp", "pld"}:
            raise InvalidArgument("claim.accountant", self.accountant, "naive, rdp or pld")


class AuditPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the audit must show.

    Attributes:
        confidence: Least joint confidence of the audit's bounds.
        count: Kinds of lower bound whose excess over the claim violates; another kind's
            excess leaves the run inconclusive.
        require_conformance: Demand that the trainer's steps were tested for conformance.
        min_power_epsilon: The audit counts only if a true epsilon this far above the claim
            would have been seen 95 times in 100.
        max_tpr_at_fpr: Largest true-positive rate of any attack, by false-positive rate;
            the upper end of its interval counts.
    """

    confidence: float = 0.95
    count: tuple[BoundKind, ...] = (BoundKind.CERTIFIED,)
    require_conformance: bool = False
    min_power_epsilon: float | None = None
    max_tpr_at_fpr: dict[str, float] = {}

    def __post_init__(self) -> None:
        require_open_unit("audit.confidence", self.confidence)
        if self.min_power_epsilon is not None:
            require_positive("audit.min_power_epsilon", self.min_power_epsilon)
        for fpr, tpr in self.max_tpr_at_fpr.items():
            require_open_unit("audit.max_tpr_at_fpr", _number(fpr))
            if not 0 <= tpr <= 1:
                raise InvalidArgument(f"audit.max_tpr_at_fpr.{fpr}", tpr, "between 0 and 1")


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All demands; without an audit section no audit is demanded."""

    claim: ClaimPolicy
    audit: AuditPolicy | None = None


def read_policy(path: Path) -> Policy:
    """Read a policy from dpaudit.toml, or from ``[tool.dpaudit]`` of a pyproject.toml.

    Raises:
        InvalidArgument: the file is missing or no TOML, a key is unknown or a value is not
            allowed; the message names it.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise InvalidArgument("policy", str(path), f"a readable file ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument("policy", str(path), f"valid TOML ({error})") from error
    if path.name == "pyproject.toml":
        content = content.get("tool", {}).get("dpaudit", {})
    try:
        return msgspec.convert(content, Policy)
    except InvalidArgument:
        raise
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, InvalidArgument):
            raise error.__cause__ from error
        raise InvalidArgument("policy", str(path), f"a valid policy ({error})") from error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
