"""What a verdict was reached by: the policy, where its values come from, and what was judged."""

from __future__ import annotations

from datetime import datetime

import msgspec

from dpaudit.vocabulary.errors import InvalidArgument


class PolicyLayer(msgspec.Struct, frozen=True):
    """One source of a policy's values.

    Attributes:
        source: The file as it was named, ``$VARIABLE``, or ``--set KEY``.
        sha256: Digest of the file's bytes, or of the text of the variable or option.
    """

    source: str
    sha256: str


class Override(msgspec.Struct, frozen=True):
    """A value that the environment or the command line set.

    Attributes:
        key: A key of the policy, such as ``claim.max_epsilon``; or an option of the command.
        value: As text.
        source: Which variable or option set it.
    """

    key: str
    value: str
    source: str


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a verdict was reached by.

    Attributes:
        policy_digest: SHA-256 of the policy in force: all keys with their values, sorted.
        project_digest: The same of the project's own policy files alone; empty if the
            working directory has none, ``unreadable`` if they are not valid.
        layers: Where the policy comes from; later layers take precedence.
        overrides: Every value that the environment or the command line set.
        model_digest: SHA-256 of the model that the ledger's seal names; empty without a run.
        dpaudit_version: Which version judged.
        judged: When, with its offset from UTC.
    """

    policy_digest: str
    dpaudit_version: str
    judged: datetime
    project_digest: str = ""
    layers: tuple[PolicyLayer, ...] = ()
    overrides: tuple[Override, ...] = ()
    model_digest: str = ""

    def __post_init__(self) -> None:
        if self.judged.utcoffset() is None:
            raise InvalidArgument("judged", self.judged.isoformat(), "a time with its offset")

    def is_of_project(self, project_digest: str = "") -> bool:
        """Return whether the policy in force was the project's own.

        Args:
            project_digest: Of the project's policy as it is now, where there is one.

        Returns:
            True if the policy in force equals the project's policy at the time of the
            verdict and now. A project without policy files contradicts no policy.
        """
        known = {self.project_digest, project_digest} - {""}
        return known <= {self.policy_digest}
