"""What the number means: how well the best attacker can do, whoever it is.

Everything is computed from a privacy profile, that is, from delta(epsilon): from its upper
ends what no attacker exceeds, from its lower ends what some attacker reaches. The attacker
knows all records but one, picks the worst neighbours, at random if that helps, and
sees everything that was released. Of two neighbours, "with" is the one whose output the
attacker is to recognise.

tradeoff, tpr_at_fpr   true positive rate at a false positive rate
advantage              the largest true positive rate less false positive rate
accuracy               of the best guess, given how likely each neighbour was beforehand
posterior              how sure the output can make an attacker who knew the prior
reconstruction         success of guessing a whole record
"""

from dpaudit.accountants.risk.guesses import (
    Posterior,
    accuracy,
    advantage,
    posterior,
    reconstruction,
)
from dpaudit.accountants.risk.hockey_sticks import PrivacyProfile
from dpaudit.accountants.risk.tradeoff import TradeoffCurve, tpr_at_fpr, tradeoff

__all__ = [
    "Posterior",
    "PrivacyProfile",
    "TradeoffCurve",
    "accuracy",
    "advantage",
    "posterior",
    "reconstruction",
    "tpr_at_fpr",
    "tradeoff",
]
