"""The privacy loss distribution: a certified two-sided interval for every answer.

Closed forms where they exist (Gaussians on the whole data set, equal two-valued answers),
one integral for one release, contour integrals for everything else. ``enclosure`` is an
independent, coarser way to the same numbers.
"""

from dpaudit.accountants.pld.profile import PldProfile, profile

__all__ = ["PldProfile", "profile"]
