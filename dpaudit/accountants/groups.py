"""Names of version 0.1 for ``group_privacy``; new code uses that module."""

from dpaudit.accountants.group_privacy import group_delta as delta
from dpaudit.accountants.group_privacy import group_epsilon as epsilon

__all__ = ["delta", "epsilon"]
