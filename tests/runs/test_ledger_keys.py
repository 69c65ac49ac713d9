"""A ledger's line that names a key twice is broken, though its hash be right."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledgers import header

from dpaudit.runs.ledger_file import read_ledger, read_unfinished
from dpaudit.runs.ledger_format import GENESIS_HASH, chain_hash, encode_line
from dpaudit.vocabulary.errors import IntegrityError
from dpaudit.vocabulary.ledger import ReleaseEntry, SpotCheckEntry
from dpaudit.vocabulary.mechanism import Gaussian


def written(path: Path, old: bytes, new: bytes) -> Path:
    """Write a ledger of a header and a release, in whose release ``old`` became ``new``."""
    first, head = encode_line(header(), GENESIS_HASH)
    second, _ = encode_line(ReleaseEntry("gradient sum", Gaussian(2.0), step=0), head)
    entry = second[len(b'{"entry":') : second.rindex(b',"hash"')].replace(old, new)
    whole = b'{"entry":' + entry + b',"hash":"' + chain_hash(head, entry).encode() + b'"}\n'
    path.write_bytes(first + whole)
    return path


def test_a_line_as_it_is_written_is_read(tmp_path: Path) -> None:
    ledger = read_ledger(written(tmp_path / "l.jsonl", b"", b""))
    assert ledger.releases[0].mechanism == Gaussian(2.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"noise_multiplier":2.0', b'"noise_multiplier":0.1,"noise_multiplier":2.0'),
        (b'"what":', b'"what":"record count","what":'),
    ],
)
def test_a_key_that_comes_twice_breaks_the_line(tmp_path: Path, old: bytes, new: bytes) -> None:
    with pytest.raises(IntegrityError, match="twice"):
        read_ledger(written(tmp_path / "l.jsonl", old, new))


def test_a_spot_check_of_an_earlier_version_names_its_records(tmp_path: Path) -> None:
    first, head = encode_line(header(), GENESIS_HASH)
    line, _ = encode_line(SpotCheckEntry(17, records=2), head)
    assert b'"records":2' in line
    (tmp_path / "l.jsonl").write_bytes(first + line)
    ledger = read_unfinished(tmp_path / "l.jsonl")
    assert ledger.lines == (SpotCheckEntry(17, records=2),)
    assert ledger.checked_steps == {17}
