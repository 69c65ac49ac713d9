"""dpaudit: train under differential privacy, account for it, attack it, and gate on the result.

``import dpaudit`` is light: numpy, scipy and torch are imported by the first function that needs
them.

Example:
    >>> import dpaudit
    >>> from dpaudit.accountants import Gaussian, PoissonSampled, Repeated
    >>> steps = Repeated(PoissonSampled(Gaussian(1.1), 0.01), 1000)
    >>> round(dpaudit.epsilon(steps, delta=1e-5).upper, 3)
    1.515
"""

from typing import TYPE_CHECKING

from dpaudit.vocabulary import lazy_exports

if TYPE_CHECKING:
    from dpaudit.trainer.attach import make_private
    from dpaudit.workflow.facade import (
        attack_run,
        audit_final_model,
        audit_run,
        calibrate,
        check_conformance,
        delta,
        epsilon,
        evaluate_policy,
        open_run,
        write_report,
    )

__version__ = "0.1.0"

__all__ = [
    "attack_run",
    "audit_final_model",
    "audit_run",
    "calibrate",
    "check_conformance",
    "delta",
    "epsilon",
    "evaluate_policy",
    "make_private",
    "open_run",
    "write_report",
]

_SOURCES = dict.fromkeys(__all__, "workflow.facade") | {"make_private": "trainer.attach"}

if not TYPE_CHECKING:  # or type checkers would take every unknown name as Any
    __getattr__, __dir__ = lazy_exports(__name__, _SOURCES)
