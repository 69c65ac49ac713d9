"""Makes models under differential privacy and writes down what it released."""

from importlib.util import find_spec

from dpaudit.vocabulary.errors import MissingExtra

if __name__ != "dpaudit.trainer":
    raise ImportError(f"import dpaudit.trainer, not {__name__}: the link is a door for people")

for _library in ("torch", "safetensors", "cryptography"):
    if find_spec(_library) is None:
        raise MissingExtra(_library, "train")
