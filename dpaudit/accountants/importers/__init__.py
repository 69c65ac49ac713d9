"""Convert the records of other libraries to mechanisms, so that their claims can be checked.

No other library is imported. Objects are read by the names of their classes and fields, and
so is their JSON. A record without a counterpart here raises an error that names it.
"""

from dpaudit.accountants.importers.dp_event import from_dp_event
from dpaudit.accountants.importers.flower import from_flower
from dpaudit.accountants.importers.jax_privacy import from_jax_privacy
from dpaudit.accountants.importers.opacus import from_opacus
from dpaudit.accountants.importers.tensorflow_privacy import from_tensorflow_privacy

__all__ = [
    "from_dp_event",
    "from_flower",
    "from_jax_privacy",
    "from_opacus",
    "from_tensorflow_privacy",
]
