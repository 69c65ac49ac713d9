"""What other libraries wrote down, as mechanisms of ours: so that an old claim can be checked.

No other library is imported: their objects are read by the names of their classes and
fields, and so is the JSON of them. What has no counterpart here is refused by name.
"""

from dpaudit.accountants.importers.dp_event import from_dp_event
from dpaudit.accountants.importers.opacus import from_opacus

__all__ = ["from_dp_event", "from_opacus"]
