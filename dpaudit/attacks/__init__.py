"""Audits and attacks: lower bounds on epsilon, membership inference and conformance tests.

This package shares no code with ``dpaudit.accountants``, whose upper bounds it may contradict.
"""

if __name__ != "dpaudit.attacks":
    raise ImportError(f"import dpaudit.attacks, not {__name__}: the symlink is for browsing only")
