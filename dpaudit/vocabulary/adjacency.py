"""Which two data sets count as neighbours: a field everywhere, never a convention."""

from __future__ import annotations

from enum import Enum


class Adjacency(Enum):
    """The relation under which a privacy statement holds.

    A Gaussian's noise multiplier is the noise's standard deviation over the clip
    norm, that is, over the L2 sensitivity when one record is added or removed.
    """

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    """One data set holds one record more."""

    REPLACE_ONE = "replace-one"
    """Equal sizes, one record differs: a clipped sum moves by up to twice the clip norm."""

    ZERO_OUT = "zero-out"
    """Equal sizes, one record is replaced by one that contributes zero."""
