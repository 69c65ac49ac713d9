"""Random ledgers of every kind of release, put to every accountant.

    python benchmarks/ledgers.py --ledgers 10000 --out rows.jsonl --json results.json

Kinds, samplings and adjacencies have equal weight. A row per ledger goes to ``--out`` at once; a
later call with the same file and seed continues there. Counted as wrong: an exception that is
no error of dpaudit, a warning, NaN, an upper bound of pld above another accountant's, a lower
bound above an upper one.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

from side_by_side.every_kind import row_of, summary


def main() -> None:
    """Answer the ledgers that are not in the file yet, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledgers", type=int, default=1000, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="one row a line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    asked = parser.parse_args()
    done = {row["place"] for row in rows_of(asked.out)}
    with asked.out.open("a") as stream:
        for place in range(asked.first, asked.first + asked.ledgers):
            if place not in done:
                stream.write(json.dumps(row_of(place, seed=asked.seed)) + "\n")
                stream.flush()
    figures = {
        "date": datetime.date.today().isoformat(), "seed": asked.seed,
        **summary(rows_of(asked.out)),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file, without a last line that was cut."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines if line]


if __name__ == "__main__":
    main()
