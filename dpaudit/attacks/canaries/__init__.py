"""Canaries for any framework: made here, trained anywhere, each included by a fair coin.

    from dpaudit.attacks import canaries
    chosen = canaries.toss(canaries.mislabelled(heldout, classes, rng), rng)
    chosen.trained       # what the trainer may see
    chosen.included      # for the auditor alone

Input canaries are records (``mislabelled``, ``blank``, ``out_of_distribution``, ``crafted``),
text canaries are sentences with a secret (``secrets``). Gradient canaries for one's own torch
loop are the dummy parameters of ``dummy``; the trainer of this package has its own.
"""

from dpaudit.attacks.canaries.inputs import Records, blank, mislabelled, out_of_distribution
from dpaudit.attacks.canaries.secrets import Secrets, exposure, make_secrets
from dpaudit.attacks.canaries.tossed import Tossed, toss

__all__ = [
    "Records",
    "Secrets",
    "Tossed",
    "blank",
    "exposure",
    "make_secrets",
    "mislabelled",
    "out_of_distribution",
    "toss",
]
