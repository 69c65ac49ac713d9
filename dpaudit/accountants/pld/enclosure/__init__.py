"""An enclosure on a grid of losses: coarse, independent of the contour, and held against it.

Above, each release's law is replaced by a lattice law that dominates it; below, Hoeffding's
inequality bounds what rounding to the lattice may have added.
"""

from dpaudit.accountants.pld.enclosure.profile import GridProfile, profile

__all__ = ["GridProfile", "profile"]
