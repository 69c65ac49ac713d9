"""Makes models under differential privacy and writes down what it released."""

if __name__ != "dpaudit.trainer":
    raise ImportError(f"import dpaudit.trainer, not {__name__}: the link is a door for people")
