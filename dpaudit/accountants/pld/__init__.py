"""The privacy loss distribution: a certified two-sided interval for every answer.

Closed forms where they exist (Gaussians on the whole data set, yes-or-no randomized
response), a grid enclosure for everything else.
"""

from dpaudit.accountants.pld.profile import PldProfile, profile

__all__ = ["PldProfile", "profile"]
