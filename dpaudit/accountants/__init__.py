"""What a release costs: numpy and scipy alone, pure functions, frozen values."""

if __name__ != "dpaudit.accountants":
    raise ImportError(f"import dpaudit.accountants, not {__name__}: the link is a door for people")
