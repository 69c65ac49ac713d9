"""Measures what a model gives away; imports nothing of the accountants."""

if __name__ != "dpaudit.attacks":
    raise ImportError(f"import dpaudit.attacks, not {__name__}: the link is a door for people")
